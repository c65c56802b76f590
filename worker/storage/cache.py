"""What was fetched from a remote storage, kept on this host by its content."""

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from worker.storage.keys import PARTIAL


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

    async def kept(self, digest: str, fetch: Callable[[Path], Awaitable[None]]) -> Path:
        """The folder of a digest; `fetch` fills it where it is missing."""
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
            with suppress(OSError):  # the time of last use; another process may be trimming
                os.utime(place)
        return place

    def trim(self, keep_bytes: int, unused_s: float) -> int:
        """Remove what was used longest ago until `keep_bytes` are left, but nothing used within `unused_s`.

        Returns:
            Bytes removed.
        """
        found = sorted(
            (place.stat().st_mtime, place) for place in self.folder.glob("[0-9a-f][0-9a-f]/*") if place.is_dir()
        )
        sizes = {place: sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) for _, place in found}
        held, removed, newest = sum(sizes.values()), 0, time.time() - unused_s
        for used_at, place in found:
            if held <= keep_bytes or used_at > newest:
                break
            gone = self.partial()
            with suppress(OSError):
                place.rename(gone)  # so that nobody finds half of it
                shutil.rmtree(gone, ignore_errors=True)
                held, removed = held - sizes[place], removed + sizes[place]
        return removed


def _enter(partial: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    try:
        partial.rename(place)
    except OSError:
        if not place.is_dir():  # otherwise another process was first with the same content
            raise
