"""Whole workers whose steps are jobs of a real Ray and of a real Slurm: success, adoption, cancel."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from deploy.local.ray_cluster import local_ray, ray_program
from deploy.local.report import MissingPieceError
from deploy.local.slurm_cluster import local_slurm, slurm_programs
from tests.acceptance.world import World, until
from worker.placement import launcher_of
from worker.settings import Settings
from worker.storage import FileStorage

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)
STEPS = ["prepare", "train", "evaluate", "export"]
PATIENCE_S = 150.0
"""A job of a cluster takes seconds to begin, and so does everything on a machine that runs one beside the tests."""


@dataclass(frozen=True)
class ClusterSettings:
    """What workers are told about a cluster."""

    launcher: str
    variables: dict[str, str]


@pytest.fixture(scope="module")
def ray() -> Iterator[ClusterSettings]:
    try:
        program = os.environ.get("TEST_RAY") or ray_program()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_ray(program) as cluster:
        yield ClusterSettings("ray", {"WORKER_RAY_ADDRESS": cluster.address, "WORKER_RAY_CPUS": "0.1"})


@pytest.fixture(scope="module")
def slurm() -> Iterator[ClusterSettings]:
    try:
        programs = slurm_programs()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_slurm(programs) as cluster:
        yield ClusterSettings("slurm", {"SLURM_CONF": cluster.configuration, "WORKER_SLURM_ARGUMENTS": "--ntasks=1"})


@pytest.fixture(params=[pytest.param("ray", marks=pytest.mark.ray), pytest.param("slurm", marks=pytest.mark.slurm)])
def place(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> ClusterSettings:
    """Workers of this world use the cluster; its trainer's Python runs outposts, and the fake recipe for the rest."""
    found: ClusterSettings = request.getfixturevalue(request.param)
    trainer = world.folder / "trainer-python"
    recipe = trainer.read_text().splitlines()[-1]
    outpost = f'case "$2" in worker.launchers.outpost) exec "{sys.executable}" "$@" ;; esac'
    trainer.write_text(f"#!/bin/sh\n{outpost}\n{recipe}\n")
    world.settings |= {
        "WORKER_LAUNCHER": found.launcher,
        "WORKER_EXCHANGE": str(world.folder),
        # time enough for a job to begin within its first right, on a busy machine
        "WORKER_LEASE_S": "10",
        "WORKER_PAUSE_S": "8",
        "WORKER_PATIENCE_S": "120",
        **found.variables,
    }
    for name, value in found.variables.items():
        monkeypatch.setenv(name, value)
    return found


def checkpoints_after(world: World, run: uuid.UUID, steps_done: int) -> list[int]:
    """The checkpoints that the trainer wrote after this one."""
    return [line["n"] for line in world.witnessed(run) if line["what"] == "checkpoint" and line["n"] > steps_done]


def jobs(world: World, run: uuid.UUID, step: str) -> list[str]:
    """The jobs that were ever submitted for a step, by the folders they talk through."""
    return sorted(folder.name for folder in (world.folder / "steps" / str(run)).glob(f"*-{step}-*"))


async def alive_on_cluster(world: World) -> list[str]:
    """Steps that the cluster itself calls alive."""
    told = world.environment()
    settings = Settings(**{name.removeprefix("WORKER_").lower(): told[name] for name in told if name in READ})
    cluster = launcher_of(settings, FileStorage(world.folder / "storage"))._cluster
    return [name for name, sighting in (await cluster.sightings()).items() if sighting.presence.name == "ALIVE"]


READ = (
    "WORKER_LAUNCHER",
    "WORKER_EXCHANGE",
    "WORKER_SCRATCH",
    "WORKER_CACHE",
    "WORKER_RAY_ADDRESS",
    "WORKER_RAY_CPUS",
    "WORKER_SLURM_ARGUMENTS",
)


async def test_message_becomes_a_published_model_by_four_steps_of_a_cluster(
    world: World, place: ClusterSettings
) -> None:
    worker = await world.started()
    run = await world.ask(steps=20, step_s=0.02, checkpoint_every=5)
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), (dict(row), worker.tail())
    assert [line["step"] for line in world.witnessed(run) if line["what"] == "start"] == STEPS
    assert [jobs(world, run, step) for step in STEPS] == [[f"1-{step}-1"] for step in STEPS]
    [version] = await world.pool.fetch("select * from model_versions")
    assert (world.folder / "storage" / version["address"] / "weights.bin").is_file()
    assert "fake trainer: train" in (world.folder / "storage" / row["log_address"]).read_text()
    assert not (world.folder / "scratch" / "attempts" / str(run) / "1").exists()


