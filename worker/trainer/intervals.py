"""95 % intervals of error rates, by drawing what is independent again.

Sentences of one call share speaker, channel and topic; drawn one by one they look like more evidence than they are. So
speakers are drawn where enough are named, else recordings, else stretches of a recording (Liu and Peng, "Statistical
testing on ASR performance via blockwise bootstrap", 2020).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from worker.trainer.scoring import Errors

RESAMPLES: Final = 2_000
_DRAWN_AT_ONCE: Final = 2**19
"""Units, over several resamples: some 16 MiB, however large the set."""
LEAST_SPEAKERS: Final = 8
LEAST_RECORDINGS: Final = 10
LEAST_BLOCKS: Final = 10
LONGEST_BLOCK_S: Final = 30.0


@dataclass(frozen=True)
class Heard:
    """Where one row of a test set comes from."""

    recording: str
    start_s: float
    seconds: float
    speaker: str | None


@dataclass(frozen=True)
class Units:
    """What is drawn again, and to which of them each row belongs."""

    kind: str
    """speakers, recordings or blocks."""
    of_row: list[int]
    """A number from 0 for each row."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(set(self.of_row))


def units_of(rows: Sequence[Heard]) -> Units:
    """The largest units of which there are enough: speakers, recordings, else blocks of at most 30 s."""
    if all(row.speaker for row in rows):
        speakers = _numbered(rows, lambda row: row.speaker)
        if len(set(speakers)) >= LEAST_SPEAKERS:
            return Units("speakers", speakers)
    recordings = _numbered(rows, lambda row: row.recording)
    if len(set(recordings)) >= LEAST_RECORDINGS:
        return Units("recordings", recordings)
    return Units("blocks", _blocks(rows))


def _numbered(rows: Sequence[Heard], of: Callable[[Heard], Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(of(row), len(numbers)) for row in rows]


def _blocks(rows: Sequence[Heard]) -> list[int]:
    """Neighbours in one recording, so short that there are ten of them where there are ten rows."""
    order = sorted(range(len(rows)), key=lambda at: (rows[at].recording, rows[at].start_s))
    length_s = min(LONGEST_BLOCK_S, sum(row.seconds for row in rows) / LEAST_BLOCKS)
    numbers = [0] * len(rows)
    block, held_s, recording = -1, 0.0, ""
    for at in order:
        if block < 0 or rows[at].recording != recording or held_s + rows[at].seconds > length_s:
            block, held_s, recording = block + 1, 0.0, rows[at].recording
        held_s += rows[at].seconds
        numbers[at] = block
    return numbers


def paired_intervals(
    base: Sequence[Errors], custom: Sequence[Errors], seed: int, units: Sequence[int] | None = None
) -> dict[str, list[float]]:
    """95 % bootstrap intervals of both rates, and of custom minus base on the same resamples.

    Args:
        base: the errors of each row.
        custom: those of the other model on the same rows.
        seed: of the resamples.
        units: a number from 0 for each row; rows with the same one are drawn together. None: each row for itself.

    Returns:
        ``wer_base``, ``wer_custom`` and ``wer_change``, each [low, high] as fractions.
    """
    counted = np.array([(one.length, one.total, other.total) for one, other in zip(base, custom, strict=True)]).T
    if units is not None:
        counted = np.stack([np.bincount(units, weights=row) for row in counted])
    source, count = np.random.default_rng(seed), counted.shape[1]
    at_once = max(1, _DRAWN_AT_ONCE // count)
    sums = [
        counted[:, source.integers(0, count, (min(at_once, RESAMPLES - done), count))].sum(axis=2)
        for done in range(0, RESAMPLES, at_once)
    ]
    lengths, *totals = np.concatenate(sums, axis=1)
    rates = [errors / np.maximum(1, lengths) for errors in totals]
    return {
        "wer_base": _interval(rates[0]),
        "wer_custom": _interval(rates[1]),
        "wer_change": _interval(rates[1] - rates[0]),
    }


def _interval(values: Any) -> list[float]:
    return [round(float(value), 5) for value in np.percentile(values, [2.5, 97.5])]
