"""What every launcher must do, as tests that each launcher's own test file inherits.

    class TestLocal(Conformance): ...   # with a fixture ``place``

Cases:
 1. success: hello, progress, checkpoints and result arrive in order, the end's facts are true
 2. a failure event arrives and is the verdict; so is a stop
 3. a crash by signal, an exit code without a word, exit 0 without a result: each has its class
 4. MemoryError has the class out_of_memory
 5. a stalled trainer is seen as silence, and killed
 6. garbage lines and an over-long line are counted and skipped; a flood of garbage ends the trainer as a bug
 7. a flood of progress neither blocks the trainer nor loses the result
 8. a grandchild is gone at the end; one in a new session too; one without any mark too
 9. SIGTERM is honoured: checkpoint, stopped, exit 75
10. SIGTERM is ignored: kill ends it, and everything below it
11. unfed it pauses, grandchildren too; a late feed resumes it, and it succeeds
12. unfed beyond the patience it is killed
13. its owner killed with SIGKILL: nothing is left
14. its owner frozen: paused, then nothing is left
15. ensure_stopped ends an earlier attempt's step, and leaves this attempt's alone
16. the environment, arguments and descriptors hold nothing but what belongs there
17. output is captured in the log, bounded, with its beginning and its end
18. a program that cannot be executed ends with the class infrastructure
19. killing twice, feeding and asking after the end are harmless
20. a training is told over how many processes it may spread
"""

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID, uuid4

import pytest

from schemas.events import Checkpoint, Event, Hello, Progress, Result, Stopped
from schemas.failures import FailureClass
from schemas.steps import Step, StepSpec
from worker.errors import StepFailed
from worker.launchers.interface import EndReason, Handle, Launcher
from worker.launchers.processes import Marked, is_still, marked_processes
from worker.launchers.verdict import StepDone, StepStopped, classify

FAKE_TRAINER = Path(__file__).resolve().parent.parent / "fake_trainer.py"
WITNESSED: dict[str, Any] = {"writable": (Path(tempfile.gettempdir()),)}
"""Options for steps on nodes: the fake trainer writes its witness and its report beside its output."""
LONG_S = 300.0
"""A right to run that no test outlives."""


class Place(Protocol):
    """One kind of launcher, ready to be made with the options that a case needs."""

    moment_s: float
    """How long a right must be so that an undisturbed step starts well within it."""

    def launcher(self, **options: Any) -> Launcher: ...

    def owner(self, **options: Any) -> list[str]:
        """Arguments after ``owner.py`` that make the same launcher in another process."""
        ...


async def until(fact: Callable[[], object]) -> None:
    """Wait for a fact; pytest's own timeout is the limit."""
    while not fact():
        await asyncio.sleep(0.01)


def trainers(run_id: UUID, attempt: int | None = None) -> list[Marked]:
    """The run's living processes on this machine, in whatever namespace, supervisors left out."""
    return [
        marked
        for marked in marked_processes()
        if marked.run_id == str(run_id) and not marked.supervises and attempt in {None, marked.attempt}
    ]


def everybody(run_id: UUID) -> list[Marked]:
    return [marked for marked in marked_processes() if marked.run_id == str(run_id)]


@dataclass
class Steps:
    """Starts steps of the fake trainer and cleans up after the case."""

    place: Place
    folder: Path
    run_id: UUID = field(default_factory=uuid4)
    launchers: list[Launcher] = field(default_factory=list)

    @property
    def witness(self) -> Path:
        return self.folder / "witness.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "step.log"

    @property
    def report(self) -> Path:
        return self.folder / "environment.json"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def spec(self, fake: str, attempt: int = 1, **parameters: Any) -> StepSpec:
        self.output.mkdir(exist_ok=True)
        return StepSpec(
            run_id=self.run_id,
            attempt=attempt,
            step=Step.TRAIN,
            recipe="fake",
            recipe_version="1",
            seed=1,
            parameters={"fake": fake, "witness": str(self.witness), "report": str(self.report), **parameters},
            output=str(self.output),
        )

    def launcher(self, **options: Any) -> Launcher:
        launcher = self.place.launcher(**options)
        self.launchers.append(launcher)
        return launcher

    async def start(
        self, fake: str, *, lease_s: float = LONG_S, options: dict[str, Any] | None = None, **parameters: Any
    ) -> Handle:
        launcher = self.launcher(**(options or {}))
        return await launcher.start(self.spec(fake, **parameters), lease_s=lease_s, log=self.log)

    def owner(self, fake: str, *, lease_s: float, options: dict[str, Any], **parameters: Any) -> list[str]:
        """The command of a process that starts such a step and feeds it four times per lease."""
        return [
            sys.executable,
            str(Path(__file__).parent / "owner.py"),
            self.spec(fake, **parameters).model_dump_json(),
            str(lease_s),
            str(self.log),
            *self.place.owner(**options),
        ]

    def own(self, fake: str, *, lease_s: float, options: dict[str, Any], **parameters: Any) -> subprocess.Popen:
        """The same step under an owner that can be killed."""
        return subprocess.Popen(self.owner(fake, lease_s=lease_s, options=options, **parameters))

    def ticks(self) -> list[dict[str, Any]]:
        if not self.witness.exists():
            return []
        return [json.loads(line) for line in self.witness.read_text().splitlines()]

    def has(self, what: str, times: int = 1) -> bool:
        return sum(tick["what"] == what for tick in self.ticks()) >= times

    async def assert_nothing_moves(self) -> None:
        """Nobody writes the witness any more; a mover would write every 20 ms."""
        before = self.witness.stat().st_size
        await asyncio.sleep(0.3)
        assert self.witness.stat().st_size == before


