"""Dead leases find a new owner, and runs that waited too long an end."""

import asyncio
from datetime import datetime
from typing import Final

import structlog

from schemas.failures import FailureClass
from schemas.status import TrainingStatus
from worker.clock import Clock
from worker.domain.moves import Move, Settled
from worker.errors import DatabaseAway, DatabaseRefused
from worker.metrics import Metrics
from worker.store.runs import RunStore
from worker.store.workers import WorkerStore

_BATCH: Final = 100
_log = structlog.get_logger(__name__)


class Rescuer:
    """Sweeps for dead leases, but only after it has itself seen the database without a gap for one whole lease.

    After an outage, a step of the database's clock, or after this process was frozen, owners thus renew first: none of
    these changes an attempt number.

    Args:
        workers: for the look at the database.
        worker_id: this process.
        sweep_s: seconds between sweeps.
        lease_s: seconds a lease lasts; no gap in the looks may be longer than a quarter of it.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        runs: RunStore,
        workers: WorkerStore,
        worker_id: str,
        *,
        sweep_s: float,
        lease_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._runs = runs
        self._workers = workers
        self._worker_id = worker_id
        self._look_s = min(sweep_s, lease_s / 10)
        self._sweep_s = sweep_s
        self._lease_s = lease_s
        self._clock = clock
        self._metrics = metrics
        self._seen_since: float | None = None
        self._seen_at = clock.monotonic()
        self._clocks_differ_s: float | None = None
        """The database's clock less our own, at the last look."""

    async def run(self) -> None:
        """Look and sweep until cancelled."""
        swept_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._look_s)
            now = self._clock.monotonic()
            if await self.look() and now - swept_at >= self._sweep_s:
                swept_at = now
                await self.sweep()

    async def look(self) -> bool:
        """Look at the database; whether it has been there, and its clock gone on evenly, for a whole lease."""
        sent_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._lease_s / 4):
                now = await self._workers.look(self._worker_id)
        except (DatabaseAway, DatabaseRefused, TimeoutError):
            self._seen_since = None
            return False
        gap = sent_at - self._seen_at > self._lease_s / 4
        self._seen_at = self._clock.monotonic()
        stepped = self._clock_stepped(now)
        if self._seen_since is None or gap or stepped:
            self._seen_since = sent_at  # the first look, or one after a gap of the database, of ourselves, of time
        return self._seen_at - self._seen_since >= self._lease_s

    def _clock_stepped(self, now: datetime | None) -> bool:
        """Whether leases look dead only because the database's clock was set, or another server took over."""
        if now is None:
            return False
        before, self._clocks_differ_s = self._clocks_differ_s, now.timestamp() - self._seen_at
        return before is not None and abs(self._clocks_differ_s - before) > self._lease_s / 4

    async def sweep(self) -> int:
        """Settle dead leases and overdue waits; how many were moved."""
        try:
            orphans = await self._runs.orphans(_BATCH)
            overdue = await self._runs.overdue_waiting(_BATCH)
            moves = [move for of_one_worker in orphans for move in self._runs.moves.of_lost_worker(of_one_worker)]
            moves += [self._runs.moves.of_overdue(fence, waited_s) for fence, waited_s in overdue]
            settled = await asyncio.gather(*(self._runs.settle(move) for move in moves))
        except (DatabaseAway, DatabaseRefused) as error:
            _log.warning("sweep not finished", error=str(error))
            return 0
        for move, end in zip(moves, settled, strict=True):
            if end is not None:
                self._tell(move, end)
        return sum(end is not None for end in settled)

    def _tell(self, move: Move, end: Settled) -> None:
        reason, failure_class = move.fields["reason_code"], FailureClass(move.fields["failure_class"])
        if move.from_status is TrainingStatus.RUNNING:
            self._metrics.rescued.labels(reason).inc()
        self._metrics.transitions.labels(end.status.name.lower()).inc()
        self._metrics.failures.labels(failure_class.value).inc()
        self._metrics.run_ended(end.status, failure_class)
        _log.warning(
            "rescued",
            run=str(move.fence.run_id),
            attempt=move.fence.attempt,
            to=end.status.name,
            reason=reason,
            detail=move.fields["failure_detail"],
        )
