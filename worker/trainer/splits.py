"""Which split each row of a manifest is in: `schemas.split_rule`, fed with what was decoded."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

from schemas.split_rule import LeftOut, SplitRow, assign
from schemas.splits import Split, split_text_key
from schemas.steps import ManifestRow
from worker.trainer.audio import SAMPLE_RATE
from worker.trainer.verdicts import Refusal

Decoded = Callable[[], Iterable[tuple[ManifestRow, range]]]
_STRENGTH: Final = {None: 0, "train": 1, "dev": 2, "test": 3}
_SENTENCES: Final = {
    LeftOut.SAME_TEXT: "The same sentence is in the {other} data, so it is not used twice.",
    LeftOut.SAME_SOUND: "It lies beside a passage of the same recording that is in the {other} data.",
}


class Splits:
    """Decides the split of every row of one manifest.

    Holds about 300 bytes for each row.

    Args:
        decoded: gives every row that can be used with its samples' place, in the same order each time; rows of the same
            sound have the same place.
    """

    def __init__(self, decoded: Decoded) -> None:
        self._used: dict[int, ManifestRow] = {}
        """The one row of each sound: of several the one with the strongest mark, else the first."""
        for row, place in decoded():
            best = self._used.setdefault(place.start, row)
            if _STRENGTH[row.split] > _STRENGTH[best.split]:
                self._used[place.start] = row
        rows: list[SplitRow] = []
        numbers: list[int] = []
        for row, place in decoded():
            if self._used[place.start].row == row.row:
                rows.append(_split_row(row, place))
                numbers.append(row.row)
        self._answers = dict(zip(numbers, assign(rows), strict=True))

    def of(self, row: ManifestRow, place: range) -> Split | Refusal:
        """The row's split, or why it is in none."""
        used = self._used[place.start]
        if used.row != row.row:
            if row.split is not None and row.split != used.split:
                sentence = f"The same recording is in the {used.split} data, so it is not used twice."
                return Refusal("on_two_sides", sentence)
            return Refusal("duplicate", f"The same recording is already there as {used.file}.")
        answer = self._answers[row.row]
        if isinstance(answer, LeftOut):
            return Refusal("on_two_sides", _SENTENCES[answer].format(other="development or test"))
        return answer


def _split_row(row: ManifestRow, place: range) -> SplitRow:
    text = split_text_key(row.text)
    return SplitRow(
        recording=hashlib.blake2b(row.audio_sha256.encode(), digest_size=16).digest(),
        start_s=row.offset_s or 0.0,
        seconds=len(place) / SAMPLE_RATE,
        words=len(text.split()),
        text=hashlib.blake2b(text.encode(), digest_size=16).digest(),
        speaker=row.speaker,
        mark=row.split,
        earlier=row.earlier,
    )
