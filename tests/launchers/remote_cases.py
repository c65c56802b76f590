"""Conformance for launchers whose steps outlive the worker, and the cases that only these have.

20. its owner killed with SIGKILL, another adopts: one process in all, every event replayed, success
21. what ended by itself while nobody owned it is adopted with its end
22. an owner that was taken over can neither feed nor pause nor stop the step any more
23. nothing to adopt: never started, dead, or ended otherwise
24. ensure_stopped ends a step whose owner is frozen
25. the cluster does not answer: start, adopt and ensure_stopped say so, and a running step goes on
26. the job is killed by somebody else: the end is known, and is no success
27. the same step can be started again in the same attempt
"""

import signal
import sys
from pathlib import Path

import pytest

import worker
from schemas.events import Checkpoint, Hello, Result
from schemas.failures import FailureClass
from schemas.steps import Step
from tests.launchers.conformance import (
    LONG_S,
    Conformance,
    Steps,
    collect,
    everybody,
    trainers,
    until,
)
from worker.errors import StepFailed
from worker.launchers.interface import EndReason, LauncherUnavailable
from worker.launchers.remote import RemoteLauncher
from worker.launchers.verdict import StepDone, classify

_ROOT = str(Path(worker.__file__).parent.parent)


def outpost() -> tuple[str, ...]:
    """The outpost from this source tree, which the nodes share with us."""
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from worker.launchers.outpost import main; main()"
    return (sys.executable, "-c", code)


