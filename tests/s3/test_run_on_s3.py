"""Whole workers with their artifacts on S3: another machine goes on where a killed one stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import World, until, world_at
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deploy.local.s3_server import S3Server
    from worker.storage import Storage

pytestmark = pytest.mark.s3


@pytest.fixture
async def world(tmp_path: Path, vhost: str, database_url: str, on_s3: dict[str, str]) -> AsyncIterator[World]:
    async with world_at(tmp_path, vhost, database_url, **on_s3) as made:
        yield made


async def keys(storage: Storage, prefix: str) -> list[str]:
    return [stored.key.removeprefix(prefix + "/") async for stored in storage.listing(prefix)]


async def test_run_reads_from_s3_and_publishes_there(world: World, world_storage: Storage) -> None:
    await world.started()
    model = await world.imported_model()
    run = await world.ask(model)
    row = await world.over(run)
    assert row["status"] == 4, (row["failure_reason"], row["failure_detail"])
    version = await world.pool.fetchrow("select address, sha256 from model_versions where run_id = $1", run)
    assert await keys(world_storage, version["address"]) == ["attempt.json", "report.html", "weights.bin"]
    await world_storage.materialize(version["address"], sha256=version["sha256"])
    assert await world_storage.size(row["log_address"])
    assert not (world.folder / "storage").exists() or not list((world.folder / "storage").iterdir())


async def test_another_machine_resumes_from_the_checkpoint_of_a_killed_one(
    world: World, world_storage: Storage
) -> None:
    first = await world.started(
        WORKER_SCRATCH=str(world.folder / "one/scratch"), WORKER_CACHE=str(world.folder / "one/cache")
    )
    model = await world.imported_model()
    run = await world.ask(model, steps=200, step_s=0.05, checkpoint_every=5)
    await until(lambda: world.pool.fetchval("select max(steps_done) > 5 from run_checkpoints"), "two checkpoints")
    first.kill()
    known = await world.pool.fetchval("select max(steps_done) from run_checkpoints where run_id = $1", run)
    world.plan(run, steps=200, step_s=0.001, checkpoint_every=50)
    await world.started(WORKER_SCRATCH=str(world.folder / "two/scratch"), WORKER_CACHE=str(world.folder / "two/cache"))
    row = await world.over(run)
    assert (row["status"], row["attempt"]) == (4, 2)
    steps = [
        line["n"]
        for line in world.witnessed(run)
        if line["step"] == "train" and line["what"] == "step" and line["attempt"] == 2
    ]
    assert steps[0] == known + 1
    assert "prepare" not in {line["step"] for line in world.witnessed(run) if line["attempt"] == 2}


async def test_storage_that_is_away_for_a_moment_costs_a_run_nothing_but_time(world: World, server: S3Server) -> None:
    async with Proxy(server.http, postgres=False) as proxy:
        model = await world.imported_model()
        await world.started(WORKER_S3_ENDPOINT="http://127.0.0.1:" + proxy.url.rpartition(":")[2])
        run = await world.ask(model, steps=20, step_s=0.05, checkpoint_every=2)
        await until(lambda: world.pool.fetchval("select count(*) > 1 from run_checkpoints"), "checkpoints")
        proxy.refuse()
        await world.trainer_of(run, "train")
        await until(
            lambda: [line for line in world.witnessed(run) if line["step"] == "train" and line["n"] >= 10], "ten steps"
        )
        proxy.resume()
        row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), row["failure_detail"]
