"""Error rates that can be trusted: one normalizer for both sides, counts by kind."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from schemas.text import normalized

_HARDLY: Final = 0.2
"""A sentence of which no larger share of the words was heard was dropped."""
UNSPACED: Final = frozenset({"zh", "yue", "ja", "th", "lo", "my"})
"""Written without spaces between words: every character counts as one, so what is called word error rate is that of
characters (Radford et al., "Robust speech recognition via large-scale weak supervision", 2022, appendix C)."""
_DOTTED: Final = frozenset({"tr", "az"})
_DOTS: Final = str.maketrans("I\u0130", "\u0131i")
_BLANKS: Final = re.compile(r"\s+")

Normalizer = Callable[[str], str]


def normalizer(language: str) -> Normalizer:
    """Case, punctuation and, for English, numbers and contractions: none of them is a recognition error.

    Letters of other languages keep their dots, accents and vowel signs: Bären are not Baren.
    """
    fold: Normalizer = EnglishTextNormalizer({}) if language == "en" else partial(_folded, language)
    return lambda text: _BLANKS.sub(" ", fold(normalized(text, "NFKC"))).strip()


def _folded(language: str, text: str) -> str:
    lower = (text.translate(_DOTS) if language in _DOTTED else text).lower()
    kinds = [(one, unicodedata.category(one)[0]) for one in lower]
    if language in UNSPACED:  # a mark belongs to the letter before it
        return "".join(" " if kind in "SP" else one if kind == "M" else f" {one}" for one, kind in kinds)
    return "".join(" " if kind in "SP" else one for one, kind in kinds)


@dataclass(frozen=True)
class Errors:
    """Errors of one utterance, in words or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    length: int
    """Words or characters of the reference."""

    @property
    def total(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Count word errors between normalized texts."""
    return _errors(str.split, jiwer.process_words, reference, hypothesis)


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Count character errors between normalized texts."""
    return _errors(list, jiwer.process_characters, reference, hypothesis)


def _errors(
    units: Callable[[str], Sequence[str]], process: Callable[..., Any], reference: str, hypothesis: str
) -> Errors:
    said = len(units(reference))
    if not said:  # all that was heard is insertions; jiwer refuses to compare with nothing
        return Errors(0, 0, len(units(hypothesis)), 0)
    found = process(reference, hypothesis)
    return Errors(found.substitutions, found.deletions, found.insertions, said)


def dropped(references: Sequence[str], hypothesis: str) -> int:
    """How many of the sentences that were spoken one after the other are missing: hardly a word of them was heard."""
    text = " ".join(references)
    if not text:
        return 0
    kept = [True] * len(text.split())
    for chunk in jiwer.process_words(text, hypothesis).alignments[0]:
        if chunk.type == "delete":
            kept[chunk.ref_start_idx : chunk.ref_end_idx] = [False] * (chunk.ref_end_idx - chunk.ref_start_idx)
    missing, start = 0, 0
    for reference in references:
        heard = kept[start : (start := start + len(reference.split()))]
        missing += bool(heard) and sum(heard) <= _HARDLY * len(heard)
    return missing


def rate(errors: Sequence[Errors]) -> float:
    """Errors for each word (or character) of the references, as a fraction."""
    return sum(error.total for error in errors) / max(1, sum(error.length for error in errors))


def rate_figures(words: Sequence[Errors], characters: Sequence[Errors], looped: int) -> dict[str, Any]:
    """Everything about one model on one set."""
    return {
        "wer": round(rate(words), 5),
        "cer": round(rate(characters), 5),
        "substitutions": sum(error.substitutions for error in words),
        "deletions": sum(error.deletions for error in words),
        "insertions": sum(error.insertions for error in words),
        "words": sum(error.length for error in words),
        "loops_cut": looped,
    }


def rare_terms(texts: Sequence[str], pieces: Callable[[str], int]) -> set[str]:
    """Words that the base's tokenizer has no name for: three pieces or more, at least five letters."""
    words = {word for text in texts for word in text.split() if len(word) >= 5 and _spelled(word)}  # noqa: PLR2004
    return {word for word in words if pieces(word) >= 3}  # noqa: PLR2004 - see above


def _spelled(word: str) -> bool:
    """Whether it is made of letters and their marks, which ``isalpha`` would refuse."""
    return all(unicodedata.category(one)[0] in "LM" for one in word)


def recall(terms: set[str], references: Sequence[str], hypotheses: Sequence[str]) -> tuple[int, int]:
    """How many of the rare terms in the references were heard, and how many there are."""
    heard = said = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        left = hypothesis.split()
        for word in reference.split():
            if word in terms:
                said += 1
                if word in left:
                    left.remove(word)
                    heard += 1
    return heard, said
