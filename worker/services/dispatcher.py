"""Free slots ask Postgres for due runs. A bell shortens the wait; a lost bell costs a delay, not a run."""

import asyncio
from uuid import UUID, uuid4

import structlog

from worker.clock import Clock
from worker.domain.run import ClaimedRun
from worker.errors import DatabaseAway, DatabaseRefused
from worker.metrics import Metrics
from worker.pipeline.attempt import Ending
from worker.pipeline.heartbeat import Heartbeat
from worker.pipeline.patience import until_answered
from worker.pipeline.runner import Runner
from worker.store.runs import RunStore

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Claims as many runs as there are free slots and gives each to the runner.

    Args:
        poll_s: seconds between looks without a bell.
        lease_s: seconds a claim's first lease lasts.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        runs: RunStore,
        runner: Runner,
        heartbeat: Heartbeat,
        *,
        worker_id: str,
        slots: int,
        lease_s: float,
        poll_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._runs = runs
        self._runner = runner
        self._heartbeat = heartbeat
        self._worker_id = worker_id
        self._slots = slots
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._clock = clock
        self._metrics = metrics
        self._bell = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        metrics.slots.set(slots)

    def ring(self) -> None:
        """There may be something to do."""
        self._bell.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Claim until told to stop. What is under way goes on; see ``wind_down``."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._bell.clear()
                free = self._slots - len(self._under_way)
                claimed = await self._claim(free, stopped) if free else 0
                if claimed and claimed == free and self._slots > len(self._under_way):
                    continue
                await self._rest(stopped)
        finally:
            stopped.cancel()

    async def _claim(self, free: int, stopped: asyncio.Task[bool]) -> int:
        sent_at = self._clock.monotonic()
        ids = [uuid4() for _ in range(free)]
        try:
            claimed = await self._runs.claim(self._worker_id, free, self._lease_s, ids)
        except DatabaseAway as error:
            _log.warning("claim unanswered: database away", error=str(error))
            claimed = await self._claimed_unheard(ids, stopped)
        except DatabaseRefused:
            _log.exception("the database refused a claim")
            return 0
        for run in claimed:
            self._begin(run, sent_at)
        return len(claimed)

    async def _claimed_unheard(self, ids: list[UUID], stopped: asyncio.Task[bool]) -> list[ClaimedRun]:
        """What a claim took whose answer was lost. Forgotten, such a run would wait for its lease to die."""
        asking = asyncio.create_task(
            until_answered(lambda: self._runs.claims_of(ids), self._clock, what="find unheard claims")
        )
        await asyncio.wait({asking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            await asyncio.wait({asking}, timeout=self._poll_s)
        if not asking.done():
            asking.cancel()  # stopping, and still no database: the leases run out, others take over
            return []
        try:
            return asking.result()
        except DatabaseRefused:
            _log.exception("the database refused to tell what was claimed")
            return []

    def _begin(self, run: ClaimedRun, claimed_at: float) -> None:
        task = asyncio.create_task(self._runner.run(run, claimed_at), name=f"run {run.fence}")
        self._under_way.add(task)
        self._metrics.slots_used.set(len(self._under_way))
        self._metrics.transitions.labels("running").inc()
        if run.attempt == 1:
            self._metrics.start_s.observe(run.waited_s)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._metrics.slots_used.set(len(self._under_way))
        self._bell.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The runner promises not to raise; if it does, the lease runs out and another attempt begins.
            _log.error("runner raised", error=repr(error), exc_info=error)

    async def _rest(self, stopped: asyncio.Task[bool]) -> None:
        bell = asyncio.create_task(self._bell.wait())
        pause_s = self._poll_s * (0.75 + 0.5 * self._clock.random())
        await asyncio.wait({bell, stopped}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        bell.cancel()

    async def wind_down(self, grace_s: float, cut_short: asyncio.Event) -> None:
        """Hand every run over; after the grace, or when cut short, without waiting for checkpoints."""
        self._ask(Ending.HAND_OVER)
        cut = asyncio.create_task(cut_short.wait())
        try:
            await self._until_none_left(cut, grace_s)
            if self._under_way:
                _log.warning("hand-over cut short", left=len(self._under_way))
                self._ask(Ending.HAND_OVER_NOW)
                never = asyncio.create_task(asyncio.Event().wait())
                await self._until_none_left(never, max(10.0, grace_s / 4))
                never.cancel()
        finally:
            cut.cancel()
        for task in self._under_way:  # the database has not answered all this time: leases run out, others take over
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _until_none_left(self, cut: "asyncio.Task[bool]", patience_s: float) -> None:
        deadline = self._clock.monotonic() + patience_s
        while self._under_way and not cut.done():
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                return
            await asyncio.wait({cut, *self._under_way}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def _ask(self, ending: Ending) -> None:
        for attempt in self._heartbeat.attempts:
            attempt.end(ending)
