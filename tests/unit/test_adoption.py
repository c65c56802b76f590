"""What an earlier attempt left running is taken over only by those who could have started it."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.steps import Step, StepSpec
from worker.launchers.interface import EndReason
from worker.pipeline.steps import _started

SPEC = StepSpec(
    run_id=uuid.UUID(int=1), attempt=2, step=Step.TRAIN, recipe="whisper", recipe_version="2", seed=1, output="/o"
)  # fmt: skip


class Running:
    """A step, and a launcher that remembers what was done to it."""

    def __init__(self, spec: StepSpec, done: list[str]) -> None:
        self.spec, self.done = spec, done

    async def kill(self) -> None:
        self.done.append(f"killed {self.spec.attempt}")

    async def wait(self) -> Any:
        return SimpleNamespace(reason=EndReason.KILLED)


class Launcher:
    def __init__(self, version: str) -> None:
        self.version, self.done = version, list[str]()

    async def adopt(self, *_: object, **__: object) -> Running:
        return Running(SPEC.model_copy(update={"attempt": 1, "recipe_version": self.version}), self.done)

    async def ensure_stopped(self, *_: object) -> None:
        self.done.append("stopped")

    async def start(self, spec: StepSpec, **_: object) -> Running:
        return Running(spec, self.done)


@pytest.mark.parametrize(
    ("version", "attempt", "done"), [("2", 1, ["killed 1"]), ("1", 2, ["killed 1", "stopped", "killed 2"])]
)
async def test_a_step_of_another_recipe_version_is_ended_and_begun_again(
    version: str, attempt: int, done: list[str]
) -> None:
    launcher = Launcher(version)
    attempt_of_ours: Any = SimpleNamespace(right_left_s=lambda: 60.0, log="/l", runs_under=lambda _: None)
    parts: Any = SimpleNamespace(launcher=launcher)
    async with _started(attempt_of_ours, parts, SPEC) as handle:
        assert handle.spec.attempt == attempt
    assert launcher.done == done
