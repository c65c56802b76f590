"""S3, Google Cloud Storage and Azure, through obstore."""

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, TypeVar

import obstore
from obstore import exceptions as foreign

from worker.concurrency import all_of
from worker.errors import NotStored, TooLarge
from worker.storage.beneath import open_plain
from worker.storage.cache import Cache
from worker.storage.connect import connected
from worker.storage.disk import remove_older, writing_errors
from worker.storage.interface import Key, Method, Storage, StorageOptions, Stored, check_digest
from worker.storage.keys import PARTIAL, check_key, check_prefix
from worker.storage.patience import patiently
from worker.storage.spool import spool

Result = TypeVar("Result")

PART_BYTES: Final = 8 << 20
"""One request carries at most this much, so that every request is short and can be repeated."""
_MOST_PARTS: Final = 9_000
_PARTS_AT_ONCE: Final = 4
_FILES_AT_ONCE: Final = 4
_KEYS_AT_ONCE: Final = 1_000


class RemoteStorage(Storage):
    """A bucket, or a folder of one.

    Args:
        url: ``s3://bucket/prefix``, ``gs://…`` or ``az://…``.
        options: how to reach it.

    Raises:
        StorageRefused: an option that obstore does not know.
    """

    def __init__(self, url: str, options: StorageOptions) -> None:
        self.url = url
        self.options = options
        self._patience_s = options.patience_s
        self._own_cache = None if options.cache else Path(tempfile.mkdtemp(prefix="speech-training-"))
        self.cache = Cache(options.cache or self._own_cache or Path())
        # Few retries of obstore's own: `patiently` is what waits, and it renews signatures.
        self._store = connected(url, options, retries=2)
        self._unretried = connected(url, options, retries=0)
        self._parts = asyncio.Semaphore(_PARTS_AT_ONCE * 2)

    async def aclose(self) -> None:
        """Remove the cache, where nobody named a lasting one."""
        if self._own_cache is not None:
            await asyncio.to_thread(shutil.rmtree, self._own_cache, ignore_errors=True)

    async def _do(self, act: Callable[[], Awaitable[Result]]) -> Result:
        return await patiently(act, self._patience_s)

    async def put_bytes(self, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """See `Storage`."""
        check_key(key)
        if not only_if_absent:
            await self._do(lambda: obstore.put_async(self._store, key, data, use_multipart=False))
            return True
        tries = 0

        async def create() -> None:
            nonlocal tries
            tries += 1
            # No retries inside obstore: it would not tell us of them.
            await obstore.put_async(self._unretried, key, data, mode="create")

        try:
            await self._do(create)
        except foreign.AlreadyExistsError:
            # Perhaps our own, when the answer to an earlier try was lost: the bytes tell.
            return tries > 1 and await self._holds(key, data)
        return True

    async def _holds(self, key: str, data: bytes) -> bool:
        try:
            return await self.get_bytes(key, len(data)) == data
        except TooLarge:
            return False

    async def put_file(self, path: Path, key: str, *, move: bool = False) -> int:
        """See `Storage`. Large files go up in parts, a few at once."""
        check_key(key)
        with await asyncio.to_thread(open_plain, path) as file:
            size = await self.put_open(file, key)
        if move:
            await asyncio.to_thread(path.unlink)
        return size

    async def put_open(self, file: BufferedReader, key: str) -> int:
        """See `Storage`."""
        check_key(key)
        size = os.fstat(file.fileno()).st_size
        if size <= PART_BYTES:
            await asyncio.to_thread(file.seek, 0)
            data = await asyncio.to_thread(file.read)
            await self._do(lambda: obstore.put_async(self._store, key, data, use_multipart=False))
            return len(data)
        part = max(PART_BYTES, size // _MOST_PARTS + 1)
        # The open file itself, by its name in /proc: each try reads it anew, and nobody can have put another there.
        opened = Path(f"/proc/self/fd/{file.fileno()}")
        await self._do(
            lambda: obstore.put_async(
                self._store,
                key,
                opened,
                use_multipart=True,
                chunk_size=part,
                max_concurrency=_PARTS_AT_ONCE,
            )
        )
        return size

    async def put_stream(self, key: Key, chunks: AsyncIterator[bytes], limit_bytes: int) -> tuple[int, str]:
        """See `Storage`. Spooled on this host first: only what is whole goes up, and can go up again."""
        partial = self.cache.partial()
        try:
            size, sha256 = await spool(chunks, partial, limit_bytes)
            await self.put_file(partial, key(sha256) if callable(key) else key)
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)
        return size, sha256

    async def get_bytes(self, key: str, limit_bytes: int) -> bytes:
        """See `Storage`."""
        check_key(key)

        async def small() -> tuple[int, bytes | None]:
            found = await obstore.get_async(self._store, key)
            size = found.meta["size"]
            return size, bytes(await found.bytes_async()) if size <= min(limit_bytes, PART_BYTES) else None

        size, data = await self._do(small)
        if size > limit_bytes:
            raise TooLarge(f"{key} has {size} bytes, more than {limit_bytes}")
        return b"".join([piece async for piece in self.stream(key)]) if data is None else data

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `Storage`."""
        size = await self._known_size(key)
        end = size if end is None else min(end, size)
        while start < end:
            piece = await self._piece(key, start, min(start + PART_BYTES, end))
            start += len(piece)
            yield piece

    async def _piece(self, key: str, start: int, end: int) -> bytes:
        return bytes(await self._do(lambda: obstore.get_range_async(self._store, key, start=start, end=end)))

    async def _known_size(self, key: str) -> int:
        size = await self.size(key)
        if size is None:
            raise NotStored(key)
        return size

    async def size(self, key: str) -> int | None:
        """See `Storage`."""
        check_key(key)
        found = await self._head(key)
        return found.bytes if found else None

    async def _head(self, key: str) -> Stored | None:
        try:
            return _stored(await self._do(lambda: obstore.head_async(self._store, key)))
        except NotStored:
            return None

    async def listing(self, prefix: str = "") -> AsyncIterator[Stored]:
        """See `Storage`. A broken listing goes on behind the last key it gave."""
        check_prefix(prefix)
        last: str | None = None
        while True:
            page = await self._do(lambda last=last: self._page(prefix, last))  # type: ignore[misc]
            for found in page:
                yield _stored(found)
            if not page:
                return
            last = page[-1]["path"]

    async def _page(self, prefix: str, after: str | None) -> list[Any]:
        async for page in obstore.list(self._store, prefix or None, offset=after, chunk_size=_KEYS_AT_ONCE):
            return list(page)
        return []

    async def delete(self, keys: Iterable[str]) -> None:
        """See `Storage`."""
        wanted = [check_key(key) for key in keys]
        for start in range(0, len(wanted), _KEYS_AT_ONCE):
            some = wanted[start : start + _KEYS_AT_ONCE]
            try:
                await self._do(lambda some=some: obstore.delete_async(self._store, some))  # type: ignore[misc]
            except NotStored:  # some storages mind; then one by one, as every other one still has to go
                await all_of(some, self._delete_one, _FILES_AT_ONCE)

    async def _delete_one(self, key: str) -> None:
        try:
            await self._do(lambda: obstore.delete_async(self._store, key))
        except NotStored:
            return

    async def materialize(self, key: str, *, sha256: str | None = None) -> Path:
        """See `Storage`: fetched once for each content, then kept on this host."""
        check_key(key)
        name = key.rpartition("/")[2]
        found = await self._found(key) if sha256 is None else None
        content = sha256 or f"{self.url}\n{found}"

        async def fetch(folder: Path) -> None:
            target = folder / name
            files = found or await self._found(key)
            await all_of(
                files,
                lambda stored: self._download(stored, _place_of(stored.key, key, target)),
                _FILES_AT_ONCE,
            )
            if sha256 is not None:
                await asyncio.to_thread(check_digest, target, sha256)

        place = await self.cache.kept(hashlib.sha256(f"{name}\n{content}".encode()).hexdigest(), fetch, key)
        return place / name

    async def _found(self, key: str) -> list[Stored]:
        """The object under a key, else all below it."""
        one = await self._head(key)
        found = [one] if one else [stored async for stored in self.listing(key)]
        if not found:
            raise NotStored(key)
        return found

    async def _download(self, stored: Stored, path: Path) -> None:
        """One object into a new file, in parts, a few at once."""
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

        async def part(start: int) -> None:
            async with self._parts:
                piece = await self._piece(stored.key, start, min(start + PART_BYTES, stored.bytes))
                with writing_errors():
                    await asyncio.to_thread(_write_at, descriptor, piece, start)

        try:
            await all_of(range(0, stored.bytes, PART_BYTES), part, _PARTS_AT_ONCE)
            with writing_errors():
                await asyncio.to_thread(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    async def tidy(self, keep_bytes: int, unused_s: float, partial_s: float, oldest_s: float) -> int:
        """See `Storage`. Parts of uploads that a killed process began are the bucket's: give it a lifecycle rule."""
        partial = await asyncio.to_thread(remove_older, self.cache.folder / PARTIAL, partial_s)
        return partial + await asyncio.to_thread(self.cache.trim, keep_bytes, unused_s, oldest_s)

    async def fetched(self, unused_s: float) -> set[str]:
        """See `Storage`."""
        return await asyncio.to_thread(self.cache.origins, unused_s)

    async def forget_fetched(self, keys: Collection[str], unused_s: float) -> int:
        """See `Storage`."""
        return await asyncio.to_thread(self.cache.forget, keys, unused_s)

    def local_path(self, key: str) -> None:
        """Nothing lies on this host."""
        check_key(key)

    async def signed_url(self, key: str, expires_s: float, method: Method = "GET") -> str:
        """See `Storage`."""
        check_key(key)
        return str(await self._do(lambda: obstore.sign_async(self._store, method, key, timedelta(seconds=expires_s))))


def _stored(found: Any) -> Stored:
    return Stored(found["path"], found["size"], found["last_modified"], found["e_tag"] or "")


def _place_of(key: str, prefix: str, target: Path) -> Path:
    """Where an object of a materialized prefix goes; a bucket may hold keys that would lead elsewhere."""
    return target if key == prefix else target / check_key(key)[len(prefix) + 1 :]


def _write_at(descriptor: int, piece: bytes, start: int) -> None:
    left = memoryview(piece)
    while left:
        written = os.pwrite(descriptor, left, start)
        left, start = left[written:], start + written
