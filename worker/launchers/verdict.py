"""From the facts of a step's end to what they mean. Pure."""

from dataclasses import dataclass
from typing import Final

from schemas.events import Failure, Result, Stopped
from schemas.failures import FailureClass
from schemas.steps import STOPPED_EXIT_CODE
from worker.errors import StepFailed
from worker.launchers.interface import Ended, EndReason

_MEMORY_ERRORS: Final = ("MemoryError", "OutOfMemoryError", "CUDA out of memory")


@dataclass(frozen=True, slots=True)
class StepDone:
    """The step said its result and exited with 0."""

    result: Result


@dataclass(frozen=True, slots=True)
class StepStopped:
    """The step was asked to stop and did; its last registered checkpoint counts."""

    steps_done: int | None


Verdict = StepDone | StepStopped | StepFailed
"""``StepFailed`` is the error that the caller raises when it agrees."""


_FROM_OUTSIDE: Final = {
    EndReason.NOT_STARTED: (
        FailureClass.INFRASTRUCTURE,
        "trainer_not_started",
        "The training program could not be started.",
    ),
    EndReason.SUPERVISOR_LOST: (
        FailureClass.INFRASTRUCTURE,
        "supervisor_lost",
        "The training was interrupted on its machine.",
    ),
    EndReason.UNFED: (
        FailureClass.INFRASTRUCTURE,
        "right_expired",
        "The training lost the connection to its worker.",
    ),
    EndReason.OWNER_GONE: (
        FailureClass.INFRASTRUCTURE,
        "owner_gone",
        "The training lost the connection to its worker.",
    ),
    EndReason.TAKEN_OVER: (
        FailureClass.INFRASTRUCTURE,
        "taken_over",
        "The training is continued by another worker.",
    ),
    EndReason.KILLED: (FailureClass.INFRASTRUCTURE, "killed", "The training was ended from outside."),
    EndReason.EVENT_GARBAGE: (
        FailureClass.BUG,
        "event_garbage",
        "The training program reported its progress in a way that cannot be read.",
    ),
    EndReason.MEMORY_LIMIT: (
        FailureClass.OUT_OF_MEMORY,
        "memory_limit",
        "The training needed more memory than it may use.",
    ),
}
"""What ended the trainer leaves nothing to ask: class, code, sentence."""


def classify(ended: Ended) -> Verdict:
    """What a step's end means.

    A trainer that its owner killed is reported as ``killed``: why (stalled, cancelled, the lease lost) is
    known to the owner only, who need not ask.
    """
    if ended.reason is not EndReason.EXITED:
        return StepFailed(*_FROM_OUTSIDE[ended.reason], ended.detail)
    match ended.last_word:
        case Failure() as word:
            return StepFailed(word.failure_class, word.code, word.message, word.detail or ended.detail)
        case Result() as result if ended.exit_code == 0:
            return StepDone(result)
        case Stopped(steps_done=steps_done) if ended.exit_code == STOPPED_EXIT_CODE:
            return StepStopped(steps_done)
    return _without_a_word(ended)


def _without_a_word(ended: Ended) -> StepFailed:
    last_line = next(reversed(ended.detail.splitlines()), "")
    if ended.out_of_memory or any(error in last_line for error in _MEMORY_ERRORS):
        code = "killed_for_memory" if ended.out_of_memory else "memory_error"
        sentence = "The training needed more memory than there is."
        return StepFailed(FailureClass.OUT_OF_MEMORY, code, sentence, ended.detail)
    if ended.exit_code == 0:
        sentence = "The training program ended without a result."
        return StepFailed(FailureClass.BUG, "no_result", sentence, ended.detail)
    code = f"exit_{ended.exit_code}" if ended.signal is None else f"signal_{ended.signal}"
    return StepFailed(FailureClass.CRASHED, code, "The training program ended unexpectedly.", ended.detail)
