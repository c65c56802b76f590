"""SIGTERM: the run goes back to the queue with its checkpoint, the worker ends with 0, another one continues."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import until
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.world import World

STEPS = ["prepare", "train", "evaluate", "export"]


@pytest.mark.parametrize("step", STEPS)
async def test_sigterm_in_every_step_hands_the_run_over(world: World, step: str) -> None:
    first = await world.started()
    run = await world.ask(steps=10, other_steps=10, step_s=0.01, step_s_of={step: 0.3}, checkpoint_every=2)
    await world.trainer_of(run, step)
    first.terminate()
    assert await first.exit_code() == 0, first.tail()
    row = await world.row(run)
    assert row is not None
    assert (row["status"], row["hand_overs"], row["failures"], row["attempt"]) == (2, 1, 0, 1), first.tail()
    assert world.trainers(run) == []
    world.plan(run, steps=10, step_s=0.01, checkpoint_every=2)
    await world.started()
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 0)
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 2), (2, 3), (3, 4)]
    begun = [line["step"] for line in world.witnessed(run) if line["what"] == "start" and line["attempt"] == 2]
    assert begun == STEPS[STEPS.index(step) :], "what was done is not repeated, what was not is"


async def test_hand_over_in_training_loses_no_step_that_was_done(world: World) -> None:
    first = await world.started()
    run = await world.ask(steps=40, step_s=0.1)
    await until(
        lambda: [line for line in world.witnessed(run) if line["step"] == "train" and line["n"] >= 3], "3 steps"
    )
    first.terminate()
    assert await first.exit_code() == 0
    done = max(line["n"] for line in world.witnessed(run) if line["step"] == "train")
    world.plan(run, steps=40, step_s=0.01)
    await world.started()
    assert (await world.over(run))["status"] == 4
    steps = [
        line["n"]
        for line in world.witnessed(run)
        if line["step"] == "train" and line["what"] == "step" and line["attempt"] == 2
    ]
    assert steps[0] == done + 1


async def test_a_trainer_that_its_cluster_stops_hands_the_run_over_and_uses_up_no_failure(world: World) -> None:
    """SIGTERM to the trainer alone, as a preemption or a time limit sends it: the worker itself goes on."""
    await world.started(WORKER_FAILURE_LIMIT="1")
    run = await world.ask(steps=20, step_s=0.1)

    def steps_of(attempt: int) -> list[int]:
        lines = [line for line in world.witnessed(run) if (line["step"], line["what"]) == ("train", "step")]
        return [line["pid"] for line in lines if line["attempt"] == attempt]

    for attempt in (1, 2):
        trainer = await world.trainer_of(run, "train", attempt)
        await until(lambda: trainer in steps_of(attempt), "its first step")  # noqa: B023 - awaited in this turn
        os.kill(trainer, signal.SIGTERM)
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"], row["hand_overs"]) == (4, 3, 0, 2)


def _opened_for_writing(fifo: Path) -> int | None:
    """A descriptor, once somebody has it open for reading."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


async def test_sigterm_while_files_are_gathered_hands_the_run_over(world: World) -> None:
    first = await world.started()
    model = await world.new_model(files=False)
    await world.add_file(*model, "a.wav", b"sound")
    await world.add_file(*model, "a.txt", b"hello")
    [row] = await world.pool.fetch("select address from training_data where name = 'a.txt'")
    transcript = world.folder / "storage" / row["address"]
    content = transcript.read_bytes()
    transcript.unlink()
    os.mkfifo(transcript)  # whoever reads it waits
    run = await world.ask(model)
    await world.in_phase(run, "load")
    writer = await until(lambda: _opened_for_writing(transcript), "somebody reads the transcript")
    first.terminate()
    await until(lambda: first.said("stopping"), "the worker stops")

    async def queued() -> bool:
        return await world.status(run) == 2

    await until(queued, "the run is back in the queue")
    os.write(writer, content)
    os.close(writer)  # lets the reader go
    assert await first.exit_code() == 0
    transcript.unlink()
    transcript.write_bytes(content)
    await world.started()
    row = await world.over(run)
    assert (row["status"], row["hand_overs"], row["failures"]) == (4, 1, 0)


async def test_second_sigterm_ends_at_once_and_the_row_is_right(world: World) -> None:
    first = await world.started(WORKER_GRACE_S="120")
    run = await world.ask(fake={"train": "ignore_term"})
    await world.trainer_of(run, "train")
    first.terminate()
    await until(lambda: first.said("stopping"), "the worker stops")
    first.terminate()
    assert await first.exit_code(20) == 0
    row = await world.row(run)
    assert row is not None
    assert (row["status"], row["hand_overs"], row["failures"]) == (2, 1, 0)
    assert world.trainers(run) == []


async def test_trainer_that_ignores_sigterm_is_killed_at_the_end_of_the_grace(world: World) -> None:
    first = await world.started(WORKER_GRACE_S="2")
    run = await world.ask(fake={"train": {"1": "ignore_term"}})
    await world.trainer_of(run, "train")
    first.terminate()
    assert await first.exit_code(30) == 0
    assert (await world.status(run), world.trainers(run)) == (2, [])
    await world.started()
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 0)


async def test_drain_asks_one_worker_through_its_row(world: World) -> None:
    first, second = await world.started(), await world.started()
    [of_first] = first.said("worker started")
    run = await world.ask(steps=100, step_s=0.1)
    await world.trainer_of(run, "train")
    done = world.command("drain", of_first["worker"], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["worker"] == of_first["worker"]
    assert await first.exit_code() == 0
    assert second.alive
    world.plan(run, steps=5)
    assert (await world.over(run))["status"] == 4


async def test_stopping_worker_without_a_database_still_ends(world: World) -> None:
    async with Proxy(world.database_url) as proxy:
        first = await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_GRACE_S="2")
        run = await world.ask(steps=200, step_s=0.1)
        await world.trainer_of(run, "train")
        proxy.refuse()
        first.terminate()
        await first.exit_code(60)
        assert world.trainers(run) == []
    world.plan(run, steps=5)
    await world.started()
    assert (await world.over(run))["status"] == 4
    assert world.overlaps() == []
