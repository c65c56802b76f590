"""A step is watched: what counts as a stall, and what does not."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from schemas import events
from schemas.digest import tree_digest
from schemas.failures import FailureClass
from schemas.steps import Step
from worker.errors import StepFailed
from worker.launchers.event_stream import EventStream
from worker.launchers.interface import Ended, EndReason
from worker.metrics import Metrics
from worker.pipeline import steps
from worker.pipeline.attempt import Attempt
from worker.pipeline.parts import Timing
from worker.storage import StoredFile

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio
LIMIT_S = 60.0


class QuickClock:
    """Nobody waits: a pause is over at once, and time has passed."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Trainer:
    """A handle on a trainer that says what it is told to say."""

    waits = False

    def __init__(self, output: Path) -> None:
        self.spec = SimpleNamespace(
            step=Step.TRAIN, output=str(output), run_id=uuid.UUID(int=1), attempt=1, recipe_version="1"
        )
        self.stream = EventStream()
        self.events = self.stream.events
        self.killed = False

    def says(self, event: events.Event) -> None:
        self.stream.push(events.encode(event))

    async def kill(self) -> None:
        self.killed = True
        self.stream.close()

    async def wait(self) -> Ended:
        reason = EndReason.KILLED if self.killed else EndReason.EXITED
        return Ended(
            reason=reason, exit_code=0, signal=None, out_of_memory=False, max_rss_bytes=0, cpu_s=0.0, paused_s=0.0,
            last_word=self.stream.last_word,
        )  # fmt: skip


class Watched:
    """A trainer that has just announced a checkpoint, and what stores it."""

    def __init__(self, folder: Path) -> None:
        (folder / "output" / "c").mkdir(parents=True)
        (folder / "output" / "c" / "state").write_text("x")
        self.clock = QuickClock()
        self.trainer = Trainer(folder / "output")
        digest = tree_digest(folder / "output" / "c")
        self.trainer.says(events.Checkpoint(path="c", sha256=digest, bytes=1, steps_done=1))
        self.stored_for_s = 0.0
        self.registered: list[Any] = []

    async def upload_folder(self, *_: Any) -> list[StoredFile]:
        began = self.clock.now
        while self.clock.now < began + self.stored_for_s and not self.trainer.killed:
            await asyncio.sleep(0)
        return [StoredFile("state", hashlib.sha256(b"x").hexdigest(), 1)]

    async def register_checkpoint(self, _: Any, checkpoint: Any) -> None:
        self.registered.append(checkpoint)
        if self.stored_for_s:
            self.trainer.stream.close()

    async def checkpoints(self, _: Any) -> list[Any]:
        return []

    async def end(self) -> Ended:
        run: Any = SimpleNamespace(fence=None, attempt=1, id=uuid.UUID(int=1))
        output = self.trainer.spec.output
        attempt = Attempt(run, output, output, 1e12, self.clock.monotonic)
        timing = Timing(lease_s=60, pause_s=50, stall_s=LIMIT_S, run_limit_s=1e6)
        parts: Any = SimpleNamespace(
            runs=self, storage=self, launcher=SimpleNamespace(fetches=False), clock=self.clock, metrics=Metrics(),
            timing=timing, keep_checkpoints=2,
        )  # fmt: skip
        return await steps._watch(attempt, parts, self.trainer)  # type: ignore[arg-type]


async def test_a_checkpoint_may_take_longer_to_store_than_a_trainer_may_stand_still(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.stored_for_s = 5 * LIMIT_S
    with suppress(StepFailed):
        await watched.end()
    assert not watched.trainer.killed
    assert watched.registered


async def test_a_trainer_that_says_nothing_after_its_checkpoint_was_stored_is_ended_as_stalled(tmp_path: Path):
    watched = Watched(tmp_path)
    with pytest.raises(StepFailed) as failed:
        await watched.end()
    assert watched.trainer.killed
    assert watched.registered
    assert failed.value.failure_class is FailureClass.STALLED


@pytest.mark.parametrize("place", ["c", "c/state"])
async def test_a_checkpoint_that_its_step_swaps_for_a_link_is_not_kept(tmp_path: Path, place: str):
    """The link leads to what the worker can read and the step cannot."""
    watched = Watched(tmp_path)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "state").write_text("x")  # the same digest: only the way there tells
    there = tmp_path / "output" / place
    there.rename(tmp_path / "gone")
    there.symlink_to(secret / "state" if place.endswith("state") else secret)
    with pytest.raises(StepFailed):
        await watched.end()
    assert not watched.registered
