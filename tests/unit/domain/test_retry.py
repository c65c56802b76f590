"""What follows from a failure."""

import pytest

from schemas.failures import FailureClass
from worker.domain.retry import LONGEST_PAUSE_S, LONGEST_WAIT_S, RULES, GiveUp, Retry, after_failure


def test_every_class_of_failure_has_a_rule_with_sentences_for_customer_and_operator():
    assert set(RULES) == set(FailureClass)
    for rule in RULES.values():
        assert rule.customer.endswith(".")
        assert len(rule.operator) > 20


@pytest.mark.parametrize("failure_class", [FailureClass.DATA, FailureClass.TIMEOUT, FailureClass.CANCELLED])
def test_what_a_repeat_cannot_mend_is_not_repeated(failure_class):
    assert after_failure(failure_class, 0, 3, lambda: 0.5) == GiveUp()


def test_a_crash_is_repeated_until_the_budget_is_used_up():
    answers = [after_failure(FailureClass.CRASHED, failures, 3, lambda: 1.0) for failures in range(4)]
    assert [type(answer) for answer in answers] == [Retry, Retry, GiveUp, GiveUp]


def test_waiting_for_capacity_never_uses_up_the_budget():
    answer = after_failure(FailureClass.CAPACITY, 2, 3, lambda: 0.0)
    assert isinstance(answer, Retry)
    assert not answer.counts


def test_pauses_for_capacity_double_with_the_waits_before_and_stay_short_enough_to_find_a_free_place():
    pauses = [after_failure(FailureClass.CAPACITY, 0, 3, lambda: 1.0, waits=waits).delay_s for waits in range(2_000)]
    assert pauses[:5] == [15, 30, 60, 120, LONGEST_WAIT_S]
    assert set(pauses[4:]) == {LONGEST_WAIT_S}


def test_pauses_double_up_to_a_limit_and_spread_over_their_upper_half():
    longest = [after_failure(FailureClass.LOST_WORKER, failures, 99, lambda: 1.0) for failures in range(20)]
    shortest = [after_failure(FailureClass.LOST_WORKER, failures, 99, lambda: 0.0) for failures in range(20)]
    assert [answer.delay_s for answer in longest[:4]] == [5, 10, 20, 40]
    assert longest[-1].delay_s == LONGEST_PAUSE_S
    assert all(short.delay_s == long.delay_s / 2 for short, long in zip(shortest, longest, strict=True))
