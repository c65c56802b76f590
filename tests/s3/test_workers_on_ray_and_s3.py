"""Whole workers whose steps run on a real Ray that shares nothing with them but S3: success, adoption, resuming."""

from __future__ import annotations

import json
import os
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from deploy.local.ray_cluster import local_ray, ray_program
from deploy.local.report import MissingPieceError
from deploy.local.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from tests.acceptance.world import World, until, world_at
from worker.storage import Storage, StorageOptions, open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(300)]
STEPS = ["prepare", "train", "evaluate", "export"]
PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def ray_address(server: S3Server) -> Iterator[str]:
    try:
        program = os.environ.get("TEST_RAY") or ray_program()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_ray(program, reaching=[server.port]) as cluster:
        yield cluster.address


@pytest.fixture
async def world(
    tmp_path: Path, vhost: str, database_url: str, server: S3Server, ray_address: str
) -> AsyncIterator[World]:
    settings = {
        "WORKER_STORAGE_URL": f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "WORKER_S3_ENDPOINT": server.http,
        "WORKER_S3_ACCESS_KEY": ACCESS_KEY,
        "WORKER_S3_SECRET_KEY": SECRET_KEY,
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


@pytest.fixture
async def storage(world: World, server: S3Server, tmp_path: Path) -> AsyncIterator[Storage]:
    options = StorageOptions(tmp_path / "own-cache", server.http, "us-east-1", ACCESS_KEY, SECRET_KEY)
    opened = open_storage(world.settings["WORKER_STORAGE_URL"], options)
    yield opened
    await opened.aclose()


async def model_with_files(world: World) -> tuple[int, int]:
    """A model whose recordings were imported by command, into S3."""
    model, owner = await world.new_model(files=False)
    folder = world.folder / "recordings"
    folder.mkdir()
    lines = []
    for n in range(5):
        (folder / f"r{n}.wav").write_bytes(b"sound %d" % n)
        lines.append(json.dumps({"audio_filepath": f"r{n}.wav", "text": f"Sentence {n}."}))
    (folder / "all.jsonl").write_text("\n".join(lines))
    done = world.command("import", str(folder / "all.jsonl"), "--model", str(model), "--json")
    assert done.returncode == 0, done.stderr
    return model, owner


async def jobs(storage: Storage, run: uuid.UUID) -> set[str]:
    return {stored.key.split("/")[2] async for stored in storage.listing(f"steps/{run}")}


async def test_message_becomes_a_published_model_through_storage_alone(world: World, storage: Storage) -> None:
    worker = await world.started()
    run = await world.ask(await model_with_files(world), steps=20, step_s=0.02, checkpoint_every=5)
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), (dict(row), worker.tail())
    assert [line["step"] for line in world.witnessed(run) if line["what"] == "start"] == STEPS
    assert await jobs(storage, run) == {f"1-{step}-1" for step in STEPS}
    version = await world.pool.fetchrow("select address, sha256 from model_versions where run_id = $1", run)
    await storage.check(version["address"], version["sha256"])
    assert b"fake trainer: train" in await storage.get_bytes(row["log_address"], 2**20)
    left = [path for path in world.folder.glob("scratch/attempts/*/*/*") if path.is_dir() and any(path.iterdir())]
    assert left == []  # no output ever lay on the worker's machine


async def test_step_of_a_killed_worker_is_adopted_through_storage_and_trains_once(
    world: World, storage: Storage
) -> None:
    first = await world.started(WORKER_SCRATCH=str(world.folder / "one"), WORKER_CACHE=str(world.folder / "one-cache"))
    run = await world.ask(await model_with_files(world), steps=150, step_s=0.1, checkpoint_every=10)
    trainer = await world.trainer_of(run, "train")
    await until(lambda: world.pool.fetchval("select count(*) > 0 from run_checkpoints"), "a checkpoint", PATIENCE_S)
    first.kill()
    second = await world.started(WORKER_SCRATCH=str(world.folder / "two"), WORKER_CACHE=str(world.folder / "two-cache"))
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1), (dict(row), second.tail())
    trained = [line for line in world.witnessed(run) if line["step"] == "train"]
    assert {line["pid"] for line in trained} == {trainer}
    assert [line["n"] for line in trained if line["what"] == "step"] == list(range(1, 151))
    assert {"1-train-1", "2-export-1"} <= await jobs(storage, run)


async def test_killed_trainer_is_resumed_from_a_checkpoint_that_lies_in_storage(world: World, storage: Storage) -> None:
    worker = await world.started()
    run = await world.ask(await model_with_files(world), steps=60, step_s=0.2, checkpoint_every=5)
    await until(lambda: world.pool.fetchval("select count(*) >= 2 from run_checkpoints"), "two checkpoints", PATIENCE_S)
    known = await world.pool.fetchval("select max(steps_done) from run_checkpoints")
    os.kill(next(process.pid for process in world.trainers(run)), 9)
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1), (dict(row), worker.tail())
    resumed = [line["n"] for line in world.witnessed(run) if line["attempt"] == 2 and line["what"] == "step"]
    assert resumed[0] > known
    assert {"1-train-1", "2-train-1"} <= await jobs(storage, run)
    assert "prepare" not in {line["step"] for line in world.witnessed(run) if line["attempt"] == 2}
