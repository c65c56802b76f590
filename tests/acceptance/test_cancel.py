"""Cancel and delete really stop: the group is gone, the slot free, the status written, the artifacts removed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import until
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    import uuid

    from tests.acceptance.world import World

STEPS = ["prepare", "train", "evaluate", "export"]


def kept(world: World, run: uuid.UUID) -> list[str]:
    """What lies in storage of a run, its log apart. Walked while files may be vanishing."""
    folder = world.folder / "storage" / "runs" / str(run)
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names if name != "log.txt"]
    return sorted(str(path.relative_to(folder)) for path in found)


@pytest.mark.parametrize("step", STEPS)
async def test_cancel_in_every_step_stops_it(world: World, step: str) -> None:
    worker = await world.started(WORKER_SLOTS="1")
    run = await world.ask(other_steps=100, steps=100, step_s=0.001, step_s_of={step: 0.2}, checkpoint_every=10)
    await world.trainer_of(run, step)
    done = world.command("cancel", str(run))
    assert done.returncode == 0, done.stderr
    row = await world.over(run)
    assert (row["status"], row["failure_class"]) == (1, "cancelled")
    await until(lambda: not world.trainers(run), "its trainer is gone", 5)
    await until(lambda: worker.said("attempt ended", to="NOT_RUNNING"), "the worker is done with it")
    await until(lambda: not kept(world, run), f"its artifacts are removed, not {kept(world, run)}", 5)
    assert await world.pool.fetchval("select count(*) from model_versions") == 0
    after = await world.ask()  # the only slot is free again
    assert (await world.over(after))["status"] == 4


async def test_cancelled_queued_run_never_starts(world: World) -> None:
    await world.started(WORKER_SLOTS="0")
    run = await world.ask()
    await until(lambda: world.status(run), "the run is registered")
    assert world.command("cancel", str(run)).returncode == 0
    assert await world.moves(run) == [(None, 2), (2, 1)]
    await world.started()
    other = await world.ask()
    await world.over(other)
    assert world.witnessed(run) == []
    assert world.command("cancel", str(run)).returncode == 1


async def test_cancel_with_its_owner_dead_ends_by_rescue(world: World) -> None:
    first = await world.started()
    run = await world.ask(steps=200, step_s=0.1, checkpoint_every=1)
    await world.trainer_of(run, "train")
    await until(lambda: world.pool.fetchval("select count(*) > 0 from run_checkpoints"), "a checkpoint")
    first.kill()
    assert world.command("cancel", str(run)).returncode == 0
    assert await world.status(run) == 3
    await world.started()
    row = await world.over(run)
    assert (row["status"], row["attempt"]) == (1, 1)
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 1)]
    await until(lambda: not kept(world, run), f"its artifacts are removed, not {kept(world, run)}", 10)


async def test_cancel_during_the_terminal_write_wins_until_it_commits(world: World) -> None:
    async with Proxy(world.database_url) as proxy:
        await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_SLOTS="1")
        proxy.refuse_at(b'"to_status": 4')
        run = await world.ask()
        await asyncio.wait_for(proxy.refused_one.wait(), 30)
        assert world.command("cancel", str(run)).returncode == 0
        proxy.resume()
        row = await world.over(run)
        assert (row["status"], row["gate"]) == (1, None)
        assert await world.pool.fetchval("select count(*) from model_versions") == 0
        await until(lambda: not kept(world, run), "its artifacts are removed", 10)


async def test_cancel_after_success_is_too_late(world: World) -> None:
    await world.started()
    run = await world.ask()
    assert (await world.over(run))["status"] == 4
    assert world.command("cancel", str(run)).returncode == 1
    assert await world.status(run) == 4


async def test_deleted_model_is_never_brought_back_by_its_run(world: World) -> None:
    await world.started()
    model = await world.new_model()
    run = await world.ask(model, steps=100, step_s=0.05)
    await world.trainer_of(run, "train")
    await world.pool.execute("update custom_models set deleted_at = now() where id = $1", model[0])
    await world.pool.execute("update training_runs set cancel_requested_at = now() where id = $1", run)
    row = await world.over(run)
    assert row["status"] == 1
    assert world.trainers(run) == []
    version = await world.pool.fetchval("select published_version_id from custom_models where id = $1", model[0])
    assert version is None


async def test_cancelled_run_leaves_what_the_next_run_of_the_model_uses(world: World) -> None:
    """The next run finds the cancelled one's dataset by its content, while the cancelled one's artifacts go."""
    await world.started()
    model = await world.new_model()
    first = await world.ask(model, steps=200, step_s=0.05)
    await world.trainer_of(first, "train")
    assert world.command("cancel", str(first)).returncode == 0
    await world.over(first)
    for _ in range(3):
        again = await world.ask(model)
        row = await world.over(again)
        assert (row["status"], row["failures"]) == (4, 0), row["failure_detail"]
