"""Dead leases find a new owner; live ones never do, whatever happened to the database meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from schemas.failures import FailureClass
from tests.chaos.proxy import Proxy
from tests.store_support import ClockedDatabase, Stage, stage_at, success
from worker.clock import Clock
from worker.domain.outcome import Failed
from worker.domain.retry import LONGEST_WAIT_S
from worker.metrics import Metrics
from worker.services.rescuer import Rescuer
from worker.store.runs import Limits
from worker.store.workers import WorkerStore

if TYPE_CHECKING:
    from worker.domain.moves import Move

LEASE_S = 60.0


class OwnTime:
    """The rescuer's own monotonic clock, in the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, sleep=asyncio.sleep, random=lambda: 0.5)


def rescuer_of(stage: Stage, own: OwnTime, workers: WorkerStore | None = None) -> Rescuer:
    return Rescuer(
        stage.runs,
        workers or WorkerStore(stage.database),
        "w9",
        sweep_s=15,
        lease_s=LEASE_S,
        clock=own.clock(),
        metrics=Metrics(),
    )


async def looked_for_a_lease(rescuer: Rescuer, own: OwnTime) -> bool:
    seen = False
    for _ in range(11):
        seen = await rescuer.look()
        own.now += LEASE_S / 10
    return seen or await rescuer.look()


async def rescues(stage: Stage) -> list[Move]:
    """What rescue would do now."""
    return [move for of_one in await stage.runs.orphans(100) for move in stage.runs.moves.of_lost_worker(of_one)]


# --- what is an orphan --------------------------------------------------------------------------------------------


async def test_expired_lease_is_claimed_by_another_worker_with_the_next_attempt(stage: Stage) -> None:
    run = await stage.running("w1", LEASE_S)
    stage.clock.advance(LEASE_S + 1)
    [move] = await rescues(stage)
    settled = await stage.runs.settle(move)
    assert settled is not None
    assert settled.status == 2
    stage.clock.advance(3600)
    [again] = await stage.claim("w2", 1, LEASE_S)
    assert (again.id, again.attempt, again.failures, again.hand_overs) == (run.id, 2, 0, 1)
    assert await stage.runs.renew("w1", [run.fence], LEASE_S) == {}


async def test_run_is_no_orphan_while_its_lease_lives_however_old_it_is(stage: Stage) -> None:
    run = await stage.running("w1", LEASE_S)
    for _ in range(100):
        stage.clock.advance(LEASE_S - 1)
        assert await stage.runs.orphans(10) == []
        assert await stage.runs.renew("w1", [run.fence], LEASE_S) == {run.fence: False}


async def test_renewal_between_the_look_and_the_move_saves_the_owner(stage: Stage) -> None:
    run = await stage.running("w1", LEASE_S)
    stage.clock.advance(LEASE_S + 1)
    [move] = await rescues(stage)
    await stage.runs.renew("w1", [run.fence], LEASE_S)
    assert await stage.runs.settle(move) is None
    row = await stage.row(run.id)
    assert (row["status"], row["attempt"], row["worker_id"]) == (3, 1, "w1")


async def test_owner_and_two_rescuers_at_once_move_the_run_once(stage: Stage) -> None:
    for _ in range(10):
        run = await stage.running("w1", LEASE_S)
        stage.clock.advance(LEASE_S + 1)
        stores = [stage.store(stage.database) for _ in range(3)]
        [first], [second] = await rescues(stage), await rescues(stage)
        moves = [first, second, stores[2].moves.after(run, success())]
        settled = await asyncio.gather(*(store.settle(move) for store, move in zip(stores, moves, strict=True)))
        assert sum(end is not None for end in settled) == 1
        row = await stage.row(run.id)
        if row["status"] == 2:
            await stage.runs.settle(stage.runs.moves.cancel_queued(run.fence))
        await stage.books_agree()


async def test_rescue_of_a_run_whose_cancel_was_asked_ends_it(stage: Stage) -> None:
    run = await stage.running("w1", LEASE_S)
    await stage.runs.request_cancel(run.id)
    stage.clock.advance(LEASE_S + 1)
    [move] = await rescues(stage)
    await stage.runs.settle(move)
    assert await stage.history(run.id) == [(None, 2), (2, 3), (3, 1)]


async def test_orphans_come_in_bounded_batches_the_longest_dead_first(stage: Stage) -> None:
    expected = []
    for n in range(6):
        expected.append((await stage.running(f"w{n}", LEASE_S)).id)
        stage.clock.advance(1)
    stage.clock.advance(LEASE_S)
    assert [orphan.fence.run_id for [orphan] in await stage.runs.orphans(4)] == expected[:4]


async def test_run_that_waits_too_long_fails_with_class_timeout(database_url: str) -> None:
    async with stage_at(database_url, limits=Limits(wait_s=100)) as stage:
        run_id = await stage.queued()
        stage.clock.advance(99)
        assert await stage.runs.overdue_waiting(10) == []
        stage.clock.advance(2)
        [(fence, waited_s)] = await stage.runs.overdue_waiting(10)
        settled = await stage.runs.settle(stage.runs.moves.of_overdue(fence, waited_s))
        assert settled is not None
        row = await stage.row(run_id)
        assert (row["status"], row["failure_class"], row["failure_code"]) == (5, "timeout", "waited_too_long")


