"""Whole workers whose steps run on a real Ray that shares nothing with them but S3: success, adoption, resuming."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import World, until, world_at

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncIterator
    from pathlib import Path

    from worker.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(300)]
STEPS = ["prepare", "train", "evaluate", "export"]
PATIENCE_S = 200.0


@pytest.fixture
async def world(
    tmp_path: Path, vhost: str, database_url: str, on_s3: dict[str, str], ray_address: str
) -> AsyncIterator[World]:
    settings = on_s3 | {
        "WORKER_LAUNCHER": "ray",
        "WORKER_EXCHANGE_KIND": "storage",
        "WORKER_RAY_ADDRESS": ray_address,
        "WORKER_RAY_CPUS": "0.1",
        # time enough for a job to begin within its first right, on a busy machine
        "WORKER_LEASE_S": "15",
        "WORKER_PAUSE_S": "12",
        "WORKER_RENEW_S": "2",
        "WORKER_PATIENCE_S": "120",
    }
    async with world_at(tmp_path, vhost, database_url, **settings) as made:
        trainer = made.folder / "trainer-python"
        recipe = trainer.read_text().splitlines()[-1]
        outpost = f'case "$2" in worker.launchers.outpost) exec "{sys.executable}" "$@" ;; esac'
        trainer.write_text(f"#!/bin/sh\n{outpost}\n{recipe}\n")
        yield made


async def jobs(storage: Storage, run: uuid.UUID) -> set[str]:
    return {stored.key.split("/")[2] async for stored in storage.listing(f"steps/{run}")}


async def test_message_becomes_a_published_model_through_storage_alone(world: World, world_storage: Storage) -> None:
    worker = await world.started()
    run = await world.ask(await world.imported_model(), steps=20, step_s=0.02, checkpoint_every=5)
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), (dict(row), worker.tail())
    assert [line["step"] for line in world.witnessed(run) if line["what"] == "start"] == STEPS
    assert await jobs(world_storage, run) == {f"1-{step}-1" for step in STEPS}
    version = await world.pool.fetchrow("select address, sha256 from model_versions where run_id = $1", run)
    await world_storage.check(version["address"], version["sha256"])
    assert b"fake trainer: train" in await world_storage.get_bytes(row["log_address"], 2**20)
    left = [path for path in world.folder.glob("scratch/attempts/*/*/*") if path.is_dir() and any(path.iterdir())]
    assert left == []  # no output ever lay on the worker's machine


async def test_step_of_a_killed_worker_is_adopted_through_storage_and_trains_once(
    world: World, world_storage: Storage
) -> None:
    first = await world.started(WORKER_SCRATCH=str(world.folder / "one"), WORKER_CACHE=str(world.folder / "one-cache"))
    run = await world.ask(await world.imported_model(), steps=150, step_s=0.1, checkpoint_every=10)
    trainer = await world.trainer_of(run, "train")
    await until(lambda: world.pool.fetchval("select count(*) > 0 from run_checkpoints"), "a checkpoint", PATIENCE_S)
    first.kill()
    second = await world.started(WORKER_SCRATCH=str(world.folder / "two"), WORKER_CACHE=str(world.folder / "two-cache"))
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1), (dict(row), second.tail())
    trained = [line for line in world.witnessed(run) if line["step"] == "train"]
    assert {line["pid"] for line in trained} == {trainer}
    assert [line["n"] for line in trained if line["what"] == "step"] == list(range(1, 151))
    assert {"1-train-1", "2-export-1"} <= await jobs(world_storage, run)


async def test_killed_trainer_is_resumed_from_a_checkpoint_that_lies_in_storage(
    world: World, world_storage: Storage
) -> None:
    worker = await world.started()
    run = await world.ask(await world.imported_model(), steps=60, step_s=0.2, checkpoint_every=5)
    await until(lambda: world.pool.fetchval("select count(*) >= 2 from run_checkpoints"), "two checkpoints", PATIENCE_S)
    known = await world.pool.fetchval("select max(steps_done) from run_checkpoints")
    os.kill(next(process.pid for process in world.trainers(run)), 9)
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1), (dict(row), worker.tail())
    resumed = [line["n"] for line in world.witnessed(run) if line["attempt"] == 2 and line["what"] == "step"]
    assert resumed[0] > known
    assert {"1-train-1", "2-train-1"} <= await jobs(world_storage, run)
    assert "prepare" not in {line["step"] for line in world.witnessed(run) if line["attempt"] == 2}
