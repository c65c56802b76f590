"""Error rates, loops, batches and sides: pure functions with known answers."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("torch")

from worker.trainer import intervals
from worker.trainer.decoding import _loop, token_limit
from worker.trainer.intervals import Heard, paired_intervals, units_of
from worker.trainer.plan import Plan
from worker.trainer.scoring import (
    Errors,
    character_errors,
    normalizer,
    rare_terms,
    rate,
    recall,
    word_errors,
)
from worker.trainer.tokens import LONGEST_TEXT

pytestmark = pytest.mark.trainer


def test_errors_are_counted_by_kind():
    assert word_errors("start the new dose today", "start a new dose") == Errors(1, 1, 0, 5)
    assert word_errors("stop", "please stop now") == Errors(0, 0, 2, 1)
    assert word_errors("", "well well") == Errors(0, 0, 2, 0)
    assert character_errors("abc", "abd") == Errors(1, 0, 0, 3)
    assert character_errors("", "abc def") == Errors(0, 0, 7, 0)
    assert character_errors("", "") == word_errors("", "") == Errors(0, 0, 0, 0)
    assert rate([Errors(1, 1, 0, 5), Errors(0, 0, 1, 5)]) == pytest.approx(0.3)


def test_case_punctuation_and_numbers_are_no_errors_in_english():
    same = normalizer("en")
    assert same("Twenty-five milligrams, Doctor!") == same("25 milligrams doctor")


@pytest.mark.parametrize(
    ("language", "text", "normal"),
    [
        ("de", "Über, STRASSE: „schöne“ Bären!", "über strasse schöne bären"),
        ("de", "U\u0308ber", "über"),  # composed or not, it is one letter
        ("hi", "हिन्दी में बोलना।", "हिन्दी में बोलना"),
        ("ru", "Мой край", "мой край"),
        ("tr", "İyi ISLAK", "iyi \u0131slak"),
        ("zh", "今天天气,很好 iPhone", "今 天 天 气 很 好 i p h o n e"),
        ("ja", "ガラス。", "ガ ラ ス"),
        ("th", "สวัสดี", "ส วั ส ดี"),
        ("yue", "我哋", "我 哋"),
    ],
)
def test_other_languages_keep_their_letters_and_are_counted_by_character_where_words_have_no_spaces(
    language, text, normal
):
    assert normalizer(language)(text) == normal


def test_a_wrong_umlaut_or_vowel_sign_is_an_error():
    german, hindi = normalizer("de"), normalizer("hi")
    assert word_errors(german("Gerät schöne Bären müßte"), german("Gerat schone Baren mußte")).total == 4
    assert word_errors(hindi("हिन्दी में बोलना"), hindi("हन्दा मो बीलने")).total == 3
    assert rare_terms([hindi("हिन्दी में २०२६")], pieces=len) == {hindi("हिन्दी")}


def test_the_interval_of_equal_models_is_zero_and_the_same_seed_gives_the_same_interval():
    errors = [Errors(number % 3, 0, 0, 10) for number in range(50)]
    same = paired_intervals(errors, errors, seed=1)
    assert same["wer_change"] == [0.0, 0.0]
    assert paired_intervals(errors, errors, seed=1) == same
    worse = [Errors(one.substitutions + 1, 0, 0, 10) for one in errors]
    low, high = paired_intervals(errors, worse, seed=1)["wer_change"]
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_intervals_of_a_large_set_need_no_more_memory_and_are_those_of_one_draw(monkeypatch):
    count = 20_000
    base = [Errors(number % 4, 0, 0, 5 + number % 7) for number in range(count)]
    custom = [Errors(number % 3, 0, 0, one.length) for number, one in enumerate(base)]
    tracemalloc.start()
    found = paired_intervals(base, custom, seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000 * count, "not even a byte for each utterance of each resample"
    few = slice(0, 300)
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 7 * 300)
    in_blocks = paired_intervals(base[few], custom[few], seed=1)
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 2_000 * 300)
    assert in_blocks == paired_intervals(base[few], custom[few], seed=1)
    assert found["wer_change"][0] < found["wer_change"][1] < 0


def test_rare_terms_are_those_the_tokenizer_has_no_name_for_and_are_recalled_by_number():
    terms = rare_terms(["start metolazone and the dose"], pieces=lambda word: len(word) // 2)
    assert terms == {"metolazone"}
    assert recall(terms, ["metolazone or metolazone", "the dose"], ["metolazone or not", "metolazone"]) == (1, 2)


@pytest.mark.parametrize(("tokens", "repeats"), [([5] * 8, 7), ([1, 2, 3] * 4, 9), ([1, 2] * 3, 0), ([0] * 6, 0)])
def test_a_loop_is_what_repeats_a_phrase_four_times(tokens, repeats):
    assert _loop([9, 9, 8, *tokens]) == repeats


def test_an_utterance_gets_no_more_tokens_than_can_be_spoken():
    assert token_limit(1.0) < token_limit(10.0) < token_limit(60.0) == LONGEST_TEXT


def test_every_epoch_sees_every_utterance_once_in_an_order_that_only_seed_and_epoch_decide():
    seconds = tuple(np.random.default_rng(0).uniform(1, 9, 50))
    plan, other = Plan(seconds, 16, 3, 1, 0.1), Plan(seconds, 16, 3, 2, 0.1)
    steps = range(plan.steps_an_epoch)
    epochs = [[tuple(plan.batch(epoch * len(steps) + step)) for step in steps] for epoch in (0, 1)]
    for epoch in epochs:
        assert sorted(index for batch in epoch for group in batch for index in plan.groups[group]) == list(range(50))
    assert epochs[0] != epochs[1]
    assert [tuple(other.batch(step)) for step in steps] != epochs[0]
    assert max(plan.rate(step) for step in range(plan.steps)) == pytest.approx(1.0, abs=0.05)
    assert plan.rate(plan.steps - 1) < 0.15


def heard(recordings, each, *, speakers=None, seconds=4.0):
    return [
        Heard(f"{name}.wav", at * seconds, seconds, None if speakers is None else f"voice {name % speakers}")
        for name in range(recordings)
        for at in range(each)
    ]


@pytest.mark.parametrize(
    ("rows", "kind", "count"),
    [
        (heard(40, 1, speakers=8), "speakers", 8),
        (heard(40, 1, speakers=7), "recordings", 40),
        (heard(10, 5), "recordings", 10),
        (heard(2, 100), "blocks", 2 * -(-100 // 7)),
        (heard(1, 20), "blocks", 10),
    ],
)
def test_what_is_drawn_again_is_the_largest_unit_of_which_there_are_enough(rows, kind, count):
    units = units_of(rows)
    assert (units.kind, units.count) == (kind, count)


def test_sentences_of_one_call_are_no_more_evidence_than_the_call():
    source = np.random.default_rng(0)
    calls = np.repeat(np.arange(10), 20)
    hard = source.uniform(0, 0.4, 10)
    wrong = source.binomial(10, hard[calls])
    base = [Errors(int(one), 0, 0, 10) for one in wrong]
    widths = [
        high - low
        for low, high in (paired_intervals(base, base, 0, units)["wer_base"] for units in (None, calls.tolist()))
    ]
    assert widths[1] > 1.5 * widths[0]
