"""The gate publishes only what is measurably better and has not forgotten ordinary speech."""

import re
from dataclasses import replace

import pytest

from schemas.status import Gate
from worker.domain.gate import LEAST_UTTERANCES, LEAST_WORDS, General, Measured, decide
from worker.pipeline.phases import measured

BETTER = Measured(test_utterances=80, test_words=800, wer_base=0.6, wer_custom=0.12, change_low=-0.55, change_high=-0.4)
FORGETFUL = General(utterances=60, words=900, wer_base=0.09, wer_custom=0.2, change_low=0.05)


def test_a_measurable_gain_is_published_with_both_figures_in_the_sentence():
    decision = decide(BETTER)
    assert decision.gate is Gate.PUBLISHED
    assert "60.0%" in decision.sentence
    assert "12.0%" in decision.sentence


@pytest.mark.parametrize("high", [0.0, 0.01])
def test_an_interval_that_reaches_zero_is_no_improvement(high):
    assert decide(replace(BETTER, change_high=high)).gate is Gate.NO_IMPROVEMENT


@pytest.mark.parametrize(
    ("utterances", "words"), [(LEAST_UTTERANCES, LEAST_WORDS - 1), (LEAST_UTTERANCES - 1, LEAST_WORDS), (1, 1), (0, 0)]
)
def test_too_little_test_speech_decides_nothing_however_good_it_looks(utterances, words):
    decision = decide(replace(BETTER, test_utterances=utterances, test_words=words))
    assert decision.gate is Gate.TOO_LITTLE_TEST_DATA
    assert re.search(rf"only {utterances} sentences? with {words} words?:", decision.sentence)
    assert f"at least {LEAST_UTTERANCES} sentences and {LEAST_WORDS} words" in decision.sentence


def test_the_least_test_speech_is_enough():
    least = replace(BETTER, test_utterances=LEAST_UTTERANCES, test_words=LEAST_WORDS)
    assert decide(least).gate is Gate.PUBLISHED


def test_on_the_least_test_speech_equally_good_models_are_hardly_ever_called_better():
    np = pytest.importorskip("numpy")
    source, words, published, models = np.random.default_rng(1), LEAST_WORDS // LEAST_UTTERANCES, 0, 200
    scoring = pytest.importorskip("worker.trainer.scoring")
    intervals = pytest.importorskip("worker.trainer.intervals")
    for _ in range(models):
        base, custom = (
            [scoring.Errors(int(wrong), 0, 0, words) for wrong in source.binomial(words, 0.15, LEAST_UTTERANCES)]
            for _ in range(2)
        )
        low, high = intervals.paired_intervals(base, custom, 0)["wer_change"]
        found = Measured(LEAST_UTTERANCES, LEAST_WORDS, scoring.rate(base), scoring.rate(custom), low, high)
        published += decide(found).gate is Gate.PUBLISHED
    assert published / models < 0.1


def test_a_proven_loss_on_ordinary_speech_of_more_than_half_a_point_is_forgetting():
    assert decide(replace(BETTER, general=FORGETFUL)).gate is Gate.FORGETS


@pytest.mark.parametrize("little", [{"utterances": LEAST_UTTERANCES - 1}, {"words": LEAST_WORDS - 1}])
def test_too_little_ordinary_speech_proves_no_forgetting_and_the_sentence_says_so(little):
    decision = decide(replace(BETTER, general=replace(FORGETFUL, **little)))
    assert decision.gate is Gate.PUBLISHED
    assert "too little ordinary speech" in decision.sentence
    assert "ordinary" not in decide(BETTER).sentence, "there is no general set"


def test_a_loss_on_ordinary_speech_that_chance_explains_is_not_forgetting():
    noisy = replace(FORGETFUL, wer_custom=0.1, change_low=-0.01)
    assert decide(replace(BETTER, general=noisy)).gate is Gate.PUBLISHED


def test_a_small_loss_on_ordinary_speech_is_tolerated_even_when_proven():
    small = replace(FORGETFUL, wer_custom=0.094, change_low=0.001)
    assert decide(replace(BETTER, general=small)).gate is Gate.PUBLISHED


def test_the_figures_of_an_evaluation_are_read_with_what_they_were_measured_on():
    def figures(utterances, words, base, custom, change):
        both = {"base": {"wer": base, "words": words}, "custom": {"wer": custom, "words": words}}
        return {"utterances": utterances, **both, "intervals": {"wer_change": list(change)}}

    test, general = figures(80, 800, 0.6, 0.12, (-0.55, -0.4)), figures(60, 900, 0.09, 0.2, (0.05, 0.2))
    assert measured({"test": test, "general": None}) == BETTER
    assert measured({"test": test, "general": general}) == replace(BETTER, general=FORGETFUL)
    nothing_kept_apart = {"test": test, "general": None, "general_set": {"utterances": 40, "test": 0}}
    assert measured(nothing_kept_apart) == replace(BETTER, general=General())
    assert decide(measured({"test": None, "general": None})).gate is Gate.TOO_LITTLE_TEST_DATA
