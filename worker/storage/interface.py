"""What every storage can do. Keys are checked, errors are ours, nothing is held in memory whole."""

import abc
import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Final, Literal

from schemas.digest import digest_of, file_digest, open_digest, tree_digest
from worker.concurrency import all_of
from worker.errors import NotStored, Spoiled
from worker.storage.beneath import files_beneath, open_beneath

Key = str | Callable[[str], str]
"""A storage key, or what makes one from the SHA-256 of the bytes, which is known only at their end."""
Method = Literal["GET", "PUT"]
UPLOADS_AT_ONCE: Final = 4
CHECKED_AT_ONCE: Final = 4


@dataclass(frozen=True)
class StorageOptions:
    """How to reach a storage; values only, nothing is read from the environment here.

    Attributes:
        cache: folder on this host for what is fetched from a remote storage, and for uploads under way.
        endpoint: address of an S3 server that is not Amazon's; http:// means no TLS.
        path_style: the bucket in the path instead of the host name. None: so where an endpoint is given, as most
            servers of one's own want it.
        ca_file: certificates (PEM) to trust beside the system's.
        patience_s: how long a storage may be away before that is an error.
        mask: permission bits that files and folders on this host do not get.
        extra: further options of obstore's, by its names: for Google Cloud Storage and Azure.
    """

    cache: Path | None = None
    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    path_style: bool | None = None
    ca_file: Path | None = None
    patience_s: float = 60.0
    mask: int = 0o077
    extra: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Stored:
    """One object, as a listing tells it."""

    key: str
    bytes: int
    modified: datetime
    tag: str = ""
    """Changes with the content, where the storage says so."""


@dataclass(frozen=True)
class StoredFile:
    """One file of an uploaded folder; `path` is relative to the folder."""

    path: str
    sha256: str
    bytes: int


