"""What comes in over the network, to a file: a little at a time, its digest taken on the way."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

from worker.errors import TooLarge
from worker.storage.disk import writing_errors

PIECE: Final = 1 << 20
"""Bytes read or written in one go."""


def _created(path: Path) -> BinaryIO:
    """A new file for us alone, whatever the umask."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb")


async def spool(chunks: AsyncIterator[bytes], path: Path, limit_bytes: int) -> tuple[int, str]:
    """Write `chunks` to a new file and sync it.

    Returns:
        Bytes and SHA-256.

    Raises:
        TooLarge: more than `limit_bytes` came.
        StorageAway: the disk is full or broken.
    """
    digest = hashlib.sha256()
    waiting = bytearray()
    size = 0
    with writing_errors():
        file = await asyncio.to_thread(_created, path)

    def write(piece: bytes, *, last: bool) -> None:
        digest.update(piece)
        with writing_errors():  # only here: the errors of `chunks` are its own
            file.write(piece)
            if last:
                file.flush()
                os.fsync(file.fileno())

    try:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit_bytes:
                raise TooLarge(f"more than {limit_bytes} bytes")
            waiting += chunk
            if len(waiting) >= PIECE:
                await asyncio.to_thread(write, bytes(waiting), last=False)
                waiting.clear()
        await asyncio.to_thread(write, bytes(waiting), last=True)
    finally:
        file.close()
    return size, digest.hexdigest()
