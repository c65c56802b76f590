"""Gauges that need a look now and then: what waits, what is untold, how late the loop is."""

import asyncio
import contextlib

from worker.clock import Clock
from worker.errors import WorkerError
from worker.metrics import Metrics
from worker.store.outbox import OutboxStore
from worker.store.runs import RunStore


async def watch_backlog(runs: RunStore, outbox: OutboxStore, metrics: Metrics, *, every_s: float, clock: Clock) -> None:
    """Keep the gauges of waiting runs and untold events."""
    while True:
        with contextlib.suppress(WorkerError):
            counts = await runs.counts()
            metrics.running.set(counts["running"])
            metrics.waiting.set(counts["waiting"])
            metrics.organizations_waiting.set(counts["organizations_waiting"])
            metrics.oldest_waiting_s.set(counts["oldest_waiting_s"])
            untold, oldest_s = await outbox.backlog()
            metrics.outbox_rows.set(untold)
            metrics.outbox_age_s.set(oldest_s)
        await clock.sleep(every_s)


async def watch_loop(metrics: Metrics, *, every_s: float = 0.5) -> None:
    """Keep the gauge of how late the event loop is: whatever blocks it delays heartbeats."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_s
        await asyncio.sleep(every_s)
        metrics.loop_lag_s.set(max(0.0, loop.time() - due))