class Storage(abc.ABC):
    """Objects under keys like ``runs/<run>/<attempt>/train/model.safetensors``.

    Every method raises ``StorageAway`` (``StorageFull``, ``StorageRefused``) where the storage is at fault,
    and ``ValueError`` for a key that cannot be one.
    """

    url: str
    """Where it is, without credentials."""

    @abc.abstractmethod
    async def put_bytes(self, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """Store a small object, whole or not at all.

        Returns:
            False where `only_if_absent` found another object under the key, which stays as it is.
        """

    @abc.abstractmethod
    async def put_file(self, path: Path, key: str, *, move: bool = False) -> int:
        """Store a file's bytes.

        Args:
            path: the file; a link is refused.
            key: where.
            move: the caller has no further use for the file; it is gone afterwards.

        Returns:
            Bytes stored.

        Raises:
            ValueError: it is no file.
        """

    @abc.abstractmethod
    async def put_open(self, file: BufferedReader, key: str) -> int:
        """Store all bytes of an open file, from its beginning; how many.

        Args:
            file: with a descriptor of its own; the caller closes it.
            key: where.
        """

    @abc.abstractmethod
    async def put_stream(self, key: Key, chunks: AsyncIterator[bytes], limit_bytes: int) -> tuple[int, str]:
        """Store what comes in, whatever its length; nothing is stored unless `chunks` ends well.

        Returns:
            Bytes and SHA-256.

        Raises:
            TooLarge: more than `limit_bytes` came.
        """

    @abc.abstractmethod
    async def get_bytes(self, key: str, limit_bytes: int) -> bytes:
        """A small object.

        Raises:
            NotStored: there is none.
            TooLarge: it has more than `limit_bytes`.
        """

    @abc.abstractmethod
    def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in pieces of a few MB.

        Raises:
            NotStored: there is no such object.
        """

    @abc.abstractmethod
    async def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""

    @abc.abstractmethod
    def listing(self, prefix: str = "") -> AsyncIterator[Stored]:
        """Every object below a prefix, which counts whole segments: ``runs/1`` does not find ``runs/10``."""

    @abc.abstractmethod
    async def delete(self, keys: Iterable[str]) -> None:
        """Objects that are gone afterwards; one that was not there is no error."""

    @abc.abstractmethod
    async def materialize(self, key: str, *, sha256: str | None = None) -> Path:
        """An object, or all below a prefix, as a local file or folder to read from. Never write there.

        Args:
            key: key or prefix.
            sha256: what it must be (``file_digest``, or ``tree_digest`` of a folder). Checked here.

        Raises:
            NotStored: there is nothing.
            Spoiled: it is something else than `sha256` says.
        """

    @abc.abstractmethod
    def local_path(self, key: str) -> Path | None:
        """Where the object lies, or would lie, on this host; None where it does not."""

    @abc.abstractmethod
    async def signed_url(self, key: str, expires_s: float, method: Method = "GET") -> str:
        """An address that lets its bearer read or write this one object for a while, without credentials.

        Raises:
            StorageRefused: this storage has no such addresses.
        """

    @abc.abstractmethod
    async def tidy(self, keep_bytes: int, unused_s: float, partial_s: float, oldest_s: float) -> int:
        """Clear this host of what a remote storage left on it.

        Args:
            keep_bytes: of what was fetched; the rest goes, what was used longest ago first,
            unused_s: but nothing that was used within so many seconds.
            partial_s: files older than this that never became whole were left by a killed process.
            oldest_s: what was not used for so long goes, however much room there is.

        Returns:
            Bytes removed.
        """

    async def fetched(self, unused_s: float) -> set[str]:
        """Keys of what was fetched to this host and not used for so many seconds; none where nothing is fetched."""
        del unused_s
        return set()

    async def forget_fetched(self, keys: Collection[str], unused_s: float) -> int:
        """Remove from this host what was fetched under these keys and not used for so long; bytes removed."""
        del keys, unused_s
        return 0

    async def aclose(self) -> None:
        """Let go of threads and connections."""
        return

    async def address(self, key: str, expires_s: float) -> str:
        """How a step reaches an object for reading: its path on this host, or a signed URL."""
        path = self.local_path(key)
        return str(path) if path is not None else await self.signed_url(key, expires_s)

    async def check(self, key: str, sha256: str) -> None:
        """Read an object, or all below a prefix, through once and keep nothing of it.

        Args:
            key: key or prefix.
            sha256: what it must be (``file_digest``, or ``tree_digest`` of a folder).

        Raises:
            NotStored: there is nothing.
            Spoiled: it is something else than `sha256` says.
        """

        async def digest(at: str) -> tuple[str, str]:
            found = hashlib.sha256()
            async for piece in self.stream(at):
                await asyncio.to_thread(found.update, piece)
            return at[len(key) + 1 :], found.hexdigest()

        if await self.size(key) is not None:
            found = (await digest(key))[1]
        else:
            names = [stored.key async for stored in self.listing(key)]
            found = digest_of(await all_of(names, digest, CHECKED_AT_ONCE))
            if not names and found != sha256:
                raise NotStored(key)
        if found != sha256:
            raise Spoiled(f"{key} has the digest {found[:12]}…, not {sha256[:12]}…")

    async def delete_prefix(self, prefix: str) -> int:
        """Delete everything below a prefix; how many objects that were."""
        if not prefix:
            raise ValueError("delete_prefix takes a prefix")
        keys = [stored.key async for stored in self.listing(prefix)]
        await self.delete(keys)
        return len(keys)

    async def upload_folder(self, folder: Path, prefix: str, inside: str = "") -> list[StoredFile]:
        """Store every file below a folder under a prefix.

        The program that filled the folder may still be changing it: no link is followed, on no part of the way, and a
        file's digest is that of the very file that was stored.

        Args:
            folder: made by ourselves.
            prefix: where.
            inside: only what lies in this folder below it.

        Returns:
            Path relative to the folder (the inner one), digest and size of each file, sorted by path.

        Raises:
            ValueError: something in the folder is neither file nor folder; a link may lead anywhere.
            OSError: the folder is not there.
        """
        names = await asyncio.to_thread(files_beneath, folder, inside)

        async def upload(name: str) -> StoredFile:
            file = await asyncio.to_thread(open_beneath, folder, f"{inside}/{name}" if inside else name)
            with file:
                sha256 = await asyncio.to_thread(open_digest, file)
                return StoredFile(name, sha256, await self.put_open(file, f"{prefix}/{name}"))

        return await all_of(names, upload, UPLOADS_AT_ONCE)


def check_digest(path: Path, sha256: str) -> None:
    """Compare a file or folder with the digest it should have; reads all of it.

    Raises:
        Spoiled: it has another.
    """
    found = tree_digest(path) if path.is_dir() else file_digest(path)
    if found != sha256:
        raise Spoiled(f"{path.name} has the digest {found[:12]}…, not {sha256[:12]}…")
