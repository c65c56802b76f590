"""What was fetched from a remote storage, kept on this host by its content."""

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from worker.storage.keys import PARTIAL

_ORIGINS: Final = ".origins"
"""Beside what was fetched: storage keys, one a line. No key has such a name."""


class Cache:
    """A folder of folders, each under the digest of what it holds, whole or not there.

    Several processes of a host may share one: who comes second to the same content uses what the first made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def partial(self) -> Path:
        """A fresh path on the same file system, for what is not whole yet."""
        return self.folder / PARTIAL / uuid.uuid4().hex

    async def kept(self, digest: str, fetch: Callable[[Path], Awaitable[None]], origin: str = "") -> Path:
        """The folder of a digest; `fetch` fills it where it is missing.

        Args:
            digest: of the content.
            fetch: fills the folder that it is given.
            origin: where the content was fetched from, written down for `origins`.
        """
        place = self.folder / digest[:2] / digest
        lock = self._fetching.setdefault(digest, asyncio.Lock())
        async with lock:
            if not place.is_dir():
                partial = self.partial()
                partial.mkdir()
                try:
                    await fetch(partial)
                    await asyncio.to_thread(_enter, partial, place)
                finally:
                    await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
            with suppress(OSError):  # another process may be trimming
                if origin:
                    await asyncio.to_thread(_note_origin, place, origin)
                os.utime(place)  # the time of last use
        return place

    def trim(self, keep_bytes: int, unused_s: float, oldest_s: float = float("inf")) -> int:
        """Remove what was used longest ago until `keep_bytes` are left, and what was not used for `oldest_s`.

        Args:
            keep_bytes: of all that is kept.
            unused_s: nothing that was used within so many seconds goes.
            oldest_s: what was not used for so long goes, however much room there is.

        Returns:
            Bytes removed.
        """
        found = sorted(self._places())
        sizes = {place: _bytes_of(place) for _, place in found}
        held, removed, now = sum(sizes.values()), 0, time.time()
        for used_at, place in found:
            unused = now - used_at
            if unused < unused_s or (held <= keep_bytes and unused < oldest_s):
                break
            if self._remove(place):
                held, removed = held - sizes[place], removed + sizes[place]
        return removed

    def origins(self, unused_s: float) -> set[str]:
        """Where everything kept here that was not used for `unused_s` was fetched from, as far as that is known."""
        newest = time.time() - unused_s
        return {origin for used_at, place in self._places() if used_at <= newest for origin in _origins(place)}

    def forget(self, origins: Collection[str], unused_s: float) -> int:
        """Remove what was fetched from one of these places and not used for `unused_s`; how many bytes that were."""
        removed, newest = 0, time.time() - unused_s
        for used_at, place in self._places():
            if used_at <= newest and not _origins(place).isdisjoint(origins):
                size = _bytes_of(place)
                removed += size if self._remove(place) else 0
        return removed

    def _places(self) -> list[tuple[float, Path]]:
        """Everything kept, with its time of last use."""
        found = []
        for place in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):  # another process has removed it
                if place.is_dir():
                    found.append((place.stat().st_mtime, place))
        return found

    def _remove(self, place: Path) -> bool:
        gone = self.partial()
        try:
            place.rename(gone)  # so that nobody finds half of it
        except OSError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True


def _origins(place: Path) -> set[str]:
    try:
        return set((place / _ORIGINS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return set()


def _note_origin(place: Path, origin: str) -> None:
    if origin not in _origins(place):
        with (place / _ORIGINS).open("a", encoding="utf-8") as known:
            known.write(origin + "\n")


def _bytes_of(place: Path) -> int:
    total = 0
    for path in place.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() and path.name != _ORIGINS else 0
    return total


def _enter(partial: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    try:
        partial.rename(place)
    except OSError:
        if not place.is_dir():  # otherwise another process was first with the same content
            raise