class RemoteConformance(Conformance):
    async def started(self, steps: Steps) -> None:
        await until(lambda: steps.has("step", 3))

    async def test_killed_owners_step_is_adopted_and_finishes_once(self, steps: Steps):
        owner = steps.own("succeed", lease_s=LONG_S, options={}, steps=200, step_s=0.02, checkpoint_every=50)
        await self.started(steps)
        owner.kill()
        owner.wait()
        before = len(steps.ticks())
        launcher = steps.launcher()
        log = steps.folder / "logs" / "adopted.log"
        handle = await launcher.adopt(steps.run_id, 2, Step.TRAIN, lease_s=LONG_S, log=log)
        assert handle is not None
        assert handle.spec == steps.spec("succeed", steps=200, step_s=0.02, checkpoint_every=50)
        events = await collect(handle)
        assert isinstance(classify(await handle.wait()), StepDone)
        assert isinstance(events[0], Hello)
        assert [event.steps_done for event in events if isinstance(event, Checkpoint)] == [50, 100, 150, 200]
        assert isinstance(events[-1], Result)
        assert len(steps.ticks()) > before
        assert [tick["n"] for tick in steps.ticks() if tick["what"] == "step"] == list(range(1, 201))
        assert len({tick["pid"] for tick in steps.ticks()}) == 1
        assert log.read_text().startswith("fake trainer: train succeed")

    async def test_what_ended_while_nobody_owned_it_is_adopted_with_its_end(self, steps: Steps):
        owner = steps.own("succeed", lease_s=LONG_S, options={}, steps=30, step_s=0.02)
        await self.started(steps)
        owner.kill()
        owner.wait()
        await until(lambda: steps.has("end"))
        await until(lambda: not everybody(steps.run_id))
        handle = await steps.launcher().adopt(steps.run_id, 1, Step.TRAIN, lease_s=LONG_S, log=steps.log)
        assert handle is not None
        assert isinstance(classify(await handle.wait()), StepDone)
        assert isinstance((await collect(handle))[-1], Result)

    async def test_an_owner_that_was_taken_over_has_no_power_left(self, steps: Steps):
        old = await steps.start("succeed", steps=100_000)
        await self.started(steps)
        new = await steps.launcher().adopt(steps.run_id, 1, Step.TRAIN, lease_s=LONG_S, log=steps.log)
        assert new is not None
        old.feed(0)
        await old.ask_stop()
        done = len(steps.ticks())
        await until(lambda: len(steps.ticks()) > done + 200)
        await new.ask_stop()
        assert (await new.wait()).exit_code == 75

    async def test_taken_over_owner_cannot_kill_it_either(self, steps: Steps):
        old = await steps.start("succeed", steps=100_000)
        await self.started(steps)
        new = await steps.launcher().adopt(steps.run_id, 2, Step.TRAIN, lease_s=LONG_S, log=steps.log)
        assert new is not None
        await old.kill()
        assert (await old.wait()).reason is EndReason.TAKEN_OVER
        done = len(steps.ticks())
        await until(lambda: len(steps.ticks()) > done + 200)
        await new.kill()

    async def test_end_that_an_owner_has_taken_in_is_not_adopted_by_the_next_attempt(self, steps: Steps):
        handle = await steps.start("exit_3")
        launcher = steps.launcher()
        assert (await handle.wait()).exit_code == 3
        adopted = await launcher.adopt(steps.run_id, 2, Step.TRAIN, lease_s=LONG_S, log=steps.log)
        assert adopted is not None, "its owner may have died before it said what to do about it"
        await adopted.kill()
        assert (await adopted.wait()).exit_code == 3
        assert await launcher.adopt(steps.run_id, 2, Step.TRAIN, lease_s=LONG_S, log=steps.log) is None

    async def test_nothing_is_adopted_where_nothing_lives(self, steps: Steps):
        launcher = steps.launcher()
        assert await launcher.adopt(steps.run_id, 1, Step.TRAIN, lease_s=LONG_S, log=steps.log) is None
        handle = await steps.start("stall")
        await until(lambda: trainers(steps.run_id))
        await handle.kill()
        assert await launcher.adopt(steps.run_id, 1, Step.TRAIN, lease_s=LONG_S, log=steps.log) is None
        assert await launcher.adopt(steps.run_id, 1, Step.EVALUATE, lease_s=LONG_S, log=steps.log) is None

    async def test_ensure_stopped_ends_the_step_of_a_frozen_owner(self, steps: Steps):
        owner = steps.own("unmarked_grandchild", lease_s=LONG_S, options={}, steps=100_000)
        await self.started(steps)
        owner.send_signal(signal.SIGSTOP)
        try:
            await steps.launcher().ensure_stopped(steps.run_id, 2)
            assert not everybody(steps.run_id)
            await steps.assert_nothing_moves()
        finally:
            owner.kill()
            owner.wait()

    async def test_a_cluster_that_does_not_answer_is_named_and_a_running_step_goes_on(
        self, steps: Steps, away: RemoteLauncher
    ):
        with pytest.raises(LauncherUnavailable, match="cluster_unreachable"):
            await away.start(steps.spec("succeed"), lease_s=LONG_S, log=steps.log)
        with pytest.raises(LauncherUnavailable, match="cluster_unreachable"):
            await away.ensure_stopped(steps.run_id, 2)
        handle = await steps.start("succeed", steps=100_000)
        await self.started(steps)
        with pytest.raises(LauncherUnavailable, match="cluster_unreachable"):
            await away.adopt(steps.run_id, 1, Step.TRAIN, lease_s=LONG_S, log=steps.log)
        assert trainers(steps.run_id)
        await handle.kill()

    async def test_job_killed_by_somebody_else_is_known_to_have_ended(self, steps: Steps):
        handle = await steps.start("setsid_grandchild", steps=100_000)
        await self.started(steps)
        await handle._cancel()
        ended = await handle.wait()
        await until(lambda: not everybody(steps.run_id))
        await steps.assert_nothing_moves()
        verdict = classify(ended)
        if ended.reason is EndReason.SUPERVISOR_LOST:
            assert isinstance(verdict, StepFailed)
            assert verdict.failure_class is FailureClass.INFRASTRUCTURE
        else:
            # the outpost outlived its trainer by a moment, or was asked first and had the time for a checkpoint;
            # Ray asks every process of the job at once, so that a trainer may end of that too
            assert ended.reason is EndReason.EXITED
            assert ended.signal in {signal.SIGKILL, signal.SIGTERM} or ended.exit_code == 75

    async def test_the_same_step_can_be_started_again(self, steps: Steps):
        launcher = steps.launcher()
        for _ in range(2):
            handle = await launcher.start(steps.spec("succeed", steps=1), lease_s=LONG_S, log=steps.log)
            assert isinstance(classify(await handle.wait()), StepDone)
        assert len(steps.log.read_text().splitlines()) == 2

    async def test_a_step_that_starts_after_its_right_has_run_out_never_starts(self, steps: Steps):
        handle = await steps.start("succeed", lease_s=0, options={"patience_s": 1})
        ended = await handle.wait()
        assert ended.reason is EndReason.UNFED
        assert not steps.has("start")
