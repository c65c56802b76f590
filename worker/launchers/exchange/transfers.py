"""Files between a node and object storage, by signed addresses: a few at once, patiently, checked on the way."""

import asyncio
import base64
import errno
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeVar

from worker.launchers.exchange.interface import MOST_WANTS
from worker.launchers.exchange.signed_addresses import SignedAddresses
from worker.launchers.exchange.signed_http import AbsentError, GivenUpError, read_into, write_file
from worker.launchers.exchange.storage_word import GET, LARGEST_UPLOAD, PUT

_AT_ONCE: Final = 4
WAITING: Final = MOST_WANTS
"""Files whose addresses are asked for in one question; ``_AT_ONCE`` of them move, the others wait for their turn."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_PIECE: Final = 1 << 20
_FOR_EVER: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Of this node's own disk: no patience helps."""
Result = TypeVar("Result")


class TooLargeToUploadError(Exception):
    """A file is larger than one signed request can carry."""


@dataclass(frozen=True)
class Digests:
    """Of one file, taken in one reading."""

    bytes: int
    sha256: str
    md5: str
    """In base64, as HTTP wants it."""


class Transfers:
    """Every transfer of one step.

    Attributes:
        patience_s: for how long the storage may be away without a byte moving.
        moved: bytes that were read or written so far.
    """

    def __init__(self, addresses: SignedAddresses) -> None:
        self._addresses = addresses
        # threads of its own: no transfer may keep the questions for the right waiting
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="transfer")
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._given_up = False
        self.patience_s = 600.0
        self.moved = 0

    @property
    def given_up(self) -> bool:
        """Whether ``give_up`` was called."""
        return self._given_up

    def give_up(self) -> None:
        """End every transfer, now and from now on."""
        self._given_up = True

    async def download(self, key: str, size: int, target: Path) -> str:
        """An object into a new file, going on where it broke off; its SHA-256.

        Raises:
            AbsentError: there is none.
            GivenUpError: see ``give_up``.
            OSError: patience is over, or this node's disk is at fault.
        """
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        with await asyncio.to_thread(target.open, "wb") as file:
            coming = _Coming(file, self)
            await self._patiently(GET + key, lambda url: read_into(url, coming, size))
        return coming.sha256.hexdigest()

    async def digests(self, path: Path) -> Digests:
        """Read a file through.

        Raises:
            FileNotFoundError: it is gone.
        """
        return await self._in_thread(lambda: _digests(path))

    async def upload(self, path: Path, name: str, digests: Digests) -> None:
        """A file to its place below the attempt's prefix.

        Raises:
            FileNotFoundError: it is gone.
            TooLargeToUploadError: see there.
            GivenUpError: see ``give_up``.
            OSError: patience is over.
        """
        if digests.bytes > LARGEST_UPLOAD:
            raise TooLargeToUploadError(f"{name} has {digests.bytes} bytes, more than {LARGEST_UPLOAD}")
        await self._patiently(PUT + name, lambda url: write_file(url, path, digests.bytes, digests.md5))
        self.moved += digests.bytes

    async def _patiently(self, want: str, act: Callable[[str], None]) -> None:
        pause_s, moved, deadline = _FIRST_PAUSE_S, self.moved, time.monotonic() + self.patience_s
        while True:
            try:
                await self._given(want)  # of many files by one word
                async with self._turns:
                    url = await self._given(want)  # at hand, unless its turn came so late that it is not fresh any more
                    return await self._in_thread(lambda url=url: act(url))  # type: ignore[misc]
            except (AbsentError, GivenUpError, FileNotFoundError):
                raise
            except OSError as error:  # an expired address, too: the next try gets a fresh one
                if self.moved > moved:
                    pause_s, moved, deadline = _FIRST_PAUSE_S, self.moved, time.monotonic() + self.patience_s
                if error.errno in _FOR_EVER or time.monotonic() > deadline:
                    raise
            finally:
                self._addresses.forget(want)
            if self._given_up:
                raise GivenUpError("given up")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _given(self, want: str) -> str:
        async with asyncio.timeout(self.patience_s):  # the owner may be gone
            return await self._addresses.get(want)

    async def _in_thread(self, act: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)


class _Coming:
    """A file that is coming: see ``signed_http.Sink``."""

    def __init__(self, file: IO[bytes], transfers: Transfers) -> None:
        self.have = 0
        self.sha256: Final = hashlib.sha256()
        self._file = file
        self._transfers = transfers

    def write(self, piece: bytes) -> None:
        if self._transfers.given_up:
            raise GivenUpError("given up")
        self._file.write(piece)
        self.sha256.update(piece)
        self.have += len(piece)
        self._transfers.moved += len(piece)


def _digests(path: Path) -> Digests:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
            md5.update(piece)
            size += len(piece)
    return Digests(size, sha256.hexdigest(), base64.b64encode(md5.digest()).decode())


async def with_signs_of_life(
    work: Awaitable[Result], transfers: Transfers, tell: Callable[[], None], every_s: float
) -> Result:
    """Wait for some work, and tell now and then that bytes are moving, if they are."""
    task, moved = asyncio.ensure_future(work), transfers.moved
    try:
        while not (await asyncio.wait({task}, timeout=every_s))[0]:
            if transfers.moved > moved:
                moved = transfers.moved
                tell()
        return task.result()
    finally:
        task.cancel()
