"""Which rows are for training and which for measuring."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.split_rule import GAP_S, LEAST_TEST_UTTERANCES, LEAST_TEST_WORDS, LeftOut, SplitRow, assign
from tests.bench.splits import KINDS, look


def cues(recording: str, count: int, *, seconds: float = 4.0, words: int = 9, **more) -> list[SplitRow]:
    """A recording with one cue after the other."""
    return [
        SplitRow(recording.encode(), at * seconds, seconds, words, f"{recording} {at}".encode(), **more)
        for at in range(count)
    ]


def clips(count: int, name: str = "clip", **more) -> list[SplitRow]:
    return [row for at in range(count) for row in cues(f"{name} {at}", 1, **more)]


def of(rows, split):
    splits = assign(rows)
    return [row for row, side in zip(rows, splits, strict=True) if side == split]


def test_one_long_recording_has_a_test_of_neighbouring_rows_with_a_gap_around_it():
    rows = cues("lecture", 200)
    splits = assign(rows)
    test = [at for at, side in enumerate(splits) if side == "test"]
    assert len(test) >= LEAST_TEST_UTTERANCES
    assert test == list(range(test[0], test[-1] + 1))
    assert all(splits[at] is LeftOut.SAME_SOUND for at in (test[0] - 1, test[-1] + 1) if 0 <= at < len(rows))
    assert splits.count("train") >= 140
    assert splits.count("dev") >= 16


def test_a_test_has_what_an_interval_needs_or_a_tenth():
    few, many = cues("talk", 60), cues("talk", 1_000)
    assert len(of(few, "test")) >= LEAST_TEST_UTTERANCES
    assert sum(row.words for row in of(few, "test")) >= LEAST_TEST_WORDS
    assert 95 <= len(of(many, "test")) <= 110


def test_many_recordings_are_tested_whole():
    rows = [row for number in range(30) for row in cues(f"call {number}", 20)]
    tested = {row.recording for row in of(rows, "test")}
    assert not tested & {row.recording for row in [*of(rows, "train"), *of(rows, "dev")]}
    assert 2 <= len(tested) <= 5


def test_spoken_digits_by_six_voices_are_tested_by_a_voice_that_was_not_trained_on():
    rows = [
        SplitRow(f"{voice} {take} {digit}".encode(), 0.0, 1.0, 1, digit.encode(), speaker=f"voice {voice}")
        for voice in range(6)
        for take in range(30)
        for digit in ("zero", "one", "two", "three", "four", "five")
    ]
    tested = {row.speaker for row in of(rows, "test")}
    assert len(tested) == 1
    assert not tested & {row.speaker for row in of(rows, "train")}
    assert {row.text for row in of(rows, "test")} == {row.text for row in of(rows, "train")}


def test_a_sentence_that_two_people_read_is_on_one_side():
    rows = [replace(row, text=str(at % 60).encode()) for at, row in enumerate(clips(120))]
    assert not {row.text for row in of(rows, "test")} & {row.text for row in of(rows, "train")}
    assert LeftOut.SAME_TEXT not in assign(rows)


def test_rows_that_are_marked_for_the_test_are_the_test_alone_if_they_are_enough():
    rows = [*clips(30, "held out", mark="test"), *clips(200)]
    assert {row.mark for row in of(rows, "test")} == {"test"}


def test_too_few_marked_rows_are_added_to():
    rows = [*clips(3, "held out", mark="test"), *clips(200)]
    tested = of(rows, "test")
    assert len(tested) >= LEAST_TEST_UTTERANCES
    assert sum(row.mark == "test" for row in tested) == 3


def test_nothing_is_taken_from_rows_that_are_all_marked():
    rows = [*clips(100, mark="train"), *clips(20, "second", mark="dev")]
    assert assign(rows) == ["train"] * 100 + ["dev"] * 20


def test_a_mark_beats_what_a_row_was_before():
    rows = [replace(row, earlier="test", mark="train" if at == 0 else None) for at, row in enumerate(clips(40))]
    assert assign(rows)[0] == "train"
    assert set(assign(rows)[1:]) == {"test"}


def test_an_unmarked_row_follows_its_recording():
    rows = cues("call", 4)
    rows = [replace(rows[0], mark="test"), *rows[1:], *clips(100)]
    assert assign(rows)[:4] == ["test"] * 4


def test_a_row_that_overlaps_a_test_row_is_not_trained_on():
    long = SplitRow(b"call", 0.0, 60.0, 100, b"all of it", mark="train")
    rows = [long, replace(cues("call", 4)[3], mark="test"), *clips(100, mark="train")]
    assert assign(rows)[0] is LeftOut.SAME_SOUND


@pytest.mark.parametrize("away_s", [0.0, GAP_S - 0.01, GAP_S + 0.01])
def test_no_other_row_lies_within_the_gap_of_a_test_row(away_s):
    test = SplitRow(b"call", 10.0, 4.0, 9, b"tested", mark="test")
    row = SplitRow(b"call", 14.0 + away_s, 4.0, 9, b"trained", mark="train")
    assert assign([test, row]) == ["test", "train" if away_s > GAP_S else LeftOut.SAME_SOUND]


@pytest.mark.parametrize("rows", [[], clips(1), cues("one", 2), clips(5)])
def test_hardly_any_data_is_no_error(rows):
    assert len(assign(rows)) == len(rows)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_random_collections_keep_every_promise(kind):
    for number in range(4):
        found = look(kind + number * len(KINDS))
        broken = ("without_test", "without_train", "shared_sound", "shared_text", "moved", "left_out_later")
        assert not {name: found[name] for name in (*broken, "depends_on_order") if found[name]}, found
