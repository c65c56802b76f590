"""What the facts of an end mean."""

import pytest

from schemas.events import Failure, Result, Stopped
from schemas.failures import FailureClass
from worker.errors import StepFailed
from worker.launchers.interface import Ended, EndReason
from worker.launchers.verdict import StepDone, StepStopped, classify


def ended(**facts) -> Ended:
    return Ended(
        **{
            "reason": EndReason.EXITED,
            "exit_code": 0,
            "signal": None,
            "out_of_memory": False,
            "max_rss_bytes": 0,
            "cpu_s": 0.0,
            "paused_s": 0.0,
            "last_word": None,
            **facts,
        }
    )


FAILURE = Failure(failure_class=FailureClass.STALLED, code="c", message="m")


@pytest.mark.parametrize("reason", list(EndReason))
def test_every_reason_has_a_verdict(reason):
    assert classify(ended(reason=reason)) is not None


@pytest.mark.parametrize(
    ("facts", "failure_class", "code"),
    [
        ({"exit_code": 0}, FailureClass.BUG, "no_result"),
        ({"exit_code": 1, "last_word": Result()}, FailureClass.CRASHED, "exit_1"),
        ({"exit_code": 75}, FailureClass.CRASHED, "exit_75"),
        ({"exit_code": 0, "last_word": Stopped()}, FailureClass.BUG, "no_result"),
        ({"exit_code": None, "signal": 9}, FailureClass.CRASHED, "signal_9"),
        (
            {"exit_code": None, "signal": 9, "out_of_memory": True},
            FailureClass.OUT_OF_MEMORY,
            "killed_for_memory",
        ),
        (
            {"exit_code": 1, "detail": "trace\ntorch.OutOfMemoryError: CUDA out of memory."},
            FailureClass.OUT_OF_MEMORY,
            "memory_error",
        ),
        (
            {"exit_code": 1, "detail": "MemoryError was handled\nValueError: other"},
            FailureClass.CRASHED,
            "exit_1",
        ),
        ({"exit_code": 65, "last_word": FAILURE}, FailureClass.STALLED, "c"),
    ],
)
def test_failure_has_its_class_and_code(facts, failure_class, code):
    verdict = classify(ended(**facts))
    assert isinstance(verdict, StepFailed)
    assert (verdict.failure_class, verdict.code) == (failure_class, code)
    assert verdict.reason.endswith((".", "m"))


def test_only_exit_0_with_a_result_is_done():
    assert classify(ended(last_word=Result())) == StepDone(Result())


def test_only_exit_75_with_its_word_is_stopped():
    assert classify(ended(exit_code=75, last_word=Stopped(steps_done=7))) == StepStopped(7)


def test_a_result_said_before_the_owner_killed_it_is_no_success():
    assert isinstance(classify(ended(reason=EndReason.KILLED, last_word=Result())), StepFailed)
