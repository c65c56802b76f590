"""Which side of the fence a segment is on: train, dev or test. No text and no recording is on two sides."""

import hashlib
from collections.abc import Iterable
from typing import Final

from schemas.splits import Split, split_of, split_text_key
from schemas.steps import ManifestRow
from worker.trainer.verdicts import Refusal

_STRENGTH: Final[dict[Split, int]] = {"train": 0, "dev": 1, "test": 2}


class Sides:
    """Decides the split of every row of one manifest, from its content alone."""

    def __init__(self, rows: Iterable[ManifestRow]) -> None:
        self._strongest: dict[bytes, Split] = {}
        for row in rows:
            side, text = _own_side(row), _text_digest(row)
            if _STRENGTH[side] >= _STRENGTH[self._strongest.get(text, "train")]:
                self._strongest[text] = side

    def split(self, row: ManifestRow) -> Split:
        """The row's side; a row that has no mark of its own follows the marks of its text."""
        return _own_side(row) if _is_bound(row) else self._strongest[_text_digest(row)]

    def refusal(self, row: ManifestRow) -> Refusal | None:
        """Refuse a row that is bound to one side while its text is tested on another."""
        strongest = self._strongest[_text_digest(row)]
        if self.split(row) == strongest:
            return None
        return Refusal("on_two_sides", f"The same sentence is in the {strongest} data, so it is not used twice.")


def _is_bound(row: ManifestRow) -> bool:
    return row.split is not None or _is_piece(row)


def _is_piece(row: ManifestRow) -> bool:
    """Whether the row is a piece of a longer recording, which stays together."""
    return row.source == "cue" or row.offset_s is not None


def _own_side(row: ManifestRow) -> Split:
    if row.split is not None:
        return row.split
    return split_of(row.audio_sha256 if _is_piece(row) else split_text_key(row.text))


def _text_digest(row: ManifestRow) -> bytes:
    return hashlib.blake2b(split_text_key(row.text).encode(), digest_size=16).digest()
