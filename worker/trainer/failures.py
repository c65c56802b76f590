"""How a step ends badly: with a class that says what follows from it, and a sentence for the customer."""

import errno
from typing import Final

from schemas.failures import FailureClass

_SCARCE_MEMORY: Final = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


class StepFailureError(Exception):
    """The step cannot be done, and we know why."""

    def __init__(self, failure_class: FailureClass, code: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.failure_class = failure_class
        self.code = code
        self.message = message
        self.detail = detail


class StepStoppedError(Exception):
    """SIGTERM asked for an end; what had to be kept is kept."""

    def __init__(self, steps_done: int | None = None) -> None:
        super().__init__("asked to stop")
        self.steps_done = steps_done


def bad_data(code: str, message: str, detail: str = "") -> StepFailureError:
    """A failure that only other data can mend."""
    return StepFailureError(FailureClass.DATA, code, message, detail)


def classified(error: BaseException) -> StepFailureError:
    """Translate any exception into the failure a step reports."""
    if isinstance(error, StepFailureError):
        return error
    text = f"{type(error).__name__}: {error}"[:2_000]
    if _is_memory(error, text):
        return StepFailureError(
            FailureClass.OUT_OF_MEMORY,
            "out_of_memory",
            "The machine's memory was not enough for this training.",
            text,
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}:
        return StepFailureError(
            FailureClass.INFRASTRUCTURE, "disk", "The training machine could not write to its disk.", text
        )
    return StepFailureError(
        FailureClass.BUG, "unexpected_error", "Training stopped because of a fault on our side.", text
    )


def _is_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    lowered = text.lower()  # torch raises RuntimeError on CPU and OutOfMemoryError on GPU: only words tell
    return isinstance(error, RuntimeError) and any(words in lowered for words in _SCARCE_MEMORY)
