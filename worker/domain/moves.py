"""Every move out of a status but the claim: what an ending asks of the database. Pure, but for the ids it makes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never
from uuid import UUID, uuid4

from schemas.failures import FailureClass
from schemas.status import TrainingStatus
from worker.domain.lost_workers import Orphan, is_ended, suspects_of
from worker.domain.outcome import Cancelled, Failed, HandedOver, Lost, Outcome, Succeeded
from worker.domain.retry import GiveUp, Retry, after_failure, pause_s
from worker.domain.run import ClaimedRun, Fence


@dataclass(frozen=True)
class Limits:
    """How much a run may use up."""

    failures: int = 3
    hand_overs: int = 50
    wait_s: float = 7 * 86_400.0
    run_s: float = 86_400.0
    lost_workers: int = 3
    """In a row without getting further, before the only suspect is ended."""


@dataclass(frozen=True)
class Settled:
    """What the database made of an ending."""

    status: TrainingStatus
    sequence: int


@dataclass(frozen=True)
class Move:
    """One move out of a status, ready for the ``settle_runs`` statement. Its id is made before the first try."""

    fence: Fence
    from_status: TrainingStatus
    to_status: TrainingStatus
    transition_id: UUID
    fields: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """The move as the statement reads it."""
        return {
            "run_id": str(self.fence.run_id),
            "attempt": self.fence.attempt,
            "from_status": int(self.from_status),
            "to_status": int(self.to_status),
            "transition_id": str(self.transition_id),
        } | self.fields


class Moves:
    """Makes moves from endings.

    Args:
        limits: what a run may use up.
        random: uniform in [0, 1), for jitter.
    """

    def __init__(self, limits: Limits, random: Callable[[], float]) -> None:
        self._limits = limits
        self._random = random

    def after(self, run: ClaimedRun, outcome: Outcome) -> Move | None:
        """The move that an outcome asks for; None where nothing may be written."""
        match outcome:
            case Succeeded():
                to, fields = TrainingStatus.SUCCESS, _success_fields(outcome)
            case Failed():
                to, fields = self._after_failure(run.failures, outcome, run.waits)
            case HandedOver() if run.hand_overs + 1 > self._limits.hand_overs:
                to, fields = self._after_failure(run.failures, _TOO_MANY_HAND_OVERS)
            case HandedOver():
                to = TrainingStatus.READY_TO_RUN
                fields = {
                    "reason_code": "handed_over",
                    "handed_over": True,
                    "max_wait_s": self._limits.wait_s,
                }
            case Cancelled():
                to, fields = TrainingStatus.NOT_RUNNING, {"reason_code": "cancelled"}
            case Lost():
                return None
            case _:
                assert_never(outcome)
        return Move(run.fence, TrainingStatus.RUNNING, to, uuid4(), fields)

    def of_lost_worker(self, orphans: Sequence[Orphan]) -> list[Move]:
        """The moves that rescue makes of a lost worker's runs, in the given order.

        Each is refused by the database when the owner renewed meanwhile.

        Args:
            orphans: all runs that one worker left behind: who is a suspect depends on the others.
        """
        suspects = suspects_of(orphans)
        return [self._of_orphan(orphan, suspects) for orphan in orphans]

    def _of_orphan(self, orphan: Orphan, suspects: Sequence[Orphan]) -> Move:
        to, fields = TrainingStatus.READY_TO_RUN, self._lost(orphan, len(suspects))
        if orphan in suspects:
            losses = orphan.losses + 1
            fields |= self._counted(orphan, losses, suspects)
            if is_ended(losses, suspects, self._limits.lost_workers):
                to, fields = TrainingStatus.FAILED, fields | _lost_repeatedly(orphan, losses)
            elif orphan.hand_overs + 1 > self._limits.hand_overs:
                to, fields = self._after_failure(orphan.failures, _TOO_MANY_HAND_OVERS)
        return Move(orphan.fence, TrainingStatus.RUNNING, to, uuid4(), fields | {"only_if_lease_dead": True})

    def _lost(self, orphan: Orphan, suspects: int) -> dict[str, Any]:
        """A bystander's fields: back to the queue at once.

        No number of these ends it, or others' runs could. Its running time does (``Limits.run_s``): each loss has
        taken a lease of it.
        """
        return {
            "reason_code": "bystander_of_lost_worker",
            "bystander": True,
            "max_wait_s": self._limits.wait_s,
            "failure_class": FailureClass.LOST_WORKER.value,
            "failure_code": "bystander_of_lost_worker",
            "failure_reason": "The machine that trained the model was lost.",
            "failure_detail": f"worker {orphan.worker_id} had not renewed {orphan.dead_s:.0f} s after the lease, "
            f"phase {orphan.phase}, steps {orphan.steps_done}, suspects {suspects}",
        }

    def _counted(self, orphan: Orphan, losses: int, suspects: Sequence[Orphan]) -> dict[str, Any]:
        """What is different for a suspect. After a second loss equal suspects come back one after the other."""
        turn = 1 + suspects.index(orphan) if losses > 1 else 1
        return {
            "reason_code": "lease_expired",
            "failure_code": "lease_expired",
            "bystander": False,
            "handed_over": True,
            "worker_losses": losses,
            "lost_in_phase": orphan.furthest_phase,
            "lost_at_steps": orphan.furthest_steps,
            "delay_s": turn * pause_s(FailureClass.LOST_WORKER, orphan.losses, self._random),
        }

    def of_overdue(self, fence: Fence, waited_s: float) -> Move:
        """The end of a run that nobody took in time."""
        fields = {
            "only_if_overdue": True,
            "reason_code": "waited_too_long",
            "failure_class": FailureClass.TIMEOUT.value,
            "failure_code": "waited_too_long",
            "failure_reason": f"The run waited {self._limits.wait_s / 3600:.0f} hours without a free machine.",
            "failure_detail": f"waited {waited_s:.0f} s before its last queueing; see WORKER_WAIT_LIMIT_S",
        }
        return Move(fence, TrainingStatus.READY_TO_RUN, TrainingStatus.FAILED, uuid4(), fields)

    @staticmethod
    def cancel_queued(fence: Fence) -> Move:
        """The end of a queued run that somebody cancelled."""
        fields = {"reason_code": "cancelled"}
        return Move(fence, TrainingStatus.READY_TO_RUN, TrainingStatus.NOT_RUNNING, uuid4(), fields)

    def _after_failure(self, failures: int, failed: Failed, waits: int = 0) -> tuple[TrainingStatus, dict[str, Any]]:
        fields: dict[str, Any] = {
            "reason_code": failed.code,
            "failure_class": failed.failure_class.value,
            "failure_code": failed.code,
            "failure_reason": failed.reason,
            "failure_detail": failed.detail[:20_000],
            "data_report": failed.data_report,
            "max_wait_s": self._limits.wait_s,
        }
        match after_failure(failed.failure_class, failures, self._limits.failures, self._random, waits=waits):
            case Retry(delay_s, counts):
                # Back-off is no waiting, but a pause for want of a place is: it comes to an end like any other.
                waits_s = 0.0 if counts else delay_s
                fields |= {"delay_s": delay_s, "failed": counts, "waits_s": waits_s}
                return TrainingStatus.READY_TO_RUN, fields
            case GiveUp():
                return TrainingStatus.FAILED, fields | {"failed": True}


_TOO_MANY_HAND_OVERS: Final = Failed(
    FailureClass.LOST_WORKER, "too_many_hand_overs", "The run was moved between machines too often."
)


def _lost_repeatedly(orphan: Orphan, losses: int) -> dict[str, Any]:
    return {
        "reason_code": "lost_worker_repeatedly",
        "failure_code": "lost_worker_repeatedly",
        "failure_reason": f"The training was stopped: {losses} times in a row its machine was lost before it got"
        " further.",
        "failure_detail": f"{losses} workers lost in phase {orphan.phase}, steps {orphan.steps_done}, the last one "
        f"{orphan.worker_id}; see WORKER_LOST_WORKER_LIMIT",
        "failed": True,
        "handed_over": False,
    }


def _success_fields(outcome: Succeeded) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "reason_code": outcome.gate.value,
        "figures": outcome.figures,
        "gate": outcome.gate.value,
        "data_report": outcome.data_report,
        "report_address": outcome.report_address,
    }
    if outcome.version is not None:
        fields |= {
            "version_address": outcome.version.address,
            "version_sha256": outcome.version.sha256,
            "version_figures": outcome.figures,
        }
    return json_safe(fields)


def json_safe(fields: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinities have no place in JSON: refuse them here, not in the database.

    Raises:
        ValueError: a figure is not a number.
    """
    json.dumps(fields, allow_nan=False)
    return fields
