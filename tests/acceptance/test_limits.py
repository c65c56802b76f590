"""Failures have classes: stalls, time, memory, disks, and runs that bring their worker down."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.world import World

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system with two megabytes."""
    folder = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def ended_as(world: World, run: object) -> tuple[int, str, str]:
    row = await world.over(run)  # type: ignore[arg-type]
    return row["status"], row["failure_class"], row["failure_code"]


async def test_trainer_without_progress_has_stalled(world: World) -> None:
    await world.started(WORKER_STALL_S="2", WORKER_FAILURE_LIMIT="1")
    run = await world.ask(fake={"train": "stall"})
    assert await ended_as(world, run) == (5, "stalled", "stalled_in_train")
    assert world.trainers(run) == []


async def test_paused_trainer_has_not_stalled(world: World) -> None:
    worker = await world.started(WORKER_STALL_S="4", WORKER_FAILURE_LIMIT="1", WORKER_LEASE_S="60", WORKER_PAUSE_S="2")
    run = await world.ask(steps=30, step_s=0.1)
    await world.trainer_of(run, "train")
    worker.freeze()
    await asyncio.sleep(6)
    worker.thaw()
    row = await world.over(run)
    assert (row["status"], row["attempt"]) == (4, 1), dict(row)


async def test_run_that_takes_too_long_ends_with_class_timeout(world: World) -> None:
    await world.started(WORKER_RUN_LIMIT_S="3")
    run = await world.ask(steps=1000, step_s=0.05)
    assert await ended_as(world, run) == (5, "timeout", "ran_too_long")
    assert world.trainers(run) == []


async def test_run_nobody_takes_ends_with_class_timeout(world: World) -> None:
    await world.started(WORKER_SLOTS="0", WORKER_WAIT_LIMIT_S="2")
    run = await world.ask()
    assert await ended_as(world, run) == (5, "timeout", "waited_too_long")


async def test_trainer_over_its_memory_limit_is_out_of_memory(world: World) -> None:
    await world.started(WORKER_TRAINER_MEMORY_BYTES=str(150 * 2**20), WORKER_FAILURE_LIMIT="1")
    run = await world.ask(fake={"train": "memory"}, megabytes=400)
    assert await ended_as(world, run) == (5, "out_of_memory", "memory_limit")


async def test_memory_error_is_out_of_memory(world: World) -> None:
    await world.started(WORKER_FAILURE_LIMIT="1")
    run = await world.ask(fake={"train": "memory_error"})
    assert await ended_as(world, run) == (5, "out_of_memory", "memory_error")


async def test_crashes_are_retried_until_the_budget_is_used_up(world: World) -> None:
    await world.started(WORKER_FAILURE_LIMIT="3")
    run = await world.ask(fake={"train": "crash"})
    assert await ended_as(world, run) == (5, "crashed", "signal_11")
    row = await world.row(run)
    assert row is not None
    assert (row["attempt"], row["failures"]) == (3, 3)


async def test_bad_data_is_not_retried(world: World) -> None:
    await world.started()
    run = await world.ask(fake={"prepare": "fail"})
    assert await ended_as(world, run) == (5, "data", "too_little_audio")
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 5)]


async def test_too_little_audio_names_the_floor(world: World) -> None:
    await world.started(WORKER_MINIMUM_AUDIO_S="600")
    run = await world.ask()
    row = await world.over(run)
    assert (row["status"], row["failure_class"]) == (5, "data")
    assert "600" in row["failure_reason"]


@needs_root
async def test_full_working_disk_is_infrastructure(world: World, small_disk: Path) -> None:
    worker = await world.started(WORKER_SCRATCH=str(small_disk), WORKER_FAILURE_LIMIT="1")
    run = await world.ask(fake={"train": "disk_full"})
    assert (await ended_as(world, run))[:2] == (5, "infrastructure")
    assert worker.alive
    fine = await world.ask()
    assert (await world.over(fine))["status"] == 4


@needs_root
async def test_full_storage_is_infrastructure_and_passes_when_room_is_made(world: World, small_disk: Path) -> None:
    worker = await world.started(WORKER_STORAGE_URL=small_disk.as_uri(), WORKER_FAILURE_LIMIT="50")
    model = await world.new_model()
    for row in await world.pool.fetch("select address from training_data"):
        target = small_disk / row["address"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((world.folder / "storage" / row["address"]).read_bytes())
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb") as file:  # noqa: PT012 - until it is full
        while True:
            file.write(b"x" * 4096)
    run = await world.ask(model)

    async def failed_once() -> bool:
        row = await world.row(run)
        return row is not None and row["failures"] > 0

    await until(failed_once, "an attempt has failed")
    row = await world.row(run)
    assert row is not None
    assert (row["failure_class"], row["failure_code"]) == ("infrastructure", "storage_full"), row["failure_detail"]
    filler.unlink()
    assert (await world.over(run))["status"] == 4
    assert worker.alive


async def test_run_that_keeps_killing_its_worker_is_failed_as_such(world: World) -> None:
    world.settings["WORKER_TRAINER_ISOLATION"] = "none"  # or it could not
    run = await world.ask(fake={"train": "kills_its_worker"})
    while await world.status(run) != 5:
        worker = await world.started()
        await until(lambda worker=worker: not worker.alive, "the run kills its worker")
        await world.hurry()
        await until_rescued(world, run)
    row = await world.over(run)
    assert (row["failure_class"], row["failure_code"]) == ("lost_worker", "lost_worker_repeatedly")
    assert 3 <= row["attempt"] <= 6, "what it lost before its phase was written counts as well"


async def until_rescued(world: World, run: object) -> None:
    """Another worker, without slots, does no more than find the dead lease."""
    rescuer = await world.started(WORKER_SLOTS="0")

    async def moved() -> bool:
        return await world.status(run) != 3  # type: ignore[arg-type]

    await until(moved, "the run is rescued")
    await world.hurry()
    rescuer.kill()
