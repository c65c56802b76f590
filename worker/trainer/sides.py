"""Which side of the fence a segment is on: train, dev or test. No text and no recording is on two sides."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

from schemas.splits import Split, split_of, split_text_key
from schemas.steps import ManifestRow
from worker.trainer.verdicts import Refusal

_STRENGTH: Final[dict[Split, int]] = {"train": 0, "dev": 1, "test": 2}


class Sides:
    """Decides the split of every row of one manifest, from its content alone.

    Args:
        rows: gives every row that can be used, each time it is called; what cannot be used takes nothing else away.
    """

    def __init__(self, rows: Callable[[], Iterable[ManifestRow]]) -> None:
        self._marks: dict[bytes, Split] = {}
        """The strongest mark of each recording that has one."""
        self._in_pieces: set[bytes] = set()
        """Recordings that stay together because more than their whole can be heard: pieces, or several rows."""
        self._of_text: dict[bytes, Split] = {}
        seen: set[bytes] = set()
        for row in rows():
            recording = _recording(row)
            if row.split is not None:
                _strengthen(self._marks, recording, row.split)
            if recording in seen or row.source == "cue" or row.offset_s is not None:
                self._in_pieces.add(recording)
            seen.add(recording)
        for row in rows():
            _strengthen(self._of_text, _text(row), self._bound(row) or split_of(split_text_key(row.text)))

    def split(self, row: ManifestRow) -> Split:
        """The row's side; one whose recording is neither marked nor in pieces follows the marks of its text."""
        return self._bound(row) or self._of_text[_text(row)]

    def refusal(self, row: ManifestRow) -> Refusal | None:
        """Refuse a row that is bound to one side while its recording or its text is tested on another."""
        split, marked, tested = self.split(row), self._marks.get(_recording(row)), self._of_text[_text(row)]
        if marked is not None and split != marked:
            return Refusal("on_two_sides", f"The same recording is in the {marked} data, so it is not used twice.")
        if split != tested:
            return Refusal("on_two_sides", f"The same sentence is in the {tested} data, so it is not used twice.")
        return None

    def _bound(self, row: ManifestRow) -> Split | None:
        """The side that the row's own mark or its recording says."""
        recording = _recording(row)
        if row.split is None and recording not in self._marks and recording in self._in_pieces:
            return split_of(row.audio_sha256)
        return row.split or self._marks.get(recording)


def _strengthen(sides: dict[bytes, Split], key: bytes, side: Split) -> None:
    if _STRENGTH[side] >= _STRENGTH[sides.get(key, "train")]:
        sides[key] = side


def _recording(row: ManifestRow) -> bytes:
    return _digest(row.audio_sha256)


def _text(row: ManifestRow) -> bytes:
    return _digest(split_text_key(row.text))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
