"""What went wrong, as an outcome with a class. Every error that may come out of a phase has its line here."""

import errno
import traceback
from typing import Final

from schemas.failures import FailureClass
from worker.domain.outcome import Failed, HandedOver, Lost
from worker.domain.retry import RULES
from worker.errors import NotStored, RunLost, StepFailed, StorageAway, StorageFull, TooLarge
from worker.launchers.interface import LauncherUnavailable
from worker.pipeline.steps import Stopped

_LONGEST_DETAIL: Final = 20_000
_KNOWN: Final[tuple[tuple[type[BaseException], FailureClass, str], ...]] = (
    (StorageFull, FailureClass.INFRASTRUCTURE, "storage_full"),
    (StorageAway, FailureClass.INFRASTRUCTURE, "storage_away"),
    (NotStored, FailureClass.INFRASTRUCTURE, "artifact_missing"),
    (TooLarge, FailureClass.INFRASTRUCTURE, "artifact_too_large"),
    (Stopped, FailureClass.CRASHED, "stopped_by_a_stranger"),
    (MemoryError, FailureClass.OUT_OF_MEMORY, "worker_memory"),
)
"""The first that fits counts: narrower ones stand first."""


def outcome_of(error: BaseException) -> Failed | HandedOver | Lost:  # noqa: PLR0911 - one line for each error
    """The ending that an error of a phase means."""
    match error:
        case RunLost():
            return Lost()
        case StepFailed(failure_class=FailureClass.INFRASTRUCTURE, code="right_expired"):
            # The lease could not be renewed for longer than a paused trainer is kept: an outage, not the run's failure.
            return HandedOver()
        case StepFailed():
            return Failed(error.failure_class, error.code, error.reason, error.detail)
        case LauncherUnavailable():
            return _failed(FailureClass.CAPACITY, error.code, error.detail)
        case OSError(errno=errno.ENOSPC):
            return _failed(FailureClass.INFRASTRUCTURE, "disk_full", str(error))
    for kind, failure_class, code in _KNOWN:
        if isinstance(error, kind):
            return _failed(failure_class, code, str(error))
    detail = "".join(traceback.format_exception(error))[-_LONGEST_DETAIL:]
    return _failed(FailureClass.BUG, type(error).__name__, detail)


def _failed(failure_class: FailureClass, code: str, detail: str) -> Failed:
    return Failed(failure_class, code, RULES[failure_class].customer, detail)
