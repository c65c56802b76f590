"""Objects as files below one folder: the embedded default."""

import asyncio
import errno
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Final, TypeVar

from worker.errors import StorageRefused, TooLarge
from worker.storage.beneath import open_plain
from worker.storage.disk import local_errors, make_folder, owner_for_root, remove_older, writing_errors
from worker.storage.interface import Key, Method, Storage, Stored, check_digest
from worker.storage.keys import PARTIAL, check_key, check_prefix
from worker.storage.spool import PIECE, spool

Result = TypeVar("Result")

PRIVATE: Final = 0o077
"""Permission bits that are taken away unless somebody says otherwise: all of others' and of the group's."""
_THREADS: Final = 4
_RACES: Final = 20
"""How often other threads and processes may take a folder away as empty before something is put into it."""


class FileStorage(Storage):
    """A folder. An object is written beside its place, synced and renamed: it is whole or not there.

    Args:
        root: the folder; made where it is missing.
        mask: permission bits that no file or folder in it gets, whatever the umask is.
    """

    def __init__(self, root: Path, *, mask: int = PRIVATE) -> None:
        self.root = root.absolute()
        self.url = self.root.as_uri()
        self._mask = mask
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")
        with writing_errors():
            self._owner = owner_for_root(self.root)
            make_folder(self.root / PARTIAL, mask, self._owner)

    async def aclose(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _do(self, function: Callable[[], Result]) -> Result:
        """Run in a thread of our own: a slow disk must not take the threads that resolve host names."""
        with local_errors():
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _partial(self) -> Path:
        return self.root / PARTIAL / uuid.uuid4().hex

    async def put_bytes(self, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """See `Storage`."""
        path = self._path(key)

        def put() -> bool:
            partial = self._partial()
            try:
                with self._created(partial) as file:
                    file.write(data)
                if only_if_absent:  # unlike a rename, a link fails where somebody was first
                    self._in_folder(path, lambda: os.link(partial, path))
                else:
                    self._placed(partial, path)
            except FileExistsError:
                return False
            else:
                return True
            finally:
                partial.unlink(missing_ok=True)

        return await self._do(put)

    async def put_file(self, path: Path, key: str, *, move: bool = False) -> int:
        """See `Storage`. A move within one file system costs no copy."""
        target = self._path(key)

        def put() -> int:
            with open_plain(path) as file:
                if move:
                    self._settle(file)
                    try:
                        return self._placed(path, target)
                    except OSError as error:
                        if error.errno != errno.EXDEV:  # another file system needs a copy
                            raise
                size = self._copied(file, target)
            if move:
                path.unlink()
            return size

        return await self._do(put)

    async def put_open(self, file: BufferedReader, key: str) -> int:
        """See `Storage`."""
        target = self._path(key)
        return await self._do(lambda: self._copied(file, target))

    def _copied(self, file: BufferedReader, target: Path) -> int:
        partial = self._partial()
        try:
            file.seek(0)
            with self._created(partial) as copy:
                shutil.copyfileobj(file, copy, PIECE)
            return self._placed(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _created(self, path: Path) -> Iterator[BufferedWriter]:
        """A new file, whole on the disk when the block ends."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            self._settle(file)

    def _settle(self, file: BufferedReader | BufferedWriter) -> None:
        """Give a file the owner and the rights that files have here, and make it outlive a power cut."""
        if self._owner is not None:
            with suppress(PermissionError):  # root of a container or an NFS client may not
                os.fchown(file.fileno(), *self._owner)
        with suppress(PermissionError):  # a file system that knows no rights
            os.fchmod(file.fileno(), 0o666 & ~self._mask)
        os.fsync(file.fileno())

    async def put_stream(self, key: Key, chunks: AsyncIterator[bytes], limit_bytes: int) -> tuple[int, str]:
        """See `Storage`."""
        partial = self._partial()
        try:
            size, sha256 = await spool(chunks, partial, limit_bytes)
            await self.put_file(partial, key(sha256) if callable(key) else key, move=True)
        finally:
            await self._do(lambda: partial.unlink(missing_ok=True))
        return size, sha256

    async def get_bytes(self, key: str, limit_bytes: int) -> bytes:
        """See `Storage`."""
        path = self._path(key)

        def get() -> bytes:
            with path.open("rb") as file:
                return file.read(limit_bytes + 1)

        data = await self._do(get)
        if len(data) > limit_bytes:
            raise TooLarge(f"{key} has more than {limit_bytes} bytes")
        return data

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `Storage`."""
        path = self._path(key)
        file = await self._do(lambda: path.open("rb"))
        try:
            await self._do(lambda: file.seek(start))
            left = None if end is None else max(0, end - start)
            while left is None or left > 0:
                wanted = PIECE if left is None else min(PIECE, left)
                piece = await self._do(lambda wanted=wanted: file.read(wanted))  # type: ignore[misc]
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece
        finally:
            file.close()

    async def size(self, key: str) -> int | None:
        """See `Storage`."""
        path = self._path(key)
        return await self._do(lambda: path.stat().st_size if path.is_file() else None)

    async def listing(self, prefix: str = "") -> AsyncIterator[Stored]:
        """See `Storage`."""
        folder = self.root / check_prefix(prefix)
        for stored in await self._do(lambda: list(self._walk(folder))):
            yield stored

    def _walk(self, folder: Path) -> Iterator[Stored]:
        for here, folders, names in os.walk(folder):
            if Path(here) == self.root:
                folders[:] = [name for name in folders if name != PARTIAL]
            folders.sort()
            for name in sorted(names):
                path = Path(here) / name
                with suppress(FileNotFoundError):  # deleted meanwhile
                    state = path.stat()
                    modified = datetime.fromtimestamp(state.st_mtime, UTC)
                    key = path.relative_to(self.root).as_posix()
                    yield Stored(key, state.st_size, modified, f"{state.st_ino}-{state.st_mtime_ns}")

    async def delete(self, keys: Iterable[str]) -> None:
        """See `Storage`. Folders that become empty go as well."""
        paths = [self._path(key) for key in keys]

        def delete() -> None:
            for path in paths:
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
                for folder in path.parents:
                    if folder == self.root:
                        break
                    try:
                        folder.rmdir()
                    except OSError:
                        break  # something else lies there

        await self._do(delete)

    async def materialize(self, key: str, *, sha256: str | None = None) -> Path:
        """See `Storage`: the object itself, nothing is copied."""
        path = self._path(key)

        def look() -> Path:
            path.stat()
            if sha256 is not None:
                check_digest(path, sha256)
            return path

        return await self._do(look)

    async def tidy(self, keep_bytes: int, unused_s: float, partial_s: float, oldest_s: float) -> int:
        """See `Storage`: nothing is fetched, but a killed process may have left half a file."""
        del keep_bytes, unused_s, oldest_s
        return await self._do(lambda: remove_older(self.root / PARTIAL, partial_s))

    def _placed(self, source: Path, target: Path) -> int:
        """Rename a synced file to its name, so that a power cut leaves the old one or this; its size."""
        size = source.stat().st_size
        self._in_folder(target, lambda: source.replace(target))
        return size

    def _in_folder(self, target: Path, act: Callable[[], object]) -> None:
        """Do something in a folder that is missing, or that a delete has just taken away as empty."""
        for tries_left in reversed(range(_RACES)):
            try:
                make_folder(target.parent, self._mask, self._owner)
                act()
            except FileNotFoundError:
                if not tries_left:
                    raise
            else:
                break
        sync(target.parent)

    def local_path(self, key: str) -> Path:
        """See `Storage`."""
        return self._path(key)

    async def signed_url(self, key: str, expires_s: float, method: Method = "GET") -> str:
        """Files have none.

        Raises:
            StorageRefused: always.
        """
        raise StorageRefused(
            f"files have no signed addresses ({method} {key}, {expires_s:.0f} s): use s3://, gs:// or az://"
        )


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
