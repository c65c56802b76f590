"""Caps hold for everybody at once: organizations, base languages, and a writer that forgets to count."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from tests.store_support import Stage, success


async def _base(stage: Stage, key: str, cap: int) -> int:
    base = await stage.models.create_base_language(key, key, "/base")
    await stage.database.execute("update base_languages set max_running = $2 where id = $1", base, cap)
    return base


async def test_caps_are_never_exceeded_under_8_concurrent_claimers(stage: Stage) -> None:
    """Watched from outside: no moment shows more running than a cap allows, and every run gets its turn."""
    bases = {await _base(stage, f"b{cap}", cap): cap for cap in (2, 3)}
    organizations = {await stage.organization(f"o{cap}", cap): cap for cap in (1, 2, 4)}
    chance = random.Random(5)
    wanted = 60
    for _ in range(wanted):
        await stage.queued(chance.choice(list(organizations)), chance.choice(list(bases)))
    ended = 0
    over: list[object] = []

    async def claimer(name: str) -> None:
        nonlocal ended
        while ended < wanted:
            for run in await stage.claim(name, 2):
                await asyncio.sleep(chance.random() * 0.01)
                assert await stage.settled(run, success()) is not None
                ended += 1

    async def witness() -> None:
        connection = await asyncpg.connect(stage.url)
        try:
            while ended < wanted:
                rows = await connection.fetch(
                    "select organization_id, base_language_id, count(*) as n from training_runs where status = 3"
                    " group by grouping sets ((organization_id), (base_language_id))"
                )
                over.extend(
                    dict(row)
                    for row in rows
                    if row["n"] > (organizations[row[0]] if row[0] is not None else bases[row[1]])
                )
                await asyncio.sleep(0.001)
        finally:
            await connection.close()

    async with asyncio.timeout(60):
        await asyncio.gather(witness(), *(claimer(f"w{n}") for n in range(8)))
    assert over == []
    await stage.books_agree()


async def test_full_base_language_does_not_hold_up_runs_of_another(stage: Stage) -> None:
    full, free = await _base(stage, "full", 1), await _base(stage, "free", 9)
    owner = await stage.organization()
    for _ in range(3):
        await stage.queued(owner, full, priority=50)
    other = await stage.queued(owner, free)
    claimed = await stage.claim("w1", 4)
    assert len(claimed) == 2
    assert other in {run.id for run in claimed}


async def test_full_organization_does_not_hold_up_others(stage: Stage) -> None:
    small = await stage.organization("small", 1)
    await stage.queued(small)
    await stage.queued(small)
    other = await stage.queued(await stage.organization("other"))
    assert {run.id for run in await stage.claim("w1", 9)} >= {other}
    assert (await stage.claim("w1", 9)) == []


async def test_cap_lowered_below_what_runs_is_refused(stage: Stage) -> None:
    await stage.organization("clinic", 2)
    await stage.running()
    with pytest.raises(Exception, match="organization_cap"):
        await stage.models.create_organization(stage.organizations["clinic"], "clinic", 0)


async def test_writer_that_does_not_look_at_the_cap_is_refused_by_the_database(stage: Stage) -> None:
    owner = await stage.organization("clinic", 1)
    await stage.running()
    second = await stage.queued(owner)
    connection = await asyncpg.connect(stage.url)
    try:
        with pytest.raises(asyncpg.CheckViolationError, match="organization_cap"):
            async with connection.transaction():
                await connection.execute(
                    "update training_runs set status = 3, sequence = 2, attempt = 1, worker_id = 'x', started_at = now(),"
                    " claimed_at = now(), lease_expires_at = now() where id = $1",
                    second,
                )
    finally:
        await connection.close()


async def test_slot_is_free_again_after_every_kind_of_end(stage: Stage) -> None:
    from tests.integration.test_settle import ENDS  # noqa: PLC0415 - one list of ends

    owner = await stage.organization("clinic", 1)
    for outcome in ENDS:
        await stage.queued(owner)
        [run] = await stage.claim("w1", 1)
        await stage.settled(run, outcome)
        row = await stage.row(run.id)
        if row["status"] == 2:
            await stage.runs.settle(stage.runs.moves.cancel_queued(run.fence))
        await stage.books_agree()
        assert (await stage.row(run.id))["status"] in (1, 4, 5)
