"""Joins two addresses: what connects to the first is passed on to the second, byte by byte.

    python forward.py tcp:127.0.0.1:8265 unix:/tmp/x    and in the other namespace    unix:/tmp/x tcp:127.0.0.1:8265

A pathname socket reaches across network namespaces, so that one can talk to a cluster that has no network.
"""

import asyncio
import sys
from contextlib import suppress


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, until either side has had enough."""
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to ``unix:<path>`` or ``tcp:<host>:<port>``."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(rest)
    host, _, port = rest.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def main(listen: str, target: str) -> None:
    """Listen at the one address and pass everything on to the other, for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect(target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    kind, _, rest = listen.partition(":")
    if kind == "unix":
        server = await asyncio.start_unix_server(serve, rest)
    else:
        host, _, port = rest.rpartition(":")
        server = await asyncio.start_server(serve, host, int(port))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
