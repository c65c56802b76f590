"""One local step seen from the worker: its three wires, its right to run, its end."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from schemas.events import Event
from schemas.steps import StepSpec
from worker.launchers.event_stream import EventStream
from worker.launchers.interface import Ended, EndReason
from worker.launchers.strays import stop_marked
from worker.launchers.supervisor import now
from worker.storage.beneath import open_plain

_log = structlog.get_logger()

_READ_BYTES: Final = 65_536
_BREATH_S: Final = 0.01
"""After a full read of events: a flood may cost the loop some of its time, not all of it."""
_OVERDUE_S: Final = 5.0
"""A supervisor that has not paused its trainer so long after the end of the right will not do so any more."""
_KILL_ANSWER_S: Final = 3.0
_DETAIL_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True)
class Wires:
    """The descriptors between worker, supervisor and trainer; ``theirs`` are closed here once passed on."""

    control: int
    status: int
    events: int
    supervisor_control: int
    supervisor_status: int
    trainer_events: int
    spec: int
    log: int

    @classmethod
    def open(cls, spec: StepSpec, log: Path) -> Self:
        """Everything a step needs, with the spec already written to be read from its start."""
        opened: list[int] = []
        try:
            spec_file = os.memfd_create("step-spec", os.MFD_CLOEXEC)
            opened.append(spec_file)
            content = memoryview(spec.model_dump_json(exclude_none=True).encode())
            while content:
                content = content[os.write(spec_file, content) :]
            os.lseek(spec_file, 0, os.SEEK_SET)
            log.parent.mkdir(parents=True, exist_ok=True)
            log_file = os.open(log, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            opened.append(log_file)
            for _ in range(3):
                opened += os.pipe2(os.O_CLOEXEC)
            _, _, their_control, control, status, their_status, events, their_events = opened
            for descriptor in (control, status, events):
                os.set_blocking(descriptor, False)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return cls(control, status, events, their_control, their_status, their_events, spec_file, log_file)

    def close_theirs(self) -> None:
        """Our copies of what supervisor and trainer hold; the ends of pipes must be theirs alone."""
        for descriptor in (
            self.supervisor_control,
            self.supervisor_status,
            self.trainer_events,
            self.spec,
            self.log,
        ):
            os.close(descriptor)

    def close_ours(self) -> None:
        """Our ends; closing the control pipe ends the trainer if it still lives."""
        for descriptor in (self.control, self.status, self.events):
            os.close(descriptor)


class LocalHandle:
    """See ``worker.launchers.interface.Handle``."""

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        spec: StepSpec,
        supervisor: subprocess.Popen[bytes],
        wires: Wires,
        lease_s: float,
        garbage_limit: int,
        log: Path,
    ) -> None:
        self._spec = spec
        self._supervisor = supervisor
        self._wires = wires
        self._garbage_limit = garbage_limit
        self._log_path = log
        self._stream = EventStream()
        self._status_rest = b""
        self._facts: dict[str, str] = {}
        """The supervisor's last line, name to value; empty until it came."""
        self._trainer_pid: int | None = None
        self._paused = False
        self._garbage_kill = False
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._finishing: asyncio.Task[None] | None = None
        self._at_end: list[Callable[[], Awaitable[None]]] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(wires.status, self._read_status)
        self._loop.add_reader(wires.events, self._read_events)
        self._overdue = self._loop.call_later(lease_s, self._right_over)

    @property
    def spec(self) -> StepSpec:
        """See ``Handle.spec``."""
        return self._spec

    @property
    def waits(self) -> bool:
        """Never: it was started here and now."""
        return False

    @property
    def trainer_pid(self) -> int | None:
        """The trainer's process, which leads its group; None until the supervisor has told."""
        return self._trainer_pid

    @property
    def paused(self) -> bool:
        """Whether the supervisor has said that everything stands still."""
        return self._paused

    def on_end(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have this called after the last process is gone and before ``wait`` returns."""
        self._at_end.append(call)

    def events(self) -> AsyncIterator[Event]:
        """See ``Handle.events``."""
        return self._stream.events()

    def feed(self, remaining_s: float) -> None:
        """See ``Handle.feed``."""
        if self._finishing is not None:
            return
        self._say(f"feed {now() + remaining_s:.3f}")
        self._overdue.cancel()
        self._overdue = self._loop.call_later(max(remaining_s, 0), self._right_over)

    async def ask_stop(self) -> None:
        """See ``Handle.ask_stop``."""
        if self._finishing is None:
            self._say("stop")

    async def kill(self) -> None:
        """See ``Handle.kill``."""
        if self._finishing is None:
            self._say("kill")
        done, _ = await asyncio.wait([self._ended], timeout=_KILL_ANSWER_S)
        if not done:
            # beyond waking, or starved: the kernel ends the trainer with it, and the end that
            # follows looks for everything else
            self._supervisor.kill()
        await asyncio.shield(self._ended)

    async def wait(self) -> Ended:
        """See ``Handle.wait``."""
        return await asyncio.shield(self._ended)

    def _say(self, line: str) -> None:
        with suppress(OSError):  # gone, or so long frozen that the pipe is full: the status wire tells
            os.write(self._wires.control, line.encode() + b"\n")

    def _read_status(self) -> None:
        try:
            data = os.read(self._wires.status, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:  # the supervisor alone held the other end: it is gone
            self._loop.remove_reader(self._wires.status)
            self._overdue.cancel()
            self._finishing = self._loop.create_task(self._finish())
            return
        *lines, self._status_rest = (self._status_rest + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            values = dict(pair.split("=", 1) for pair in rest.split())
            if word == "ended":
                self._facts = values
            elif word == "started":
                self._trainer_pid = int(values["pid"])
            else:
                self._paused = word == "paused"

    def _read_events(self) -> None:
        try:
            data = os.read(self._wires.events, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._wires.events)
            return
        self._stream.push(data)
        if self._stream.garbage_lines > self._garbage_limit and not self._garbage_kill:
            self._garbage_kill = True
            self._say("kill")
        if len(data) == _READ_BYTES or self._stream.full:
            self._loop.remove_reader(self._wires.events)
            self._loop.call_later(_BREATH_S, self._read_on)

    def _read_on(self) -> None:
        if self._finishing is not None:
            return  # the end reads the rest
        if self._stream.full:
            self._loop.call_later(_BREATH_S, self._read_on)
        else:
            self._loop.add_reader(self._wires.events, self._read_events)

    def _right_over(self) -> None:
        # Counted from here, not from the end of the right: a host that stood still wakes both of us at once.
        self._overdue = self._loop.call_later(_OVERDUE_S, self._supervisor_overdue)

    def _supervisor_overdue(self) -> None:
        if not self._paused and self._finishing is None:
            _log.warning("supervisor_overdue", run_id=str(self._spec.run_id), attempt=self._spec.attempt)
            self._supervisor.kill()

    async def _finish(self) -> None:
        """From the supervisor's end to the facts: nobody of the attempt is left when ``wait`` returns."""
        # its descriptors close a moment before it can be collected, and nothing else tells without a thread
        while self._supervisor.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if not self._facts:
            run_id, attempt = str(self._spec.run_id), self._spec.attempt
            await asyncio.to_thread(stop_marked, lambda marked: marked.run_id == run_id and marked.attempt == attempt)
        self._loop.remove_reader(self._wires.events)
        with suppress(BlockingIOError):
            while data := os.read(self._wires.events, _READ_BYTES):
                self._stream.push(data)
        self._wires.close_ours()
        ended = self._conclude()
        for call in self._at_end:
            await call()
        self._stream.close()
        self._ended.set_result(ended)

    def _conclude(self) -> Ended:
        facts = self._facts
        reason = EndReason(facts.get("reason", EndReason.SUPERVISOR_LOST))
        if self._garbage_kill and reason is EndReason.KILLED:
            reason = EndReason.EVENT_GARBAGE
        code = int(facts.get("code", 0))
        seen = bool(facts) and reason is not EndReason.NOT_STARTED
        details = [f"event garbage: {sample}" for sample in self._stream.garbage_samples]
        if "errno" in facts:
            details.append(os.strerror(int(facts["errno"])))
        details.append(self._last_output())
        return Ended(
            reason=reason,
            exit_code=code if seen and code >= 0 else None,
            signal=-code if seen and code < 0 else None,
            out_of_memory=facts.get("oom") == "1",
            max_rss_bytes=int(facts.get("peak", 0)),
            cpu_s=float(facts.get("cpu", 0)),
            paused_s=float(facts.get("paused", 0)),
            last_word=self._stream.last_word,
            garbage_lines=self._stream.garbage_lines,
            dropped_events=self._stream.dropped,
            detail="\n".join(detail for detail in details if detail),
        )

    def _last_output(self) -> str:
        # No link that the step may have put there is followed: this goes into what the customer reads.
        with suppress(OSError, ValueError), open_plain(self._log_path) as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _DETAIL_BYTES))
            return log.read().decode(errors="replace").strip()
        return ""
