"""The local launcher: conformance, and what only a local one can show."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from schemas.failures import FailureClass
from schemas.steps import ATTEMPT_MARK
from tests.launchers.conformance import (
    FAKE_TRAINER,
    LONG_S,
    Conformance,
    Steps,
    collect,
    everybody,
    trainers,
    until,
)
from worker.errors import StepFailed
from worker.launchers import local, processes
from worker.launchers.interface import EndReason, LauncherUnavailable
from worker.launchers.local import LocalLauncher, LocalOptions
from worker.launchers.local_handle import LocalHandle
from worker.launchers.verdict import StepDone, classify


def make(scratch: str, **options: Any) -> LocalLauncher:
    command = (sys.executable, "-IS", str(FAKE_TRAINER))
    if "device_locks" in options:
        options["device_locks"] = Path(options["device_locks"])
    # the fake trainer writes its witness and its report beside its output
    made = {"command": command, "scratch_root": Path(scratch), "writable": [Path(scratch).parent], **options}
    return LocalLauncher(LocalOptions(**made))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 150 MB of memory, where this user may make one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            group, limit = Path(f"/sys/fs/cgroup{path}") / f"test-{os.getpid()}", "memory.max"
        elif "memory" in controllers.split(","):
            group, limit = Path(f"/sys/fs/cgroup/memory{path}") / f"test-{os.getpid()}", "memory.limit_in_bytes"
        else:
            continue
        with suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(150 * 2**20))
                yield group
            finally:
                while (group / "cgroup.procs").read_text():
                    time.sleep(0.01)
                group.rmdir()
            return
    pytest.skip("no control group can be made here")


class LocalPlace:
    moment_s = 1.0

    def __init__(self, scratch: Path) -> None:
        self.scratch = str(scratch)

    def launcher(self, **options: Any) -> LocalLauncher:
        return make(self.scratch, **options)

    def owner(self, **options: Any) -> list[str]:
        return ["tests.launchers.test_local:make", json.dumps({"scratch": self.scratch, **options})]


class TestLocal(Conformance):
    @pytest.fixture
    def place(self, tmp_path: Path) -> LocalPlace:
        return LocalPlace(tmp_path / "scratch")

    async def test_without_a_right_nothing_starts(self, steps: Steps):
        with pytest.raises(LauncherUnavailable, match="no_right"):
            await steps.start("succeed", lease_s=0)
        assert not steps.has("start")

    async def test_nothing_is_ever_adopted(self, steps: Steps):
        launcher = steps.launcher()
        spec = steps.spec("succeed")
        assert await launcher.adopt(spec.run_id, 1, spec.step, lease_s=LONG_S, log=steps.log) is None

    async def test_tree_over_the_memory_limit_is_out_of_memory(self, steps: Steps):
        handle = await steps.start("memory", megabytes=300, options={"memory_limit_bytes": 200 * 2**20})
        ended = await handle.wait()
        assert ended.reason is EndReason.MEMORY_LIMIT
        assert ended.out_of_memory
        assert ended.max_rss_bytes > 200 * 2**20
        verdict = classify(ended)
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (FailureClass.OUT_OF_MEMORY, "memory_limit")

    async def test_killed_by_the_kernel_for_memory_is_out_of_memory(self, steps: Steps, small_group: Path):
        enter = ["sh", "-c", f'echo $$ > {small_group}/cgroup.procs && exec "$@"', "sh"]
        owner = await asyncio.create_subprocess_exec(
            *enter,
            *steps.owner("memory", lease_s=LONG_S, options={}, megabytes=300),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await owner.communicate()
        assert output.decode().split() == ["exited", "9", "True"]

    async def test_killed_by_a_stranger_is_a_crash(self, steps: Steps):
        handle = await steps.start("stall")
        await until(lambda: steps.has("start"))
        os.kill(handle.trainer_pid, signal.SIGKILL)
        verdict = classify(await handle.wait())
        assert isinstance(verdict, StepFailed)
        assert (verdict.failure_class, verdict.code) == (FailureClass.CRASHED, "signal_9")

    @pytest.mark.parametrize("fake", ["succeed", "setsid_grandchild"])
    async def test_killed_supervisor_leaves_nothing_behind(self, steps: Steps, fake: str):
        handle = await steps.start(fake, steps=100_000)
        await until(lambda: steps.has("step", 3))
        (supervisor,) = [marked for marked in everybody(steps.run_id) if marked.supervises]
        os.kill(supervisor.process.pid, signal.SIGKILL)
        ended = await handle.wait()
        assert not everybody(steps.run_id)
        assert ended.reason is EndReason.SUPERVISOR_LOST
        await steps.assert_nothing_moves()

    async def test_frozen_supervisor_does_not_hinder_the_kill(self, steps: Steps):
        handle = await steps.start("setsid_grandchild", steps=100_000)
        await until(lambda: steps.has("step", 3))
        (supervisor,) = [marked for marked in everybody(steps.run_id) if marked.supervises]
        os.kill(supervisor.process.pid, signal.SIGSTOP)
        await handle.kill()
        assert not everybody(steps.run_id)

    async def test_frozen_supervisor_wakes_and_sees_its_owners_death(self, steps: Steps):
        owner = steps.own("setsid_grandchild", lease_s=LONG_S, options={}, steps=100_000)
        await until(lambda: steps.has("step", 3))
        (supervisor,) = [marked for marked in everybody(steps.run_id) if marked.supervises]
        os.kill(supervisor.process.pid, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        await until(lambda: not everybody(steps.run_id))
        await steps.assert_nothing_moves()

    async def test_frozen_supervisor_of_a_frozen_owner_wakes_and_pauses_at_the_end_of_the_right(self, steps: Steps):
        owner = steps.own("setsid_grandchild", lease_s=2.0, options={}, steps=100_000)
        await until(lambda: steps.has("step", 3))
        (supervisor,) = [marked for marked in everybody(steps.run_id) if marked.supervises]
        owner.send_signal(signal.SIGSTOP)
        os.kill(supervisor.process.pid, signal.SIGSTOP)
        try:
            await until(lambda: all(processes.is_still(marked.process) for marked in trainers(steps.run_id)))
            assert trainers(steps.run_id)
            await steps.assert_nothing_moves()
        finally:
            owner.kill()
            owner.wait()
        await until(lambda: not everybody(steps.run_id))

    async def test_supervisor_that_does_not_pause_in_time_is_ended_with_its_trainer(
        self, steps: Steps, monkeypatch: pytest.MonkeyPatch
    ):
        deaf = f"""
