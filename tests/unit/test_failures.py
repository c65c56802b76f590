"""What an error that comes out of a phase means for the run."""

from __future__ import annotations

import errno
import os

import pytest

from schemas.failures import FailureClass
from worker.domain.outcome import Failed, HandedOver
from worker.pipeline.failures import outcome_of
from worker.pipeline.steps import Stopped


def test_a_step_that_stopped_in_order_though_nobody_here_asked_hands_its_run_over():
    assert outcome_of(Stopped()) == HandedOver()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EMFILE, "os_emfile"),
        (errno.ESTALE, "os_estale"), (errno.EACCES, "os_eacces"), (98765, "os_98765"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_infrastructure_by_its_own_name(number: int, code: str):
    outcome = outcome_of(OSError(number, os.strerror(number)))
    assert isinstance(outcome, Failed)
    assert (outcome.failure_class, outcome.code) == (FailureClass.INFRASTRUCTURE, code)


def test_an_error_that_the_system_has_no_number_for_is_a_mistake_of_ours():
    outcome = outcome_of(OSError("said by a library"))
    assert isinstance(outcome, Failed)
    assert (outcome.failure_class, outcome.code) == (FailureClass.BUG, "OSError")
