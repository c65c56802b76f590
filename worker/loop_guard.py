"""Ends a process whose event loop stands still, with the stack of every thread in its log.

A loop that does not turn renews no lease and answers nobody. Kubernetes restarts such a process after a while; compose,
a plain shell and systemd without ``WatchdogSec`` never do. So the process does it itself.

Two clocks measure how long the loop has stood still. Neither runs on while the process is stopped (SIGSTOP, a sleeping
laptop, a machine that is moved to another host) or gets no processor, so that nobody is ended for having slept:

- *Processor time*, by the kernel's ``ITIMER_PROF``. Its signal is handled in C by ``faulthandler``, which needs no GIL:
  it ends a loop that computes, even within one call of a library that never lets the GIL go.
- *Ticks* of a thread, each counted as one however late it comes: they end a loop that waits in a blocking call.

``faulthandler.dump_traceback_later`` alone would do with one, but its clock runs on while the process is stopped.
"""

import asyncio
import contextlib
import faulthandler
import json
import os
import signal
import threading
from types import TracebackType
from typing import Final, Self

from worker.service_manager import ServiceManager

_STDERR: Final = 2
_TICK_S: Final = 1.0
_DUMP_S: Final = 5.0
"""To write the stacks; a log that nobody reads must not keep the process alive."""


class LoopGuard:
    """Watches the running event loop from ``async with`` until its end.

    Args:
        limit_s: seconds that the loop may stand still; 0: for ever.
        manager: told with every turn that the process is well.
    """

    def __init__(self, limit_s: float, manager: ServiceManager) -> None:
        self._limit_s = limit_s
        self._manager = manager
        self._tick_s = min(_TICK_S, limit_s / 4) if limit_s else _TICK_S
        self._ticks = 0
        self._ended = threading.Event()
        self._turning: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        faulthandler.enable(_STDERR)  # also says where it stood when systemd's own watchdog sends SIGABRT
        if self._limit_s:
            faulthandler.register(signal.SIGPROF, _STDERR, all_threads=True, chain=True)  # then the default: the end
            threading.Thread(target=self._count_ticks, name="loop guard", daemon=True).start()
        self._turning = asyncio.create_task(self._turn(), name="loop guard")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._limit_s:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.unregister(signal.SIGPROF)
        if self._turning is not None:
            self._turning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._turning

    async def _turn(self) -> None:
        while True:
            self._ticks = 0
            if self._limit_s:
                signal.setitimer(signal.ITIMER_PROF, self._limit_s)
            self._manager.alive()
            await asyncio.sleep(self._tick_s)

    def _count_ticks(self) -> None:
        while not self._ended.wait(self._tick_s):
            self._ticks += 1
            # One more than fit in, for the first may have begun just before the loop stopped turning.
            if self._ticks * self._tick_s > self._limit_s:
                _end(self._limit_s)


def _end(limit_s: float) -> None:
    """Say where every thread is, and end without asking any of them."""
    threading.Timer(_DUMP_S, os._exit, (1,)).start()
    line = {"event": "event loop stood still: the process ends", "level": "critical", "limit_s": limit_s}
    os.write(_STDERR, json.dumps(line).encode() + b"\n")  # past the logger: the loop may hold its lock
    faulthandler.dump_traceback(_STDERR, all_threads=True)
    os._exit(1)
