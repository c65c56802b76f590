"""HTTP as the suite speaks it: one small client for the victim, honest load and attackers, and raw connections.

Nothing is read without a limit, and every answer passes ``Client.seen``, where canaries are looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

API: Final = "/api/v3"
LONGEST_HEAD: Final = 64 << 10
LONGEST_BODY: Final = 4 << 20
NO_ANSWER: Final = 0
"""The status of a request that got none: refused, reset, cut off or too late."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON; an empty object where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


class Connection:
    """One TCP connection from an address of its own in 127.0.0.0/8, so that limits by address tell people apart."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, source: str, *, receive_buffer: int = 0) -> Connection:
        """Connect.

        Raises:
            OSError: nobody accepts.
        """
        sock = socket.socket()
        try:
            sock.setblocking(False)  # noqa: FBT003 - it takes no name
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=LONGEST_HEAD)
        except BaseException:
            sock.close()
            raise
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed_by_peer(self) -> bool:
        """Read until the other side ends; True when it did. Cancel it to stop waiting."""
        with contextlib.suppress(OSError):
            while await self.reader.read(LONGEST_HEAD):
                pass
        return True

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.writer.transport.abort()

    async def answer(self, *, bodiless: bool = False) -> Answer:
        """The next answer.

        Raises:
            EOFError: the connection ended before.
            ValueError: this is no HTTP, or it is larger than the suite reads.
        """
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        status = int(first.split(" ", 2)[1])
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if bodiless or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        elif "content-length" in headers:
            body = await self.reader.readexactly(min(int(headers["content-length"]), LONGEST_BODY))
        else:
            body = await self.reader.read(LONGEST_BODY)
        return Answer(status, headers, body)

    async def _chunks(self) -> bytes:
        body = bytearray()
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await self.reader.readexactly(min(size, LONGEST_BODY))
            await self.reader.readexactly(2)
            if len(body) > LONGEST_BODY:
                raise ValueError("an answer without an end")
        await self.reader.readuntil(b"\r\n")
        return bytes(body)


class Client:
    """Requests with one key from one address.

    Args:
        port: of the API on loopback.
        source: address in 127.0.0.0/8.
        secret: the API key; None sends none.
        seen: called with every answer and what asked for it.
        keep: idle connections kept for the next request; 0 opens one for each.
    """

    def __init__(
        self,
        port: int,
        source: str,
        secret: str | None,
        seen: Callable[[str, Answer], None] = lambda _what, _answer: None,
        *,
        keep: int = 16,
    ) -> None:
        self.port = port
        self.source = source
        self.secret = secret
        self.statuses: Counter[int] = Counter()
        self._seen = seen
        self._keep = keep
        self._idle: list[Connection] = []

    def head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        """The head of a request, as bytes."""
        known = {"Host": f"127.0.0.1:{self.port}"}
        if self.secret is not None:
            known["Authorization"] = f"Bearer {self.secret}"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (known | headers).items())]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
        *,
        root: str = API,
    ) -> Answer:
        """One request; the answer, or one with status ``NO_ANSWER``. ``path`` follows ``root``."""
        more = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            more.setdefault("Content-Type", "application/json")
        if body is not None or method in ("POST", "PUT", "PATCH"):
            more.setdefault("Content-Length", str(len(body or b"")))
        data = self.head(method, root + path, more) + (body or b"")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._exchange(data, method)
        except (OSError, EOFError, ValueError, TimeoutError, IndexError, asyncio.LimitOverrunError):
            answer = Answer(NO_ANSWER)
        self.note(f"{method} {path[:100]}", answer)
        return answer

    def note(self, what: str, answer: Answer) -> None:
        """Count an answer and look at it."""
        self.statuses[answer.status] += 1
        self._seen(what, answer)

    async def _exchange(self, data: bytes, method: str) -> Answer:
        while True:
            used = bool(self._idle)
            connection = self._idle.pop() if used else await Connection.open(self.port, self.source)
            try:
                answer = await _both(connection, data, method)
            except (OSError, EOFError):
                connection.close()
                if used and method == "GET":
                    continue  # the server ended an idle connection, as it may
                raise
            except BaseException:
                connection.close()
                raise
            if len(self._idle) < self._keep and answer.headers.get("connection", "") != "close":
                self._idle.append(connection)
            else:
                connection.close()
            return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


async def _both(connection: Connection, data: bytes, method: str) -> Answer:
    """Send and read at once: a server that refuses early stops reading, and its answer counts all the same."""
    sending = asyncio.ensure_future(connection.send(data))
    try:
        return await connection.answer(bodiless=method == "HEAD")
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending


def multipart(files: Sequence[tuple[str | bytes, bytes]], field_name: str = "file") -> tuple[bytes, dict[str, str]]:
    """A multipart body of (file name, content), and its header."""
    mark = uuid.uuid4().hex
    body = bytearray()
    for name, content in files:
        raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        body += f'--{mark}\r\nContent-Disposition: form-data; name="{field_name}"; filename="'.encode()
        body += raw + b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + content + b"\r\n"
    body += f"--{mark}--\r\n".encode()
    return bytes(body), {"Content-Type": f"multipart/form-data; boundary={mark}"}
