"""The story of one attempt, from claim to end."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import structlog

from schemas.failures import FailureClass
from schemas.status import Phase, TrainingStatus
from worker.domain.moves import Settled
from worker.domain.outcome import Cancelled, Failed, HandedOver, Lost, Outcome, Succeeded
from worker.domain.run import ClaimedRun
from worker.errors import DatabaseRefused
from worker.pipeline import phases
from worker.pipeline.attempt import Attempt, Ending
from worker.pipeline.failures import outcome_of
from worker.pipeline.heartbeat import Heartbeat
from worker.pipeline.parts import Parts
from worker.pipeline.patience import until_answered
from worker.tracing import trace_of

_OUTCOMES: Final = {
    Succeeded: "succeeded",
    Failed: "failed",
    HandedOver: "handed_over",
    Cancelled: "cancelled",
    Lost: "lost",
}
Story = Callable[[Attempt, Parts], Coroutine[Any, Any, Succeeded]]
_log = structlog.get_logger(__name__)


async def train_and_publish(attempt: Attempt, parts: Parts) -> Succeeded:
    """What a run does: each phase reads what the one before left."""
    with _phase(attempt, parts, Phase.LOAD):
        await asyncio.to_thread(attempt.folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        inputs = await phases.load(attempt, parts)
    with _phase(attempt, parts, Phase.PREPARE):
        prepared = await phases.prepare(attempt, parts, inputs)
    with _phase(attempt, parts, Phase.TRAIN):
        trained = await phases.train(attempt, parts, inputs, prepared)
    with _phase(attempt, parts, Phase.EVALUATE):
        evaluated = await phases.evaluate(attempt, parts, inputs, prepared, trained)
    with _phase(attempt, parts, Phase.PUBLISH):
        return await phases.publish(attempt, parts, inputs, prepared, trained, evaluated)


class Runner:
    """Takes a claimed run through its story to its end, whatever happens on the way.

    Args:
        story: what a run does.
        scratch: folder on this host for attempts under way.
        hand_over_s: time a trainer gets to write its checkpoint when asked to stop.
    """

    def __init__(self, parts: Parts, heartbeat: Heartbeat, story: Story, *, scratch: Path, hand_over_s: float) -> None:
        self._parts = parts
        self._heartbeat = heartbeat
        self._story = story
        self._scratch = scratch
        self._hand_over_s = hand_over_s

    async def run(self, run: ClaimedRun, claimed_at: float) -> None:
        """One attempt. Raises nothing: what goes wrong is an outcome.

        Args:
            run: just claimed.
            claimed_at: monotonic second before the claim was sent; the lease counts from there.
        """
        facts: dict[str, str | int] = {"run": str(run.id), "attempt": run.attempt}
        facts |= {"organization": run.organization_id, "model": run.custom_model_id}
        tracing, trace = self._parts.tracing, trace_of(run.id, run.traceparent)
        if run.attempt == 1:
            tracing.record("wait for a slot", run.created_at, trace, **facts)
        with structlog.contextvars.bound_contextvars(**facts), tracing.span("attempt", trace, **facts):
            attempt = self._begin(run, claimed_at)
            try:
                outcome = await self._live(attempt)
                await self._settle(attempt, outcome)
            finally:
                self._heartbeat.release(attempt)
                if not attempt.taken_over and attempt.folder.exists():  # one look is cheaper than a thread
                    await asyncio.to_thread(shutil.rmtree, attempt.folder, ignore_errors=True)

    def _begin(self, run: ClaimedRun, claimed_at: float) -> Attempt:
        folder = self._scratch / str(run.id) / str(run.attempt)
        attempt = Attempt(
            run,
            folder,
            folder / "log.txt",
            claimed_at + self._parts.timing.pause_s,
            self._parts.clock.monotonic,
        )
        if run.cancel_requested:
            attempt.end(Ending.CANCELLED)
        self._heartbeat.hold(attempt)
        _log.info("attempt begins", failures=run.failures, hand_overs=run.hand_overs)
        return attempt

    # --- living --------------------------------------------------------------------------------------------------

    async def _live(self, attempt: Attempt) -> Outcome:
        """Follow the story until it ends, or somebody wants it to."""
        story = asyncio.create_task(self._story(attempt, self._parts))
        left_s = self._parts.timing.run_limit_s - attempt.run.ran_s
        deadline = attempt.started_at + left_s
        try:
            while not story.done():
                wish = asyncio.create_task(attempt.ending_changes())
                now = self._parts.clock.monotonic()
                await asyncio.wait({story, wish}, timeout=max(0, deadline - now), return_when=asyncio.FIRST_COMPLETED)
                wished = wish.done()
                wish.cancel()
                if wished and not story.done():
                    deadline = min(deadline, await self._wind_down(attempt, story))
                elif not story.done() and self._parts.clock.monotonic() >= deadline:
                    story.cancel()
                    await asyncio.wait({story})
            return self._outcome(attempt, story)
        finally:
            if not story.done():
                story.cancel()
                await asyncio.wait({story})

    async def _wind_down(self, attempt: Attempt, story: asyncio.Task[Succeeded]) -> float:
        """Begin the end that was wished for; the monotonic second at which patience ends."""
        patience_s = 0.0
        # What is staged finishes; a trainer gets time for its checkpoint; anything else is repeated cheaply.
        if attempt.ending is Ending.HAND_OVER and (attempt.staged or await attempt.ask_trainer_to_stop()):
            patience_s = self._hand_over_s
        if not patience_s:
            story.cancel()
            await asyncio.wait({story})
        return self._parts.clock.monotonic() + patience_s

    def _outcome(self, attempt: Attempt, story: asyncio.Task[Succeeded]) -> Outcome:
        """What the story came to, as one of the closed union."""
        # Asked for before anything else: an exception that nobody asks for is one that asyncio reports.
        error = None if story.cancelled() else story.exception()
        if attempt.ending is Ending.LOST:
            return Lost()
        if attempt.ending is Ending.CANCELLED:
            return Cancelled()
        if story.cancelled():
            return self._timed_out(attempt) if attempt.ending is None else HandedOver()
        if error is None:
            return story.result()
        if attempt.ending is not None:
            return HandedOver()  # a step cut short by its end says nothing about the run
        return outcome_of(error)

    def _timed_out(self, attempt: Attempt) -> Failed:
        hours = self._parts.timing.run_limit_s / 3600
        return Failed(
            FailureClass.TIMEOUT,
            "ran_too_long",
            f"The training took longer than {hours:g} hours.",
            f"in phase {attempt.phase.value}; see WORKER_RUN_LIMIT_S",
        )

    # --- ending --------------------------------------------------------------------------------------------------

    async def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Say in the database how the attempt ended: the one place where a run becomes a success."""
        attempt.settling = True
        await self._keep_log(attempt)
        with self._parts.tracing.span("settle", outcome=type(outcome).__name__):
            settled = await self._written(attempt, outcome)
            self._parts.tracing.note(to="lost" if settled is None else settled.status.name)
        self._tell(attempt, outcome, settled)

    async def _written(self, attempt: Attempt, outcome: Outcome) -> Settled | None:
        """What the database made of the outcome; None: the run was not ours any more."""
        try:
            return await self._moved(attempt, outcome)
        except (DatabaseRefused, ValueError) as error:  # such as a figure that is no number
            _log.exception("the database refused the outcome", outcome=type(outcome).__name__)
            sentence = "The training failed because of a mistake of ours."
            return await self._moved(attempt, Failed(FailureClass.BUG, "outcome_refused", sentence, str(error)))

    async def _moved(self, attempt: Attempt, outcome: Outcome) -> Settled | None:
        runs = self._parts.runs
        move = runs.moves.after(attempt.run, outcome)
        if move is None:
            return None
        return await until_answered(lambda: runs.settle(move), self._parts.clock, what="settle")

    async def _keep_log(self, attempt: Attempt) -> None:
        """The run's own log stays with its artifacts; losing it loses no run."""
        address = f"runs/{attempt.run.id}/{attempt.run.attempt}/log.txt"
        try:
            if attempt.log.is_file():  # as above
                await self._parts.storage.put_file(attempt.log, address)
                await self._parts.runs.record_log(attempt.fence, address)
        except Exception as error:  # noqa: BLE001 - whatever it is, the outcome matters more
            _log.warning("log not kept", error=str(error))

    def _tell(self, attempt: Attempt, outcome: Outcome, settled: Settled | None) -> None:
        metrics = self._parts.metrics
        seconds = self._parts.clock.monotonic() - attempt.started_at
        metrics.attempts.labels(_OUTCOMES[type(outcome)] if settled is not None else "lost").inc()
        if settled is None:
            metrics.lost_runs.inc()
            _log.warning("run lost: another attempt or a cancel owns it", outcome=type(outcome).__name__)
            return
        metrics.transitions.labels(settled.status.name.lower()).inc()
        metrics.run_s.labels(settled.status.name.lower()).observe(seconds)
        facts: dict[str, object] = {"to": settled.status.name, "seconds": round(seconds, 2)}
        # The only other way to fail is to be handed over too often.
        why = outcome.failure_class if isinstance(outcome, Failed) else FailureClass.LOST_WORKER
        metrics.run_ended(settled.status, why)
        if isinstance(outcome, Failed):
            metrics.failures.labels(outcome.failure_class.value).inc()
            facts |= {
                "failure_class": outcome.failure_class.value,
                "code": outcome.code,
                "reason": outcome.reason,
            }
        if isinstance(outcome, Succeeded) and settled.status is TrainingStatus.SUCCESS:
            metrics.gates.labels(outcome.gate.value).inc()
            facts |= {"gate": outcome.gate.value}
        _log.info("attempt ended", outcome=type(outcome).__name__, **facts)


class _phase:  # noqa: N801 - reads as a verb in the story
    """One phase: visible on the run, timed, counted."""

    def __init__(self, attempt: Attempt, parts: Parts, phase: Phase) -> None:
        self._attempt, self._parts, self._name = attempt, parts, phase
        self._began: Final = parts.clock.monotonic()
        self._span: Final = parts.tracing.span(f"phase {phase}")

    def __enter__(self) -> None:
        self._attempt.enter(self._name)
        self._parts.metrics.phase.labels(self._name.value).inc()
        self._span.__enter__()
        _log.info("phase begins", phase=self._name.value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        seconds = self._parts.clock.monotonic() - self._began
        self._attempt.phase_seconds[self._name.value] = seconds
        self._parts.metrics.phase.labels(self._name.value).dec()
        self._parts.metrics.phase_s.labels(self._name.value).observe(seconds)
