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
        case Stopped():
            # By nobody here: a cluster that wants its node back, or whose time limit comes. The checkpoint is kept.
            return HandedOver()
        case StepFailed():
            return Failed(error.failure_class, error.code, error.reason, error.detail)
        case LauncherUnavailable():
            return _failed(FailureClass.CAPACITY, error.code, error.detail)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _failed(FailureClass.INFRASTRUCTURE, "disk_full", str(error))
        case OSError(errno=int(number)):
            name = errno.errorcode.get(number, str(number)).lower()
            return _failed(FailureClass.INFRASTRUCTURE, f"os_{name}", _traceback(error))
    for kind, failure_class, code in _KNOWN:
        if isinstance(error, kind):
            return _failed(failure_class, code, str(error))
    return _failed(FailureClass.BUG, type(error).__name__, _traceback(error))


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-_LONGEST_DETAIL:]


def _failed(failure_class: FailureClass, code: str, detail: str) -> Failed:
    return Failed(failure_class, code, RULES[failure_class].customer, detail)