async def test_back_off_does_not_count_as_waiting(database_url: str) -> None:
    async with stage_at(database_url, limits=Limits(wait_s=100)) as stage:
        run = await stage.running()
        stage.clock.advance(1)
        await stage.settled(run, Failed(FailureClass.STALLED, "stalled", "It stood still."))
        due = (await stage.row(run.id))["due_at"]
        stage.clock.now = due
        stage.clock.advance(99)
        assert await stage.runs.overdue_waiting(10) == []
        stage.clock.advance(2)
        assert len(await stage.runs.overdue_waiting(10)) == 1


async def test_a_run_that_never_finds_a_free_device_asks_ever_more_seldom_and_has_waited_too_long_in_the_end(
    database_url: str,
) -> None:
    async with stage_at(database_url, limits=Limits(wait_s=600)) as stage:
        run = await stage.running()
        pauses = []
        while True:
            before = stage.clock.now
            await stage.settled(run, Failed(FailureClass.CAPACITY, "no_device", "No machine."))
            stage.clock.now = (await stage.row(run.id))["due_at"]
            pauses.append((stage.clock.now - before).total_seconds())
            assert len(pauses) < 20
            if overdue := await stage.runs.overdue_waiting(10):
                break
            [run] = await stage.claim("w1", 1, LEASE_S)
        assert pauses == sorted(pauses)
        assert 600 <= sum(pauses) < 600 + LONGEST_WAIT_S
        [(fence, waited_s)] = overdue
        await stage.runs.settle(stage.runs.moves.of_overdue(fence, waited_s))
        row = await stage.row(run.id)
        assert (row["failure_code"], row["failures"]) == ("waited_too_long", 0)


async def test_run_claimed_between_the_look_and_the_end_is_not_failed_for_waiting(database_url: str) -> None:
    async with stage_at(database_url, limits=Limits(wait_s=100)) as stage:
        run_id = await stage.queued()
        stage.clock.advance(101)
        [(fence, waited_s)] = await stage.runs.overdue_waiting(10)
        await stage.claim("w1", 1, LEASE_S)
        assert await stage.runs.settle(stage.runs.moves.of_overdue(fence, waited_s)) is None
        assert (await stage.row(run_id))["status"] == 3


# --- when the rescuer may believe it ------------------------------------------------------------------------------


async def test_rescuer_believes_only_after_a_whole_lease_without_a_gap(stage: Stage) -> None:
    own = OwnTime()
    rescuer = rescuer_of(stage, own)
    assert not await rescuer.look()
    for _ in range(9):
        own.now += LEASE_S / 10
        assert not await rescuer.look()
    own.now += LEASE_S / 10
    assert await rescuer.look()


async def test_gap_in_the_looks_begins_the_wait_again(stage: Stage) -> None:
    """The rescuer's own process was frozen, or starved: what it saw before says nothing."""
    own = OwnTime()
    rescuer = rescuer_of(stage, own)
    assert await looked_for_a_lease(rescuer, own)
    own.now += LEASE_S / 2
    assert not await rescuer.look()
    assert await looked_for_a_lease(rescuer, own)


async def test_outage_begins_the_wait_again(stage: Stage) -> None:
    async with Proxy(stage.url) as proxy:
        database = ClockedDatabase(proxy.url, stage.clock, size=1, answer_s=1)
        own = OwnTime()
        rescuer = rescuer_of(stage, own, WorkerStore(database))
        try:
            assert await looked_for_a_lease(rescuer, own)
            proxy.refuse()
            assert not await rescuer.look()
            proxy.resume()
            assert not await rescuer.look()
            assert await looked_for_a_lease(rescuer, own)
        finally:
            await database.close()


async def test_database_that_takes_no_writes_is_not_there(stage: Stage) -> None:
    """Owners could not renew meanwhile: while another server takes over, or the last disk space is protected."""
    own = OwnTime()
    database = ClockedDatabase(stage.url, stage.clock, size=1)
    rescuer = rescuer_of(stage, own, WorkerStore(database))
    try:
        assert await looked_for_a_lease(rescuer, own)
        await database.execute("set default_transaction_read_only = on")
        assert not await rescuer.look()
        await database.execute("set default_transaction_read_only = off")
        assert not await rescuer.look()
        assert await looked_for_a_lease(rescuer, own)
    finally:
        await database.close()


@pytest.mark.parametrize("step_s", [LEASE_S, -LEASE_S])
async def test_step_of_the_databases_clock_begins_the_wait_again(stage: Stage, step_s: float) -> None:
    own = OwnTime()
    await WorkerStore(stage.database).sign_on("w9", "host", 1, "0", 1)
    rescuer = rescuer_of(stage, own)
    for _ in range(12):
        seen = await rescuer.look()
        own.now += LEASE_S / 10
        stage.clock.advance(LEASE_S / 10)
    assert seen
    stage.clock.advance(step_s)
    assert not await rescuer.look()


async def test_sweep_moves_orphans_and_overdue_waits_and_leaves_the_rest(database_url: str) -> None:
    async with stage_at(database_url, limits=Limits(wait_s=1000)) as stage:
        dead = await stage.running("w1", LEASE_S)
        stage.clock.advance(LEASE_S + 1)
        alive = await stage.running("w2", LEASE_S)
        assert await rescuer_of(stage, OwnTime()).sweep() == 1
        assert (await stage.row(dead.id))["status"] == 2
        assert (await stage.row(alive.id))["status"] == 3
        stage.clock.advance(5000)
        await stage.runs.renew("w2", [alive.fence], LEASE_S)
        assert await rescuer_of(stage, OwnTime()).sweep() == 1
        assert (await stage.row(dead.id))["status"] == 5
        await stage.books_agree()