async def collect(handle: Handle) -> list[Event]:
    return [event async for event in handle.events()]


class Conformance:
    """The cases. A subclass gives the fixture ``place``."""

    @pytest.fixture
    async def steps(self, place: Place, tmp_path: Path) -> AsyncIterator[Steps]:
        steps = Steps(place, tmp_path)
        yield steps
        for launcher in steps.launchers:
            await launcher.close()
        assert not everybody(steps.run_id)

    async def test_success_brings_every_event_in_order_and_true_facts(self, steps: Steps):
        handle = await steps.start("succeed", steps=6, checkpoint_every=3)
        events = await collect(handle)
        assert isinstance(events[0], Hello)
        assert [event.steps_done for event in events if isinstance(event, Checkpoint)] == [3, 6]
        percents = [event.percent for event in events if isinstance(event, Progress)]
        assert percents == sorted(percents)
        assert percents[-1] == 100
        assert isinstance(events[-1], Result)
        ended = await handle.wait()
        assert (ended.reason, ended.exit_code, ended.signal) == (EndReason.EXITED, 0, None)
        assert classify(ended) == StepDone(Result(figures={"steps": 6}))
        assert (ended.garbage_lines, ended.out_of_memory, ended.paused_s) == (0, False, 0)
        assert ended.max_rss_bytes > 2**20

    async def test_processor_seconds_are_those_of_the_trainer(self, steps: Steps):
        ended = await (await steps.start("busy")).wait()
        assert ended.cpu_s >= 1

    async def test_failure_event_is_the_verdict(self, steps: Steps):
        verdict = classify(await (await steps.start("fail")).wait())
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (FailureClass.DATA, "too_little_audio")
        assert verdict.reason == "Only 3 of 60 seconds can be used."

    @pytest.mark.parametrize(
        ("fake", "failure_class", "code"),
        [
            ("crash", FailureClass.CRASHED, f"signal_{signal.SIGSEGV.value}"),
            ("exit_3", FailureClass.CRASHED, "exit_3"),
            ("no_result", FailureClass.BUG, "no_result"),
            ("memory_error", FailureClass.OUT_OF_MEMORY, "memory_error"),
        ],
    )
    async def test_end_without_a_word_has_its_class(
        self, steps: Steps, fake: str, failure_class: FailureClass, code: str
    ):
        verdict = classify(await (await steps.start(fake)).wait())
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (failure_class, code)

    async def test_last_output_is_in_the_detail_of_a_crash(self, steps: Steps):
        ended = await (await steps.start("exit_3")).wait()
        assert ended.detail.endswith("RuntimeError: something nobody foresaw")

    async def test_stalled_trainer_is_silent_and_can_be_killed(self, steps: Steps):
        handle = await steps.start("stall")
        events = handle.events()
        assert isinstance(await anext(events), Hello)
        await until(lambda: trainers(steps.run_id))
        await handle.kill()
        assert not everybody(steps.run_id)
        assert (await handle.wait()).reason is EndReason.KILLED
        assert [event async for event in events] == []

    async def test_garbage_is_counted_and_skipped(self, steps: Steps):
        handle = await steps.start("garbage", steps=2)
        events = await collect(handle)
        assert isinstance(events[-1], Result)
        ended = await handle.wait()
        assert ended.garbage_lines == 6
        assert "not json" in ended.detail
        assert isinstance(classify(ended), StepDone)

    async def test_over_long_line_is_counted_once_and_skipped(self, steps: Steps):
        handle = await steps.start("long_line", steps=2)
        assert [event.percent for event in await collect(handle) if isinstance(event, Progress)] == [50, 100]
        ended = await handle.wait()
        assert ended.garbage_lines == 1
        assert isinstance(classify(ended), StepDone)

    async def test_flood_of_garbage_ends_the_trainer_as_a_bug(self, steps: Steps):
        ended = await (await steps.start("garbage_flood")).wait()
        assert ended.reason is EndReason.EVENT_GARBAGE
        verdict = classify(ended)
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (FailureClass.BUG, "event_garbage")

    async def test_flood_of_progress_that_nobody_reads_loses_progress_but_not_the_result(self, steps: Steps):
        handle = await steps.start("flood")
        ended = await handle.wait()
        assert isinstance(classify(ended), StepDone)
        assert ended.dropped_events > 0
        events = await collect(handle)
        assert isinstance(events[-1], Result)
        assert len(events) < 1000

    @pytest.mark.parametrize("fake", ["grandchild", "setsid_grandchild", "unmarked_grandchild"])
    async def test_grandchild_is_gone_at_the_end(self, steps: Steps, fake: str):
        handle = await steps.start(fake, steps=20)
        assert isinstance(classify(await handle.wait()), StepDone)
        assert steps.has("tick")
        await steps.assert_nothing_moves()

    async def test_asked_to_stop_it_leaves_a_checkpoint_and_stops(self, steps: Steps):
        handle = await steps.start("succeed", steps=100_000)
        await until(lambda: steps.has("step", 3))
        await handle.ask_stop()
        events = await collect(handle)
        assert isinstance(events[-2], Checkpoint)
        assert isinstance(events[-1], Stopped)
        ended = await handle.wait()
        assert ended.exit_code == 75
        assert classify(ended) == StepStopped(events[-1].steps_done)

    async def test_trainer_that_ignores_the_request_is_killed_with_everything_below(self, steps: Steps):
        handle = await steps.start("ignore_term")
        events = handle.events()
        while not isinstance(await anext(events), Progress):
            pass
        await handle.ask_stop()
        await asyncio.sleep(0.2)
        assert trainers(steps.run_id)
        await handle.kill()
        assert not everybody(steps.run_id)
        ended = await handle.wait()
        assert (ended.reason, ended.signal) == (EndReason.KILLED, signal.SIGKILL)

    @pytest.mark.parametrize("fake", ["grandchild", "setsid_grandchild", "unmarked_grandchild"])
    async def test_kill_ends_grandchildren(self, steps: Steps, fake: str):
        handle = await steps.start(fake, steps=100_000)
        await until(lambda: steps.has("tick") and steps.has("step"))
        await handle.kill()
        assert not everybody(steps.run_id)
        await steps.assert_nothing_moves()

    @pytest.mark.parametrize("fake", ["grandchild", "setsid_grandchild", "unmarked_grandchild"])
    async def test_unfed_it_pauses_and_a_late_feed_resumes_it(self, steps: Steps, fake: str):
        handle = await steps.start(fake, steps=60)
        await until(lambda: steps.has("tick") and steps.has("step"))
        handle.feed(0)
        await until(lambda: all(is_still(marked.process) for marked in trainers(steps.run_id)))
        await steps.assert_nothing_moves()
        assert trainers(steps.run_id)
        handle.feed(LONG_S)
        ended = await handle.wait()
        assert isinstance(classify(ended), StepDone)
        assert ended.paused_s > 0.2
        done = [tick["n"] for tick in steps.ticks() if tick["what"] == "step"]
        assert done == list(range(1, 61))

    async def test_unfed_beyond_the_patience_it_is_killed(self, steps: Steps):
        moment_s = steps.place.moment_s
        handle = await steps.start("setsid_grandchild", lease_s=moment_s, options={"patience_s": 0.5}, steps=100_000)
        ended = await handle.wait()
        assert not everybody(steps.run_id)
        assert ended.reason is EndReason.UNFED
        assert ended.paused_s >= 0.4
        verdict = classify(ended)
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (FailureClass.INFRASTRUCTURE, "right_expired")
        await steps.assert_nothing_moves()

    async def test_fed_it_outlives_many_leases(self, steps: Steps):
        moment_s = steps.place.moment_s
        handle = await steps.start("succeed", lease_s=moment_s, steps=60, step_s=moment_s / 20)
        events = handle.events()
        async for event in events:
            if isinstance(event, Progress):
                handle.feed(moment_s)
        ended = await handle.wait()
        assert isinstance(classify(ended), StepDone)
        assert ended.paused_s == 0

    @pytest.mark.parametrize("fake", ["succeed", "setsid_grandchild", "unmarked_grandchild"])
    async def test_killed_owner_leaves_nothing_behind(self, steps: Steps, fake: str):
        owner = steps.own(fake, lease_s=steps.place.moment_s, options={"patience_s": 0.5}, steps=100_000)
        await until(lambda: steps.has("step", 3))
        owner.kill()
        owner.wait()
        await until(lambda: not everybody(steps.run_id))
        await steps.assert_nothing_moves()

    async def test_frozen_owner_leaves_its_trainer_paused_and_then_dead(self, steps: Steps):
        owner = steps.own("setsid_grandchild", lease_s=steps.place.moment_s, options={"patience_s": 2}, steps=100_000)
        await until(lambda: steps.has("step", 3))
        owner.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: all(is_still(marked.process) for marked in trainers(steps.run_id)))
            assert trainers(steps.run_id)
            await until(lambda: not trainers(steps.run_id))
            await steps.assert_nothing_moves()
        finally:
            owner.kill()
            owner.wait()
        await until(lambda: not everybody(steps.run_id))

    async def test_ensure_stopped_ends_earlier_attempts_and_no_other(self, steps: Steps):
        owner = steps.own("setsid_grandchild", lease_s=LONG_S, options={}, steps=100_000)
        try:
            await until(lambda: steps.has("step", 3) and steps.has("tick"))
            launcher = steps.launcher()
            mine = await launcher.start(
                steps.spec("stall", attempt=2, witness=str(steps.folder / "second")),
                lease_s=LONG_S,
                log=steps.log,
            )
            await until(lambda: trainers(steps.run_id, 2))
            await launcher.ensure_stopped(steps.run_id, 1)
            assert trainers(steps.run_id, 1)
            await launcher.ensure_stopped(steps.run_id, 2)
            assert not trainers(steps.run_id, 1)
            assert trainers(steps.run_id, 2)
            await steps.assert_nothing_moves()
            await mine.kill()
        finally:
            owner.kill()
            owner.wait()
        await until(lambda: not everybody(steps.run_id))

    async def test_trainer_sees_no_secret_and_nothing_that_is_not_its_own(
        self, steps: Steps, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("WORKER_DATABASE_URL", "postgresql://worker:very-secret@localhost/db")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        handle = await steps.start("environment", note="signed-address-very-secret")
        assert isinstance(classify(await handle.wait()), StepDone)
        facts = json.loads(steps.report.read_text())
        assert "very-secret" not in json.dumps([facts["environment"], facts["arguments"]])
        assert facts["environment"]["TRAINING_ATTEMPT"] == f"{steps.run_id}:1"
        assert facts["environment"]["HOME"] == facts["folder"] == facts["environment"]["TMPDIR"]
        assert not Path(facts["folder"]).exists()
        assert facts["ignored_signals"] == []
        assert {"0", "1", "2", "3"} <= facts["descriptors"].keys()
        for name, target in facts["descriptors"].items():
            if name not in {"0", "1", "2", "3"}:
                assert target == str(steps.witness) or "/proc/" in target

    async def test_training_is_told_over_how_many_processes_it_may_spread(self, steps: Steps):
        await (await steps.start("environment", options={"processes": 3})).wait()
        facts = json.loads(steps.report.read_text())
        assert facts["environment"]["TRAINER_PROCESSES"] == "3"

    async def test_output_is_in_the_log(self, steps: Steps):
        handle = await steps.start("chatty", lines=1000)
        await handle.wait()
        lines = steps.log.read_text().splitlines()
        assert "line 0 of a very chatty trainer" in lines[:3]  # after what was said of the start
        assert lines[-1] == "line 999 of a very chatty trainer"
        assert sum(line.startswith("line ") for line in lines) == 1000

    async def test_log_keeps_beginning_and_end_within_its_limit(self, steps: Steps):
        handle = await steps.start("chatty", lines=50_000, options={"log_limit_bytes": 40_000})
        await handle.wait()
        assert steps.log.stat().st_size <= 40_000
        lines = steps.log.read_text().splitlines()
        assert "line 0 of a very chatty trainer" in lines[:3]  # after what was said of the start
        assert lines[-1] == "line 49999 of a very chatty trainer"
        assert sum("left out here" in line for line in lines) == 1

    async def test_program_that_cannot_be_executed_is_our_infrastructure(self, steps: Steps):
        handle = await steps.start("succeed", options={"command": ("/nowhere/python", "-m", "nothing")})
        ended = await handle.wait()
        assert ended.reason is EndReason.NOT_STARTED
        verdict = classify(ended)
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (FailureClass.INFRASTRUCTURE, "trainer_not_started")
        assert "No such file" in verdict.detail
        assert await collect(handle) == []

    async def test_an_ended_step_takes_every_call_calmly(self, steps: Steps):
        handle = await steps.start("succeed", steps=1)
        first = await handle.wait()
        handle.feed(1)
        handle.feed(0)
        await handle.ask_stop()
        await handle.kill()
        await handle.kill()
        assert await handle.wait() == first
