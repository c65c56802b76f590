"""Free slots ask Postgres for due runs. A bell shortens the wait; a lost bell costs a delay, not a run."""

import asyncio
from collections.abc import Sequence

import structlog

from worker.clock import Clock
from worker.domain.run import Claim, ClaimedRun, Request
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
        self._taking_in: set[asyncio.Task[list[bool]]] = set()
        self._asked: dict[Claim, float] = {}
        """Claims that hold slots until their answer is known, with the monotonic second they were sent."""
        self._unheard: dict[Claim, float] = {}
        """Those whose answer was lost, with the same; kept for a lease."""
        self._next_hearing = 0.0
        self._stopping = False
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
                await self._hear(stopped)
                if not await self._claimed_for_all(self._ask_for_slots()):
                    await self._rest(stopped)
            self._stopping = True
            await asyncio.gather(*self._taking_in, return_exceptions=True)
            self._next_hearing = 0.0
            await self._hear(stopped)
        finally:
            stopped.cancel()

    async def take_in(self, requests: Sequence[Request]) -> list[bool]:
        """Register requests, and let the free slots claim in the same transaction; see ``RunStore.register``.

        It comes to its end even when the caller is cancelled: what was claimed must begin.

        Raises:
            DatabaseAway: what was claimed is found and begun later; registering again is harmless.
            DatabaseRefused: nothing has happened.
        """
        if self._stopping or self._free() <= 0:
            made = await self._runs.register(requests)
            self.ring()
            return made
        taking_in = asyncio.create_task(self._take_in(requests, self._ask_for_slots()))
        self._taking_in.add(taking_in)
        taking_in.add_done_callback(self._taken_in)
        return await asyncio.shield(taking_in)

    async def _take_in(self, requests: Sequence[Request], claim: Claim) -> list[bool]:
        try:
            made, claimed = await self._runs.register_and_claim(requests, claim)
        except DatabaseAway:
            self._lose(claim)
            self.ring()
            raise
        except DatabaseRefused:
            del self._asked[claim]
            raise
        self._begin(claim, claimed)
        if len(claimed) < sum(made) or len(claimed) == len(claim.transition_ids):
            self.ring()  # something was passed over, or more may be due than there were slots
        return made

    def _taken_in(self, task: "asyncio.Task[list[bool]]") -> None:
        self._taking_in.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, if there still is one

    # --- claims --------------------------------------------------------------------------------------------------

    def _free(self) -> int:
        """Slots that neither work nor have asked for work."""
        asked = sum(len(claim.transition_ids) for claim in self._asked)
        return self._slots - len(self._under_way) - asked

    def _ask_for_slots(self) -> Claim:
        """A claim for every free slot: they are taken until its answer is known."""
        claim = Claim.of(self._worker_id, self._lease_s, self._free())
        self._asked[claim] = self._clock.monotonic()
        return claim

    async def _claimed_for_all(self, claim: Claim) -> bool:
        """Whether every slot that asked was given a run, so that more may be waiting."""
        claimed: list[ClaimedRun] = []
        try:
            if claim.transition_ids:
                claimed = await self._runs.claim(claim)
        except DatabaseAway as error:
            _log.warning("claim unanswered: database away", error=str(error))
            self._lose(claim)
            return True
        except DatabaseRefused:
            _log.exception("the database refused a claim")
        self._begin(claim, claimed)
        return bool(claimed) and len(claimed) == len(claim.transition_ids) and self._free() > 0

    async def _hear(self, stopped: asyncio.Task[bool]) -> None:
        """Begin what claims took whose answers were lost. Forgotten, such a run would wait for its lease to die.

        A server may go on with a claim whose connection broke: what seems to have taken nothing is asked about again
        now and then, while its slots are free for other runs. Found later, a run begins in a slot too many.
        """
        now = self._clock.monotonic()
        if not self._unheard or now < self._next_hearing:
            return
        self._next_hearing = now + self._poll_s
        for claim, sent_at in tuple(self._unheard.items()):
            claimed = await self._claimed_unheard(claim, stopped)
            self._begin(claim, claimed)
            if claimed or now - sent_at > self._lease_s:
                del self._unheard[claim]

    def _lose(self, claim: Claim) -> None:
        self._unheard[claim] = self._asked[claim]
        self._next_hearing = 0.0

    async def _claimed_unheard(self, claim: Claim, stopped: asyncio.Task[bool]) -> list[ClaimedRun]:
        asking = asyncio.create_task(
            until_answered(lambda: self._runs.claims_of(claim), self._clock, what="find unheard claims")
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

    def _begin(self, claim: Claim, claimed: Sequence[ClaimedRun]) -> None:
        """Start what a claim took; the leases count from when it was sent."""
        sent_at = self._asked.pop(claim) if claim in self._asked else self._unheard[claim]
        for run in claimed:
            task = asyncio.create_task(self._runner.run(run, sent_at), name=f"run {run.fence}")
            self._under_way.add(task)
            self._metrics.transitions.labels("running").inc()
            if run.attempt == 1:
                self._metrics.start_s.observe(run.waited_s)
            task.add_done_callback(self._ended)
        self._metrics.slots_used.set(len(self._under_way))

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
