"""From the facts of a step's end to what they mean. Pure."""

import signal
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


def classify(ended: Ended) -> Verdict:
    """What a step's end means.

    A trainer that its owner killed is reported as ``killed``: why it was killed (stalled, cancelled, the lease
    lost) is known to the owner only, who should not ask.
    """
    match ended.reason:
        case EndReason.NOT_STARTED:
            return _ours(ended, "trainer_not_started", "The training program could not be started.")
        case EndReason.SUPERVISOR_LOST:
            return _ours(ended, "supervisor_lost", "The training was interrupted on its machine.")
        case EndReason.UNFED | EndReason.OWNER_GONE:
            return _ours(ended, "right_expired", "The training lost its connection to its worker.")
        case EndReason.KILLED:
            return _ours(ended, "killed", "The training was ended from outside.")
        case EndReason.EVENT_GARBAGE:
            return StepFailed(
                FailureClass.BUG,
                "event_garbage",
                "The training program spoke a language nobody understands.",
                ended.detail,
            )
        case EndReason.MEMORY_LIMIT:
            return _out_of_memory(ended, "memory_limit")
        case EndReason.EXITED:
            return _classify_exit(ended)


def _classify_exit(ended: Ended) -> Verdict:
    if isinstance(ended.last_word, Failure):
        word = ended.last_word
        detail = word.detail or ended.detail
        return StepFailed(word.failure_class, word.code, word.message, detail)
    if ended.out_of_memory:
        return _out_of_memory(ended, "killed_for_memory")
    if ended.exit_code == 0:
        if isinstance(ended.last_word, Result):
            return StepDone(ended.last_word)
        return StepFailed(
            FailureClass.BUG, "no_result", "The training program ended without a result.", ended.detail
        )
    if ended.exit_code == STOPPED_EXIT_CODE:
        word_steps = ended.last_word.steps_done if isinstance(ended.last_word, Stopped) else None
        return StepStopped(word_steps)
    last_line = next(reversed(ended.detail.strip().splitlines()), "")
    if any(error in last_line for error in _MEMORY_ERRORS):
        return _out_of_memory(ended, "memory_error")
    if ended.signal is not None:
        code = signal.Signals(ended.signal).name.lower() if ended.signal in set(signal.Signals) else "signal"
    else:
        code = f"exit_{ended.exit_code}"
    return StepFailed(FailureClass.CRASHED, code, "The training program ended unexpectedly.", ended.detail)


def _out_of_memory(ended: Ended, code: str) -> StepFailed:
    return StepFailed(
        FailureClass.OUT_OF_MEMORY, code, "The training needed more memory than there is.", ended.detail
    )


def _ours(ended: Ended, code: str, message: str) -> StepFailed:
    return StepFailed(FailureClass.INFRASTRUCTURE, code, message, ended.detail)
