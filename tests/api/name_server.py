"""A name server on loopback that answers as it is told, or never."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class NameServer(asyncio.DatagramProtocol):
    """Knows A records; of names in `silent` it says nothing, of all others that they do not exist."""

    def __init__(self, known: dict[str, list[str]], silent: str) -> None:
        self.known = known
        self.silent = silent
        self.asked: list[str] = []
        self.port = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        name, kind = _question(data)
        self.asked.append(name)
        if name.endswith(self.silent):
            return
        addresses = self.known.get(name)
        found = [socket.inet_aton(one) for one in addresses or () if kind == 1]
        flags = 0x8180 if addresses is not None else 0x8183  # no such name
        question = data[12 : data.index(b"\0", 12) + 5]
        head = data[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0)
        answers = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + one for one in found)
        self._transport.sendto(head + question + answers, address)


def _question(data: bytes) -> tuple[str, int]:
    at, labels = 12, []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii").lower())
        at += 1 + data[at]
    return ".".join(labels), struct.unpack(">H", data[at + 1 : at + 3])[0]


@asynccontextmanager
async def name_server(known: dict[str, list[str]], silent: str = ".silent.example") -> AsyncIterator[NameServer]:
    made = NameServer(known, silent)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: made, local_addr=("127.0.0.1", 0))
    made.port = transport.get_extra_info("sockname")[1]
    try:
        yield made
    finally:
        transport.close()
