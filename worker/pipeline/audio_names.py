"""Which uploaded recording a manifest line means."""

import posixpath
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from schemas.text import normalized
from worker.data.manifest_lines import LONGEST_PATH, LineError
from worker.domain.data import DataItem

_AFTER_ALL: Final = "\U0010ffff"
"""Sorts behind every character that a name may have."""


class AudioNames:
    """Finds recordings by what customers write: a path beside the manifest, a name, a path of their own disk.

    A look takes no longer where thousands of recordings share the last part of their names.
    """

    def __init__(self, items: Iterable[DataItem]) -> None:
        self._by_name: dict[str, DataItem] = {}
        self._by_last: dict[str, list[DataItem]] = {}
        self._backwards: dict[str, list[str]] = {}
        """Of shared last parts that were asked for: the names read backwards and sorted, as their items then are."""
        for item in items:
            self._by_name.setdefault(item.name, item)
            self._by_last.setdefault(posixpath.basename(item.name), []).append(item)

    def find(self, written: str, manifest_name: str) -> DataItem:
        """The recording, by its name relative to the manifest's folder, else its name, else the end of its path.

        Raises:
            LineError: there is none, or more than one could be meant.
        """
        path = normalized(written, "NFC", LONGEST_PATH).replace("\\", "/")
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(manifest_name), path))
        for name in (beside, posixpath.normpath(path)):
            if found := self._by_name.get(name):
                return found
        like = self._by_last.get(posixpath.basename(path), [])
        first, last = 0, len(like)
        if last > 1:
            first, last = self._narrowed(path)
        if last - first > 1:
            names = f"{like[first].name} or {like[first + 1].name}"
            raise LineError("ambiguous_file", f"{written[:200]} could be {names}.")
        if not like:
            raise LineError("missing_file", f"{written[:200]} was not uploaded.")
        return like[first]

    def _narrowed(self, path: str) -> tuple[int, int]:
        """The places of the items that share with a path as many folders as it takes to tell them apart."""
        backwards = self._sorted_backwards(posixpath.basename(path))
        first, last = 0, len(backwards)
        parts = path.split("/")
        for count in range(2, len(parts) + 1):
            ending = ("/" + "/".join(parts[-count:]))[::-1]
            low = bisect_left(backwards, ending, first, last)
            high = bisect_left(backwards, ending + _AFTER_ALL, low, last)
            if low == high:
                break
            first, last = low, high
        return first, last

    def _sorted_backwards(self, name: str) -> list[str]:
        if name not in self._backwards:
            items = self._by_last[name]
            items.sort(key=_backwards)
            self._backwards[name] = [_backwards(item) for item in items]
        return self._backwards[name]


def _backwards(item: DataItem) -> str:
    return f"/{item.name}"[::-1]
