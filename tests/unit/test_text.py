"""Normalizing strangers' text: bounded, in linear time, and in one place."""

import ast
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.text import LONGEST_TEXT, MOST_MARKS, TextTooLong, normalized, without_surplus_marks
from worker.domain.data import LONGEST_NAME, clean_name

ROOT = Path(__file__).parent.parent.parent
MARKS = [chr(code) for code in (0x301, 0x316, 0x344, 0xF73, 0xF75, 0xF81, 0xFF9E, 0x3099, 0x1E94A)]


def test_no_other_module_normalizes_text():
    wrong = []
    for path in [*ROOT.glob("worker/**/*.py"), *ROOT.glob("schemas/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bare = isinstance(node, ast.Attribute) and node.attr in {"normalize", "is_normalized"}
            if bare and isinstance(node.value, ast.Name) and node.value.id == "unicodedata":
                wrong.append(str(path.relative_to(ROOT)))
            if isinstance(node, ast.ImportFrom) and node.module == "unicodedata":
                wrong.append(str(path.relative_to(ROOT)))
    assert set(wrong) == {"schemas/text.py"}


def test_every_character_that_is_sorted_counts_as_a_mark():
    """Also those that have no class of their own, but decompose into characters that do."""
    sorted_ones = [
        chr(code) for code in range(0x110000)
        if unicodedata.combining(chr(code)) or unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0])
    ]  # fmt: skip
    assert len(sorted_ones) > 900
    assert [one for one in sorted_ones if len(without_surplus_marks(one * 100)) != MOST_MARKS] == []


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFKD"])
@given(text=st.text() | st.text(st.sampled_from(["a", "ễ", "ﷺ", *MARKS]), max_size=200))
def test_a_second_time_changes_nothing_and_no_run_of_marks_is_long(form, text):
    once = normalized(text, form)
    assert normalized(once, form) == once
    run = 0
    for letter in once:
        run = run + 1 if unicodedata.combining(letter) else 0
        assert run <= MOST_MARKS


@pytest.mark.parametrize(
    "text", ["Der Patient nahm Schlückchen.", "Tiếng Việt có dấu", "हिन्दी में", "שָׁלוֹם", "がぎぐげご", "🩺 ok"]
)
@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFKD"])
def test_honest_text_is_normalized_as_the_standard_says(text, form):
    for written in (text, unicodedata.normalize("NFD", text)):
        assert normalized(written, form) == unicodedata.normalize(form, written)


def test_length_comes_before_everything_else():
    with pytest.raises(TextTooLong, match=r"has 1,048,577 characters; at most 1,048,576"):
        normalized("a" * (LONGEST_TEXT + 1), "NFC")
    with pytest.raises(TextTooLong):
        normalized("\u0301" * 11, "NFC", 10)


def test_a_file_name_is_measured_before_it_is_composed():
    with pytest.raises(ValueError, match="at most 400"):
        clean_name("a" + "\u0316\u0301" * 10**6)
    assert len(clean_name("ễ" * LONGEST_NAME)) == LONGEST_NAME
    assert len(clean_name(unicodedata.normalize("NFD", "ễ" * LONGEST_NAME))) == LONGEST_NAME


def test_a_file_name_with_a_heap_of_marks_is_refused_and_not_cut():
    """Cut, two names could become the same."""
    with pytest.raises(ValueError, match="more than 30 combining marks"):
        clean_name("a" + "\u0301" * 31 + ".wav")
    assert clean_name("a" + "\u0316" * 30 + ".wav")
