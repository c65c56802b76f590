"""``/metrics``, ``/healthz`` and ``/readyz`` on one port.

Liveness says only that the loop turns: losing broker or database never fails it. Readiness says what is missing.
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_LONGEST_REQUEST: Final = 8_192
_PATIENCE_S: Final = 5.0

Readiness = Callable[[], dict[str, bool]]


class HealthServer:
    """Three pages for machines; anything else is 404.

    Args:
        readiness: what must be there, by name.
    """

    def __init__(self, registry: CollectorRegistry, readiness: Readiness, host: str, port: int) -> None:
        self._registry = registry
        self._readiness = readiness
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        """Listen; the port.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=_LONGEST_REQUEST)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                request = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._answer(request.split(b"\r\n", 1)[0].decode("latin-1"))
                head = (
                    f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that does not speak HTTP, or left
        finally:
            writer.close()

    def _answer(self, request_line: str) -> tuple[HTTPStatus, str, bytes]:
        method, path, *_ = [*request_line.split(" "), "", ""]
        path = path.split("?", 1)[0]
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b""
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            return HTTPStatus.OK, "text/plain", b"ok\n"
        if path == "/readyz":
            ready = self._readiness()
            status = HTTPStatus.OK if all(ready.values()) else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "application/json", json.dumps(ready).encode() + b"\n"
        return HTTPStatus.NOT_FOUND, "text/plain", b"not here\n"
