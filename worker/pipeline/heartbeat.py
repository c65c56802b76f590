"""Leases are renewed here: on a timer and a connection of their own, all of a worker's in one statement."""

import asyncio
import contextlib
from typing import Final

import structlog

from schemas.status import Phase
from worker.clock import Clock
from worker.domain.run import Fence, Progress
from worker.errors import DatabaseAway, DatabaseRefused
from worker.metrics import Metrics
from worker.pipeline.attempt import Attempt, Ending
from worker.store.runs import RunStore
from worker.store.workers import WorkerStore

_RETRY_S: Final = 1.0
_log = structlog.get_logger(__name__)


class Heartbeat:
    """Renews, passes the right on to the trainers, and tells each attempt when its run is lost or cancelled.

    Args:
        runs: on a database connection that nothing else uses.
        workers: on the same.
        worker_id: this process.
        renew_s: seconds between renewals.
        lease_s: seconds a lease lasts, by the database's clock.
        pause_s: seconds a trainer may run after the last answered renewal was sent.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        runs: RunStore,
        workers: WorkerStore,
        worker_id: str,
        *,
        renew_s: float,
        lease_s: float,
        pause_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._runs = runs
        self._workers = workers
        self._worker_id = worker_id
        self._renew_s = renew_s
        self._lease_s = lease_s
        self._pause_s = pause_s
        self._clock = clock
        self._metrics = metrics
        self._attempts: dict[Fence, Attempt] = {}
        self._answered_at = clock.monotonic()
        metrics.renewal_age_s.set_function(lambda: clock.monotonic() - self._answered_at)
        self.drain_requested = asyncio.Event()

    @property
    def attempts(self) -> list[Attempt]:
        """What this worker owns."""
        return list(self._attempts.values())

    def hold(self, attempt: Attempt) -> None:
        """Renew this attempt's lease from now on."""
        self._attempts[attempt.fence] = attempt

    def release(self, attempt: Attempt) -> None:
        """The attempt has ended."""
        self._attempts.pop(attempt.fence, None)

    async def run(self) -> None:
        """Renew until cancelled. While the database is away, try every second."""
        while True:
            answered = await self.beat()
            await self._clock.sleep(self._renew_s if answered else min(_RETRY_S, self._renew_s))

    async def beat(self) -> bool:
        """One renewal; whether the database answered."""
        held = list(self._attempts.values())
        # Counted from before it was sent: an answer that came late cannot lengthen the right.
        sent_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._pause_s):
                fences = [attempt.fence for attempt in held]
                renewed = await self._runs.renew(self._worker_id, fences, self._lease_s) if fences else {}
                drain = await self._workers.sign_of_life(self._worker_id)
        except (DatabaseAway, DatabaseRefused, TimeoutError) as error:
            # Refused or away, the beat goes on: without it trainers would be paused before a hand-over's checkpoint.
            self._metrics.renewals.labels("unanswered").inc()
            self._metrics.database_up.set(0)
            _log.warning("leases not renewed", error=str(error), held=len(held))
            return False
        late = self._clock.monotonic() - self._answered_at > self._pause_s
        self._answered_at = self._clock.monotonic()
        self._metrics.database_up.set(1)
        self._metrics.renewals.labels("late" if late else "answered").inc()
        self._metrics.renewal_s.observe(self._answered_at - sent_at)
        if drain:
            self.drain_requested.set()
        for attempt in held:
            self._tell(attempt, renewed, sent_at)
        return True

    def _tell(self, attempt: Attempt, renewed: dict[Fence, bool], sent_at: float) -> None:
        if attempt.fence not in renewed:
            if not attempt.settling:  # else its end was committed while the renewal was under way
                self._metrics.renewals.labels("lost").inc()
                attempt.end(Ending.LOST)
            return
        attempt.renewed(sent_at + self._pause_s)
        if renewed[attempt.fence]:
            attempt.end(Ending.CANCELLED)


class ProgressWriter:
    """Writes how far the attempts are, several in one statement, never more often than ``every_s``."""

    def __init__(self, runs: RunStore, heartbeat: Heartbeat, *, every_s: float, clock: Clock, metrics: Metrics) -> None:
        self._runs = runs
        self._heartbeat = heartbeat
        self._every_s = every_s
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> None:
        """Write until cancelled. Progress that cannot be written is forgotten: the next one says more."""
        while True:
            await self._clock.sleep(self._every_s)
            now = self._clock.monotonic()
            attempts = self._heartbeat.attempts
            self._show(attempts, now)
            notes = [note for attempt in attempts if (note := attempt.unwritten_progress()) is not None]
            if notes:
                with contextlib.suppress(DatabaseAway):
                    await self._write(notes)

    async def _write(self, notes: list[Progress]) -> None:
        try:
            await self._runs.record_progress(notes)
        except DatabaseRefused as error:
            if len(notes) == 1:
                _log.warning("progress refused", run=str(notes[0].fence.run_id), error=str(error))
                return
            for note in notes:  # what is wrong with one run's progress is no other's affair
                await self._write([note])

    def _show(self, attempts: list[Attempt], now: float) -> None:
        self._metrics.stale_s.set(max((now - attempt.progress_at for attempt in attempts), default=0.0))
        self._metrics.longest_eta_s.set(max((attempt.eta_s or 0.0 for attempt in attempts), default=0.0))
        for phase in Phase:
            percents = [attempt.percent for attempt in attempts if attempt.phase is phase]
            self._metrics.progress.labels(phase.value).set(sum(percents) / len(percents) / 100 if percents else 0)