async def test_step_of_a_killed_worker_is_adopted_and_trains_once(world: World, place: ClusterSettings) -> None:
    first = await world.started()
    run = await world.ask(steps=150, step_s=0.1, checkpoint_every=10)
    trainer = await world.trainer_of(run, "train")
    await until(lambda: world.pool.fetchval("select count(*) > 0 from run_checkpoints"), "a checkpoint")
    first.kill()
    told = await world.pool.fetchval("select max(steps_done) from run_checkpoints")
    untold = await until(lambda: checkpoints_after(world, run, told + 10), "a checkpoint while nobody owns the step")
    output = world.folder / "scratch" / "attempts" / str(run) / "1" / "train"
    shutil.rmtree(output / f"checkpoint-{untold[0]}")  # a trainer keeps only its newest ones
    second = await world.started()
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1), (dict(row), second.tail())
    assert second.said("checkpoint announced but not there", path=f"checkpoint-{untold[0]}")
    trained = [line for line in world.witnessed(run) if line["step"] == "train"]
    assert {line["pid"] for line in trained} == {trainer}
    assert [line["n"] for line in trained if line["what"] == "step"] == list(range(1, 151))
    assert jobs(world, run, "train") == ["1-train-1"]
    assert jobs(world, run, "export") == ["2-export-1"]
    [version] = await world.pool.fetch("select * from model_versions")
    assert version["address"].startswith(f"runs/{run}/2/")


async def test_thawed_owner_leaves_the_step_alone_that_another_worker_adopted(
    world: World, place: ClusterSettings
) -> None:
    first = await world.started()
    run = await world.ask(steps=250, step_s=0.1, checkpoint_every=10)
    trainer = await world.trainer_of(run, "train")
    first.freeze()
    second = await world.started()
    await world.in_phase(run, "train", attempt=2)
    await until(lambda: world.pool.fetchval("select count(*) > 0 from run_checkpoints where attempt = 2"), "adopted")
    first.thaw()
    await until(lambda: first.said("run lost: another attempt or a cancel owns it"), "the thawed worker notices")
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1), (dict(row), second.tail())
    assert {line["pid"] for line in world.witnessed(run) if line["step"] == "train"} == {trainer}
    assert jobs(world, run, "train") == ["1-train-1"]


async def test_killed_trainer_is_not_adopted_but_resumed_by_the_next_attempt(
    world: World, place: ClusterSettings
) -> None:
    await world.started()
    run = await world.ask(steps=60, step_s=0.1, checkpoint_every=5)
    await until(lambda: world.pool.fetchval("select count(*) >= 2 from run_checkpoints"), "two checkpoints")
    os.kill(next(process.pid for process in world.trainers(run)), signal.SIGKILL)
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1)
    assert jobs(world, run, "train") == ["1-train-1", "2-train-1"]
    resumed = [line["n"] for line in world.witnessed(run) if line["attempt"] == 2 and line["what"] == "step"]
    assert resumed[0] > 10


async def test_cancel_stops_the_job_of_the_cluster(world: World, place: ClusterSettings) -> None:
    worker = await world.started()
    run = await world.ask(steps=10_000, step_s=0.1)
    await world.trainer_of(run, "train")
    assert await alive_on_cluster(world) != []
    done = world.command("cancel", str(run))
    assert done.returncode == 0, done.stderr
    row = await world.over(run, PATIENCE_S)
    assert (row["status"], row["failure_class"]) == (1, "cancelled")
    await until(lambda: not world.trainers(run), "its trainer is gone")
    await until(lambda: worker.said("attempt ended", to="NOT_RUNNING"), "the worker is done with it")

    async def none_alive() -> bool:
        return await alive_on_cluster(world) == []

    await until(none_alive, "the cluster has no job of it any more")


@pytest.mark.slurm
@pytest.mark.parametrize("place", ["slurm"], indirect=True)
async def test_job_that_waits_in_the_clusters_queue_has_not_stalled(world: World, place: ClusterSettings) -> None:
    later = {"WORKER_SLURM_ARGUMENTS": "--ntasks=1 --begin=now+14"}
    await world.started(WORKER_STALL_S="8", WORKER_FAILURE_LIMIT="1", **later)
    run = await world.ask(other_steps=1, steps=1)
    await until(lambda: world.witnessed(run), "the first step begins", PATIENCE_S)
    row = await world.row(run)
    assert row is not None
    assert (row["status"], row["attempt"]) == (3, 1), dict(row)
    assert (row["phase"], row["failures"]) == ("prepare", 0)
