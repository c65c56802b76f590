"""Random signals at supervisors and trainers: every step still ends, its end is known, and nothing is left."""

import asyncio
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.launchers.conformance import LONG_S, Steps, everybody
from tests.launchers.test_local import LocalPlace, descriptors
from worker.launchers.interface import Handle
from worker.launchers.verdict import StepDone, StepFailed, StepStopped, classify

FAKES = ("succeed", "grandchild", "setsid_grandchild", "unmarked_grandchild", "crash", "fail", "stall", "flood")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM)


@pytest.mark.parametrize("seed", range(3))
async def test_every_step_ends_and_nothing_is_left_whatever_is_signalled(tmp_path: Path, seed: int):
    chance = random.Random(seed)
    before = descriptors()
    all_steps = []

    async def fire(steps: Steps, handle: Handle) -> None:
        """Signals to anybody of the run, calls to the handle, in any order; at last a kill."""
        for _ in range(chance.randint(0, 6)):
            await asyncio.sleep(chance.random() * 0.1)
            targets = everybody(steps.run_id)
            match chance.randint(0, 5):
                case 0:
                    handle.feed(chance.choice([0, 0.05, LONG_S]))
                case 1:
                    await handle.ask_stop()
                case _ if targets:
                    with suppress(ProcessLookupError):
                        os.kill(chance.choice(targets).process.pid, chance.choice(SIGNALS))
        await handle.kill()

    async def one(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        steps = Steps(LocalPlace(folder / "scratch"), folder)
        all_steps.append(steps)
        handle = await steps.start(chance.choice(FAKES), steps=20, options={"patience_s": 0.5})
        await fire(steps, handle)
        assert isinstance(classify(await handle.wait()), StepDone | StepFailed | StepStopped)
        assert not everybody(steps.run_id)

    for batch in range(5):
        await asyncio.gather(*(one(6 * batch + n) for n in range(6)))
    assert descriptors() == before
    for steps in all_steps:
        # an unmarked grandchild whose supervisor was killed is beyond everybody's knowledge: see strays.py
        assert not everybody(steps.run_id)
