"""A program running in the background on a leash: started, watched, frozen, killed, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deploy.local.leash import signal_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

LEASH = Path(__file__).with_name("leash.py")
POLL_S = 0.05
STOP_S = 25.0  # the leash's own patience is 10 + 3 + 10 s

Result = TypeVar("Result")


class LocalServiceError(RuntimeError):
    """A local service could not be had; the message says what was tried and what to do."""


class Program:
    """One process (and what it starts) that cannot outlive the Python process that started it."""

    def __init__(self, name: str, log: Path, *, stop_signal: int = signal.SIGTERM) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        self._stop_signal = stop_signal
        self._leash: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str], *, uid: int | None = None) -> None:
        """Start it; returns as soon as the process exists.

        Raises:
            LocalServiceError: it could not be executed at all.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        identity = "same" if uid is None else str(uid)
        leash = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), str(int(self._stop_signal))]
        process = subprocess.Popen(
            [*leash, str(self.log), identity, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",  # never hold somebody's folder
        )
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            reason = process.stderr.read().decode(errors="replace").strip()
            process.wait()
            raise LocalServiceError(f"{self.name} could not be started: {reason or command[0]}")
        process.stdout.close()
        process.stderr.close()
        self._leash, self.pid = process, int(line)

    @property
    def running(self) -> bool:
        """Whether the program has not ended yet (frozen counts as running)."""
        return self._leash is not None and self._leash.poll() is None

    def wait(self, timeout_s: float = STOP_S) -> None:
        """Wait until the program is gone."""
        if self._leash is not None:
            self._leash.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, the way a machine's out-of-memory killer does it; returns when it is gone."""
        self._signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Stop signal, 10 s, stop signal, 3 s, SIGKILL, then what it left behind; returns when all is gone."""
        if self._leash is not None and self.running:
            self._leash.terminate()
            self.wait()

    def freeze(self) -> None:
        """SIGSTOP to it and to every process it started: alive, and silent."""
        if self.running:
            signal_tree(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self.running:
            signal_tree(self.pid, signal.SIGCONT)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log, for a message that explains a failure."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def wait_until(claim: Callable[[], bool], *, timeout_s: float, what: str, program: Program) -> None:
    """Wait for a fact about a program.

    Raises:
        LocalServiceError: the program ended, or the fact did not come true in `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not claim():
        ended = not program.running
        if ended or time.monotonic() > deadline:
            how = "ended" if ended else f"did not within {timeout_s:.0f} s"
            raise LocalServiceError(f"{program.name} {how}: {what}. Last lines of {program.log}:\n{program.log_tail()}")
        time.sleep(POLL_S)


def run_blocking(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run async client code to its end from synchronous code, whether or not a loop runs in this thread."""
    box: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            box.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=target, name="local-services")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return box[0]
