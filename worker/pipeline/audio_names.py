"""Which uploaded recording a manifest line means."""

import posixpath
import unicodedata
from collections.abc import Iterable

from worker.domain.data import DataItem
from worker.pipeline.manifest_lines import LineError


class AudioNames:
    """Finds recordings by what customers write: a path beside the manifest, a name, a path of their own disk."""

    def __init__(self, items: Iterable[DataItem]) -> None:
        self._by_name: dict[str, DataItem] = {}
        self._by_last: dict[str, list[DataItem]] = {}
        for item in items:
            self._by_name.setdefault(item.name, item)
            self._by_last.setdefault(posixpath.basename(item.name), []).append(item)

    def find(self, written: str, manifest_name: str) -> DataItem:
        """The recording, by its name relative to the manifest's folder, else its name, else the end of its path.

        Raises:
            LineError: there is none, or more than one could be meant.
        """
        path = unicodedata.normalize("NFC", written).replace("\\", "/")
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(manifest_name), path))
        for name in (beside, posixpath.normpath(path)):
            if found := self._by_name.get(name):
                return found
        like = self._by_last.get(posixpath.basename(path), [])
        if len(like) > 1:  # as many folders as it takes to tell them apart
            parts = path.split("/")
            for count in range(2, len(parts) + 1):
                ending = "/" + "/".join(parts[-count:])
                fitting = [item for item in like if f"/{item.name}".endswith(ending)]
                if not fitting:
                    break
                like = fitting
        if len(like) > 1:
            raise LineError("ambiguous_file", f"{written[:200]} could be {like[0].name} or {like[1].name}.")
        if not like:
            raise LineError("missing_file", f"{written[:200]} was not uploaded.")
        return like[0]
