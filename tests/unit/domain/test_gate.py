"""The gate publishes only what is measurably better and has not forgotten ordinary speech."""

from dataclasses import replace

import pytest

from schemas.status import Gate
from worker.domain.gate import LEAST_TEST_WORDS, Measured, decide

BETTER = Measured(test_words=800, wer_base=0.6, wer_custom=0.12, change_low=-0.55, change_high=-0.4)


def test_a_measurable_gain_is_published_with_both_figures_in_the_sentence():
    decision = decide(BETTER)
    assert decision.gate is Gate.PUBLISHED
    assert "60.0%" in decision.sentence
    assert "12.0%" in decision.sentence


@pytest.mark.parametrize("high", [0.0, 0.01])
def test_an_interval_that_reaches_zero_is_no_improvement(high):
    assert decide(replace(BETTER, change_high=high)).gate is Gate.NO_IMPROVEMENT


def test_too_few_test_words_decide_nothing_however_good_they_look():
    assert decide(replace(BETTER, test_words=LEAST_TEST_WORDS - 1)).gate is Gate.TOO_LITTLE_TEST_DATA


def test_a_proven_loss_on_ordinary_speech_of_more_than_half_a_point_is_forgetting():
    forgetful = replace(BETTER, general_base=0.09, general_custom=0.2, general_change_low=0.05)
    assert decide(forgetful).gate is Gate.FORGETS


def test_a_loss_on_ordinary_speech_that_chance_explains_is_not_forgetting():
    noisy = replace(BETTER, general_base=0.09, general_custom=0.1, general_change_low=-0.01)
    assert decide(noisy).gate is Gate.PUBLISHED


def test_a_small_loss_on_ordinary_speech_is_tolerated_even_when_proven():
    small = replace(BETTER, general_base=0.09, general_custom=0.094, general_change_low=0.001)
    assert decide(small).gate is Gate.PUBLISHED
