"""HTTP by hand, for clients that no library would be: unfinished, slow, never reading, or answered early."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Talk = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def talking(live: Any, *pieces: bytes) -> AsyncIterator[Talk]:
    """A connection that has sent something; cut off at the end of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        yield reader, writer
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def dribbling(writer: asyncio.StreamWriter, piece: bytes) -> AsyncIterator[None]:
    """A piece now and then, for as long as the block lasts."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(piece)
                await asyncio.sleep(0.05)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def head(method: str, path: str, secret: str, *headers: str) -> bytes:
    """A request with a key and a chunked body that follows."""
    lines = [f"{method} /api/v3{path} HTTP/1.1", "Host: a", f"Authorization: Bearer {secret}", *headers]
    return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """All that still comes; a connection that is cut off is over as well."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := await asyncio.wait_for(reader.read(1 << 16), 20):
            got += piece
    return got


async def answered(reader: asyncio.StreamReader) -> bytes:
    """One answer that says how long it is."""
    async with asyncio.timeout(20):
        got = await reader.readuntil(b"\r\n\r\n")
        length = int(got.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        return got + await reader.readexactly(length)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["code"])
