"""Renewals and progress go on, whatever the database says to one of them."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.messages_support import until
from worker.clock import Clock
from worker.metrics import Metrics
from worker.pipeline.attempt import CURVE_POINTS, CURVES, Attempt
from worker.pipeline.heartbeat import Heartbeat, ProgressWriter
from worker.store.workers import WorkerStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.store_support import Stage
    from worker.domain.run import ClaimedRun


@pytest.fixture
def clock() -> Clock:
    return Clock(random=random.random)


@pytest.fixture
def heartbeat(stage: Stage, clock: Clock) -> Heartbeat:
    workers = WorkerStore(stage.database)
    return Heartbeat(
        stage.runs, workers, "w1", renew_s=0.05, lease_s=60, pause_s=40, clock=clock, metrics=Metrics()
    )  # fmt: skip


def attempt_of(run: ClaimedRun, folder: Path, clock: Clock) -> Attempt:
    return Attempt(run, folder, folder / "log.txt", clock.monotonic() + 40, clock.monotonic)


async def test_a_renewal_that_is_refused_is_one_without_an_answer(stage: Stage, heartbeat: Heartbeat) -> None:
    assert await heartbeat.beat()
    await stage.database.execute("alter table workers rename to hidden")
    assert not await heartbeat.beat()
    await stage.database.execute("alter table hidden rename to workers")
    assert await heartbeat.beat()


async def test_progress_that_is_refused_is_no_other_runs_affair(
    stage: Stage, heartbeat: Heartbeat, clock: Clock, tmp_path: Path
) -> None:
    runs = [await stage.running("w1") for _ in range(3)]
    attempts = [attempt_of(run, tmp_path, clock) for run in runs]
    for attempt in attempts:
        heartbeat.hold(attempt)
        attempt.advance(50)
    attempts[1].note_figure("loss", float("nan"), 1)
    writing = asyncio.create_task(
        ProgressWriter(stage.runs, heartbeat, every_s=0.01, clock=clock, metrics=Metrics()).run()
    )
    try:
        for run in (runs[0], runs[2]):
            await until(lambda run=run: _percent(stage, run, 50))
        attempts[0].advance(60)
        await until(lambda: _percent(stage, runs[0], 60))
        assert not writing.done()
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing


async def _percent(stage: Stage, run: ClaimedRun, percent: float) -> bool:
    return bool((await stage.row(run.id))["percent"] == percent)


async def test_a_recipe_that_measures_a_great_many_things_shows_a_bounded_number(
    stage: Stage, clock: Clock, tmp_path: Path
) -> None:
    attempt = attempt_of(await stage.running("w1"), tmp_path, clock)
    for step in range(1000):
        attempt.note_figure("loss", 1 / (1 + step), step)
    for step in range(20):
        for layer in range(2000):
            attempt.note_figure(f"norm {layer}", 1.0, step)
    attempt.note_figure("loss", None, 1000)
    note = attempt.unwritten_progress()
    assert note is not None
    assert len(note.live["figures"]) == CURVES
    assert len(note.live["curve"]) <= CURVES * CURVE_POINTS
    losses = [(step, value) for step, name, value in note.live["curve"] if name == "loss"]
    assert losses[0] == (0, 1.0)
    assert losses == sorted(losses)
    assert len(losses) > CURVE_POINTS // 4
    assert note.live["figures"]["loss"] == 1 / 1000