import sys; sys.path.insert(0, {local._SOURCE_ROOT!r})
from worker.launchers import supervisor
supervisor.Supervisor._keep_right = lambda self: None
supervisor.main()
"""
        monkeypatch.setattr("worker.launchers.local._SUPERVISOR", (sys.executable, "-IS", "-c", deaf))
        monkeypatch.setattr("worker.launchers.local_handle._OVERDUE_S", 0.5)
        handle = await steps.start("setsid_grandchild", lease_s=1.0, steps=100_000)
        ended = await handle.wait()
        assert steps.has("step", 3)
        assert ended.reason is EndReason.SUPERVISOR_LOST
        assert not everybody(steps.run_id)

    async def test_host_that_stood_still_loses_no_step(self, steps: Steps, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("worker.launchers.local_handle._OVERDUE_S", 2.0)
        handle = await steps.start("succeed", lease_s=1.0, steps=200)
        await until(lambda: steps.has("step", 3))
        frozen = [marked.process for marked in everybody(steps.run_id)]
        for process in frozen:
            process.send(signal.SIGSTOP)
        time.sleep(4)  # the owner stands still as well
        for process in frozen:
            process.send(signal.SIGCONT)
        await until(lambda: handle.paused)
        handle.feed(LONG_S)
        assert isinstance(classify(await handle.wait()), StepDone)

    async def test_trainer_woken_by_a_stranger_while_paused_is_stopped_again(self, steps: Steps):
        handle = await steps.start("succeed", steps=100_000)
        await until(lambda: steps.has("step", 3))
        handle.feed(0)
        await until(lambda: handle.paused)
        os.kill(handle.trainer_pid, signal.SIGCONT)
        await until(lambda: all(processes.is_still(marked.process) for marked in trainers(steps.run_id)))
        await asyncio.sleep(0.5)
        await steps.assert_nothing_moves()
        await handle.kill()

    async def test_what_was_left_when_owner_and_supervisor_died_together_is_swept(self, steps: Steps):
        owner = steps.own("setsid_grandchild", lease_s=LONG_S, options={}, steps=100_000)
        await until(lambda: steps.has("step", 3) and steps.has("tick"))
        (supervisor,) = [marked for marked in everybody(steps.run_id) if marked.supervises]
        owner.send_signal(signal.SIGSTOP)
        os.kill(supervisor.process.pid, signal.SIGKILL)
        owner.kill()
        owner.wait()
        await until(lambda: len(trainers(steps.run_id)) == 1)
        other = await steps.start("stall", attempt=2)
        await until(lambda: trainers(steps.run_id, 2))
        assert await steps.launcher().sweep() >= 1  # other tests' strays on this host are swept as well
        await until(lambda: not trainers(steps.run_id, 1))
        assert trainers(steps.run_id, 2)
        await other.kill()

    async def test_a_device_is_never_given_twice_even_after_its_owner_died(self, steps: Steps, tmp_path: Path):
        options = {"devices": ["0", "1"], "device_locks": str(tmp_path / "locks")}
        owner = steps.own("stall", lease_s=LONG_S, options=options)
        await until(lambda: steps.has("start"))
        handle = await steps.start("stall", attempt=2, options=options)
        with pytest.raises(LauncherUnavailable, match="no_device"):
            await steps.start("stall", attempt=3, options=options)
        owner.kill()
        owner.wait()
        await until(lambda: all(marked.attempt != 1 for marked in everybody(steps.run_id)))
        third = await steps.start("environment", attempt=3, options=options)
        await third.wait()
        seen = json.loads(steps.report.read_text())["environment"]
        assert seen["CUDA_VISIBLE_DEVICES"] == "0"
        await handle.kill()

    async def test_a_training_of_several_processes_takes_a_device_for_each_or_none(self, steps: Steps, tmp_path: Path):
        options = {"devices": ["0", "1", "2"], "device_locks": str(tmp_path / "locks"), "processes": 2}
        first = await steps.start("stall", options=options)
        with pytest.raises(LauncherUnavailable, match="no_device"):
            await steps.start("stall", attempt=2, options=options)
        alone = await steps.start("stall", attempt=3, options=options | {"processes": 1})
        await first.kill()
        await alone.kill()
        await (await steps.start("environment", attempt=4, options=options)).wait()
        seen = json.loads(steps.report.read_text())["environment"]
        assert (seen["CUDA_VISIBLE_DEVICES"], seen["TRAINER_PROCESSES"]) == ("0,1", "2")

    async def test_a_hundred_steps_leave_no_descriptor_process_or_folder(self, steps: Steps, tmp_path: Path):
        launcher = steps.launcher(command=("/bin/true",))

        async def one(attempt: int) -> None:
            handle = await launcher.start(steps.spec("", attempt), lease_s=LONG_S, log=steps.log)
            assert (await handle.wait()).exit_code == 0
            assert await collect(handle) == []

        await one(1)
        before = descriptors()
        children = len(processes.descendants(os.getpid()))
        for batch in range(25):
            await asyncio.gather(*(one(2 + 4 * batch + n) for n in range(4)))
        assert descriptors() == before
        assert len(processes.descendants(os.getpid())) == children
        assert list((tmp_path / "scratch").iterdir()) == []

    async def test_large_spec_arrives_whole(self, steps: Steps):
        text = "x" * 2_000_000
        handle = await steps.start("succeed", steps=1, note=text, figures={"train": {"seen": "whole"}})
        assert classify(await handle.wait()) == StepDone((await collect(handle))[-1])


def test_mark_has_one_name():
    assert processes.ATTEMPT_MARK == ATTEMPT_MARK


async def test_a_log_that_its_step_swapped_for_a_link_shows_the_customer_nothing(tmp_path: Path):
    """The end of the log goes into what the customer reads of a failure; the link leads to what the worker can read."""
    secret = tmp_path / "secret"
    secret.write_text("the worker's own")
    handle = object.__new__(LocalHandle)
    handle._log_path = tmp_path / "log.txt"
    handle._log_path.write_text("said by the step")
    assert handle._last_output() == "said by the step"
    handle._log_path.unlink()
    handle._log_path.symlink_to(secret)
    assert handle._last_output() == ""
