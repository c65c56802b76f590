"""A wire that misbehaves on demand: between a client and Postgres or RabbitMQ.

It can pause, delay and cut, and it can lose an answer: the statement goes through, the server does what it
says, and the connection breaks before the client hears of it. For Postgres this is exact to one statement.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

_READ: Final = 65_536
_EXECUTE, _SIMPLE_QUERY, _READY = b"E", b"Q", b"Z"


class Frames:
    """Cuts a Postgres stream into (type, body) messages; the first client message has no type byte."""

    def __init__(self, *, untyped_first: bool) -> None:
        self._rest = b""
        self._untyped = untyped_first

    def push(self, data: bytes) -> list[tuple[bytes, bytes]]:
        self._rest += data
        found = []
        while True:
            head = 0 if self._untyped else 1
            if len(self._rest) < head + 4:
                return found
            length = int.from_bytes(self._rest[head : head + 4], "big")
            if len(self._rest) < head + length:
                return found
            body = self._rest[head + 4 : head + length]
            found.append((b"" if self._untyped else self._rest[:1], body))
            self._rest = self._rest[head + length :]
            # SSLRequest is answered by one byte and followed by another untyped message.
            self._untyped = self._untyped and body[:4] == (80877103).to_bytes(4, "big")


@dataclass(eq=False)
class Wire:
    """One client's connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    swallowing: bool = False
    """The server's bytes are dropped; the connection breaks at its next ReadyForQuery."""
    bound: list[bytes] = field(default_factory=list)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            with contextlib.suppress(Exception):
                writer.transport.abort()


class Proxy:
    """A TCP proxy on loopback.

    Args:
        url: the server's address; ``url`` of the proxy is the same one through it.
        postgres: read the protocol, so that answers of single statements can be lost.
    """

    def __init__(self, url: str, *, postgres: bool = True) -> None:
        self._target = urlsplit(url)
        self._postgres = postgres
        self._server: asyncio.Server | None = None
        self._wires: set[Wire] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._delay_s = 0.0
        self._refusing = False
        self._lose: list[bytes] = []
        self._refuse_at: bytes | None = None
        self.refused_one = asyncio.Event()
        self._lose_any = 0
        self._swallow_all = False
        self.lost_answers = 0
        self.answer_lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.resume()
        self.cut()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        credentials = self._target.netloc.rpartition("@")[0]
        return urlunsplit(self._target._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    # --- the misbehaviours -------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Hold every byte back; new connections hang."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()
        self._refusing = False
        self._delay_s = 0.0
        self._swallow_all = False

    def delay(self, seconds: float) -> None:
        """Hold each piece back for so long."""
        self._delay_s = seconds

    def cut(self, most: int | None = None) -> int:
        """Break connections, all or at most so many; how many there were."""
        wires = list(self._wires)[:most]
        for wire in wires:
            wire.cut()
        return len(wires)

    def refuse(self) -> None:
        """Break connections, and every new one, until ``resume``."""
        self._refusing = True
        self.cut()

    def refuse_at(self, containing: bytes) -> None:
        """Let nothing through any more from the first statement on whose arguments contain these bytes."""
        self._refuse_at = containing

    def lose_answer_to(self, containing: bytes) -> None:
        """Lose the answer to the next statement whose arguments (or text) contain these bytes, and break the wire."""
        self.answer_lost.clear()
        self._lose.append(containing)

    def lose_answers(self, count: int) -> None:
        """Lose the answers to the next so many statements, whatever they are."""
        self._lose_any += count

    def swallow(self) -> None:
        """Forward what clients say and drop all that servers answer, until the wires are cut."""
        self._swallow_all = True

    # --- inside ------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        wire = Wire(writer, back)
        self._wires.add(wire)
        pumps = [
            asyncio.ensure_future(self._to_server(reader, wire)),
            asyncio.ensure_future(self._to_client(there, wire)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._wires.discard(wire)
            for end in (writer, back):
                with contextlib.suppress(Exception):
                    end.close()

    async def _held(self) -> None:
        await self._open.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
            await self._open.wait()

    async def _to_server(self, reader: asyncio.StreamReader, wire: Wire) -> None:
        frames = Frames(untyped_first=True)
        while data := await reader.read(_READ):
            await self._held()
            if self._postgres:
                for kind, body in frames.push(data):
                    self._judge(wire, kind, body)
            wire.server.write(data)
            await wire.server.drain()

    def _judge(self, wire: Wire, kind: bytes, body: bytes) -> None:
        if kind == b"B":
            wire.bound = [body]
        if kind not in {_EXECUTE, _SIMPLE_QUERY} or wire.swallowing:
            return
        said = b"".join(wire.bound) if kind == _EXECUTE else body
        if self._refuse_at is not None and self._refuse_at in said:
            self._refuse_at = None
            self.refused_one.set()
            self.refuse()
            return
        for wanted in self._lose:
            if wanted in said:
                self._lose.remove(wanted)
                wire.swallowing = True
                return
        if self._lose_any and kind == _EXECUTE:
            self._lose_any -= 1
            wire.swallowing = True

    async def _to_client(self, reader: asyncio.StreamReader, wire: Wire) -> None:
        frames = Frames(untyped_first=False)
        tls_answered = not self._postgres
        while data := await reader.read(_READ):
            await self._held()
            if not tls_answered and len(data) == 1:
                tls_answered = True  # the answer to SSLRequest is a lone byte
                wire.client.write(data)
                continue
            tls_answered = True
            messages = frames.push(data) if self._postgres else []
            if self._swallow_all:
                continue
            if not wire.swallowing:
                wire.client.write(data)
                await wire.client.drain()
            elif any(kind == _READY for kind, _ in messages):
                self.lost_answers += 1
                self.answer_lost.set()
                wire.cut()
                return
