"""Who gets a free slot: fair between organizations, urgent first within one, each run once."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest

from schemas.failures import FailureClass
from tests.chaos.proxy import Proxy
from tests.store_support import BEGIN, ClockedDatabase, Stage, success
from worker.domain.outcome import Failed
from worker.domain.run import Claim
from worker.errors import DatabaseAway
from worker.store.database import queries

CRASH = Failed(FailureClass.CRASHED, "signal_9", "It stopped.")


@pytest.mark.parametrize(("bursts", "slots"), [(1, 1), (1, 4), (2, 2), (3, 4)])
async def test_lone_run_is_among_the_first_k_plus_1_claims_after_it_is_due(
    stage: Stage, bursts: int, slots: int
) -> None:
    greedy = [await stage.organization(f"greedy {n}") for n in range(bursts)]
    for organization in greedy:
        for _ in range(20):
            await stage.queued(organization)
    busy = []
    for _ in range(slots):
        stage.clock.advance(1)
        busy += await stage.claim("w1", 1)
    lone = await stage.queued(await stage.organization("lone"))
    order = []
    while lone not in order:
        stage.clock.advance(1)
        await stage.settled(busy.pop(0), success())
        claimed = await stage.claim("w1", 1)
        order += [run.id for run in claimed]
        busy += claimed
    assert len(order) <= slots + 1


async def test_lone_run_that_was_served_a_moment_ago_waits_for_k_plus_1_claims_at_most(stage: Stage) -> None:
    """Being recently served does not put an organization behind one that holds a slot."""
    greedy, lone = await stage.organization("greedy"), await stage.organization("lone")
    for _ in range(10):
        await stage.queued(greedy)
    await stage.queued(lone)
    busy = await stage.claim("w1", 2)
    [of_lone] = [run for run in busy if run.organization_id == lone]
    again = await stage.queued(lone)
    await stage.settled(of_lone, success())
    claimed = await stage.claim("w1", 1)
    assert [run.id for run in claimed] == [again]


async def test_several_free_slots_go_round_the_organizations(stage: Stage) -> None:
    organizations = [await stage.organization(f"o{n}") for n in range(3)]
    for organization in organizations:
        for _ in range(5):
            await stage.queued(organization)
    claimed = await stage.claim("w1", 6)
    assert sorted(run.organization_id for run in claimed) == sorted(organizations * 2)


async def test_within_an_organization_priority_comes_first_then_who_waited_longest(stage: Stage) -> None:
    late_and_urgent = None
    first = await stage.queued()
    stage.clock.advance(1)
    second = await stage.queued()
    stage.clock.advance(1)
    late_and_urgent = await stage.queued(priority=10)
    unimportant = await stage.queued(priority=-5)
    order = [(await stage.claim("w1", 1))[0].id for _ in range(4)]
    assert order == [late_and_urgent, first, second, unimportant]


async def test_run_in_its_back_off_is_not_claimed_before_it_is_due(stage: Stage) -> None:
    run = await stage.running()
    await stage.settled(run, CRASH)
    assert await stage.claim("w1", 1) == []
    row = await stage.row(run.id)
    stage.clock.advance((row["due_at"] - stage.clock.now).total_seconds())
    [again] = await stage.claim("w2", 1)
    assert (again.id, again.attempt, again.failures) == (run.id, 2, 1)


async def test_back_off_of_one_organization_does_not_hide_others(stage: Stage) -> None:
    """An organization whose runs all wait for their back-off is skipped, not claimed from and found empty."""
    for n in range(5):
        organization = await stage.organization(f"broken {n}")
        await stage.queued(organization)
        [run] = await stage.claim("w1", 1)
        await stage.settled(run, CRASH)
    well = await stage.queued(await stage.organization("well"))
    assert [run.id for run in await stage.claim("w1", 1)] == [well]


async def test_concurrent_claimers_take_each_run_once(stage: Stage) -> None:
    wanted = {await stage.queued(await stage.organization(f"o{n % 5}")) for n in range(40)}
    taken: list[object] = []

    async def claimer(name: str) -> None:
        while len(taken) < len(wanted):
            taken.extend(run.id for run in await stage.claim(name, 3))

    async with asyncio.timeout(30):
        await asyncio.gather(*(claimer(f"w{n}") for n in range(8)))
    assert sorted(map(str, taken)) == sorted(map(str, wanted))
    await stage.books_agree()


async def test_claim_whose_answer_was_lost_is_found_again_by_its_ids(stage: Stage) -> None:
    await stage.queued()
    async with Proxy(stage.url) as proxy:
        database = ClockedDatabase(proxy.url, stage.clock, size=1, answer_s=5)
        store = stage.store(database)
        claim = Claim.of("w1", 60, 1)
        try:
            assert await store.claim(Claim.of("other", 60, 1)) != []  # the statement is prepared now
            lost = await stage.queued()
            proxy.lose_answer_to(claim.transition_ids[0].bytes)
            with pytest.raises(DatabaseAway):
                await store.claim(claim)
            found = await store.claims_of(claim)
        finally:
            await database.close()
        assert proxy.lost_answers == 1
    assert [(run.id, run.attempt) for run in found] == [(lost, 1)]


async def test_claim_asks_for_no_more_than_its_slots_and_finds_nothing_in_an_empty_queue(stage: Stage) -> None:
    assert await stage.claim("w1", 4) == []
    for _ in range(3):
        await stage.queued()
    assert len(await stage.claim("w1", 2)) == 2
    assert len(await stage.claim("w1", 2)) == 1


async def _crowd(stage: Stage) -> None:
    """20,000 finished, waiting and running runs of 500 organizations, as statistics see them after a while."""
    await stage.database.execute(
        f"""
        select set_config('session_replication_role', 'replica', false);
        insert into organizations (id, name, waiting, running, max_running)
            select n, 'o', 8, 2, 1000 from generate_series(1001, 1500) n;
        insert into custom_models (id, key, name, organization_id, base_language_id, base_language_key)
            select n + 100000, 'k' || n, 'm', 1001 + n % 500, {stage.base}, 'en' from generate_series(1, 20000) n;
        insert into training_runs (id, custom_model_id, organization_id, base_language_id, status, sequence, attempt,
                requested_at, due_at, wait_until, started_at, claimed_at, ended_at, worker_id, lease_expires_at,
                figures, gate)
            select gen_random_uuid(), n + 100000, 1001 + n % 500, {stage.base}, s.status, 3, 1, '{BEGIN}',
                timestamptz '{BEGIN}' - interval '1 day', timestamptz '{BEGIN}' + interval '7 days',
                '{BEGIN}', '{BEGIN}',
                case when s.status = 4 then timestamptz '{BEGIN}' end, case when s.status = 3 then 'w' || n % 50 end,
                case when s.status = 3 then timestamptz '{BEGIN}' + interval '1 minute' end, '{{}}', 'published'
            from generate_series(1, 20000) n,
                lateral (select case when n % 20 = 0 then 3 when n % 20 in (1, 2) then 2 else 4 end as status) s;
        select set_config('session_replication_role', 'origin', false);
        analyze;
        """
    )


def _scanned_whole(plan: object) -> set[str]:
    """Tables that a plan reads from end to end."""
    if isinstance(plan, list):
        return set().union(*map(_scanned_whole, plan))
    if not isinstance(plan, dict):
        return set()
    found = {plan["Relation Name"]} if plan.get("Node Type") == "Seq Scan" else set()
    return found.union(*map(_scanned_whole, plan.values()))


async def test_hot_statements_never_read_the_whole_table_of_runs(stage: Stage) -> None:
    await _crowd(stage)
    texts = queries("runs")
    asked: dict[str, tuple[object, ...]] = {
        "claim_runs": ("w1", 4, 60.0, [uuid4() for _ in range(4)]),
        "renew_leases": ("w1", [uuid4()], [1], 60.0),
        "orphans": (100,),
        "overdue_waiting": (100,),
        "checkpoints_of_run": (uuid4(),),
    }
    for name, arguments in asked.items():
        async with stage.database.connection() as connection, connection.transaction():
            plan = json.loads(await connection.fetchval(f"explain (format json) {texts[name]}", *arguments))
        assert "training_runs" not in _scanned_whole(plan), (name, plan)
