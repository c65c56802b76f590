"""Gauges that need a look now and then: what waits, what is untold, what is dead, how late the loop is."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import Histogram

from worker.clock import Clock
from worker.errors import WorkerError
from worker.metrics import CAUSES, Metrics
from worker.store.outbox import OutboxStore
from worker.store.watching import Backlog, WatchStore

_SHARE: Final = 0.05
"""Of one database connection: what all workers' looks together may take."""
_LONGEST_PAUSE_S: Final = 300.0


async def watch_backlog(  # noqa: PLR0913 - wired in one place
    watching: WatchStore, outbox: OutboxStore, metrics: Metrics, *, every_s: float, alive_s: float, clock: Clock
) -> None:
    """Keep the gauges of what waits and runs in the database until cancelled."""
    pause_s = every_s
    while True:
        with contextlib.suppress(WorkerError):
            began = clock.monotonic()
            backlog = await watching.backlog(alive_s)
            show_backlog(metrics, backlog)
            untold, oldest_s = await outbox.backlog()
            metrics.outbox_rows.set(untold)
            metrics.outbox_age_s.set(oldest_s)
            metrics.looked_at.set(time.time())
            pause_s = next_look_s(clock.monotonic() - began, backlog.workers, every_s)
        await clock.sleep(pause_s * (0.9 + 0.2 * clock.random()))


def next_look_s(took_s: float, workers: int, every_s: float) -> float:
    """Seconds until the next look: a long backlog and many workers may not make watching a load of its own."""
    return min(_LONGEST_PAUSE_S, max(every_s, took_s * max(1, workers) / _SHARE))


def show_backlog(metrics: Metrics, backlog: Backlog) -> None:
    """What was counted, as gauges."""
    for cause in CAUSES:
        runs, oldest_s = backlog.waiting.get(cause, (0, 0.0))
        metrics.waiting.labels(cause).set(runs)
        metrics.oldest_waiting_s.labels(cause).set(oldest_s)
    metrics.organizations_waiting.set(backlog.organizations_waiting)
    metrics.longest_queue.set(backlog.longest_queue)
    metrics.running.set(backlog.running)
    metrics.expired_leases.set(backlog.expired_leases)
    metrics.workers.set(backlog.workers)
    metrics.all_slots.set(backlog.slots)


async def watch_dead_letters(
    count: Callable[[], Awaitable[int]], metrics: Metrics, *, every_s: float, clock: Clock
) -> None:
    """Keep the gauge of dead letters until cancelled; while the broker is away it keeps its last value."""
    while True:
        with contextlib.suppress(WorkerError, TimeoutError):
            async with asyncio.timeout(every_s):
                metrics.dead_letters.set(await count())
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # swallowed on the way: aiormq answers a cancel with an error of its own
        await clock.sleep(every_s * (0.9 + 0.2 * clock.random()))


async def watch_host(
    scratch: Path, devices: Callable[[], tuple[int, int]], metrics: Metrics, *, every_s: float, clock: Clock
) -> None:
    """Keep the gauges of this host until cancelled: room on the scratch disk, devices there and held."""
    while True:
        with contextlib.suppress(OSError):
            there, held = await asyncio.to_thread(devices)
            metrics.devices.set(there)
            metrics.devices_used.set(held)
            folder = next(folder for folder in (scratch, *scratch.parents) if folder.exists())
            usage = await asyncio.to_thread(shutil.disk_usage, folder)
            metrics.scratch_free_bytes.set(usage.free)
            metrics.scratch_bytes.set(usage.total)
        await clock.sleep(every_s)


def devices_held(folder: Path, names: Sequence[str]) -> tuple[int, int]:
    """How many devices there are and how many somebody on this host holds, as the kernel lists its locks.

    Trying the locks instead would make a device look taken to whoever tries it at the same moment.
    """
    inodes = set()
    for name in names:
        with contextlib.suppress(OSError):
            inodes.add(str((folder / f"device-{name}.lock").stat().st_ino))
    locked = set()
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        if "FLOCK" in words and "->" not in words:  # an arrow marks those that only wait for a lock
            locked.add(words[-3].rsplit(":", 1)[-1])
    return len(names), len(inodes & locked)


class MeasuresLag(Protocol):
    """Metrics that have a histogram of the event loop's lag: the worker's, and the API's."""

    loop_lag_s: Histogram


async def watch_loop(metrics: MeasuresLag, *, every_s: float = 0.5) -> None:
    """Measure how late the event loop is: whatever blocks it delays heartbeats."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_s
        await asyncio.sleep(every_s)
        metrics.loop_lag_s.observe(max(0.0, loop.time() - due))
