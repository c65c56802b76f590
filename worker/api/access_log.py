"""The outermost ASGI middleware: every request has an id, a known client, a record, and an end that is told of.

Plain ASGI, because every poll passes here.
"""

import itertools
import os
import re
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.api.addresses import UNKNOWN, Proxies
from worker.api.metrics import ApiMetrics
from worker.api.request_log import RequestLog, RequestRecord
from worker.api.routes import method_of, route_of
from worker.api.trail import Trail
from worker.store.audit import ORIGIN

REQUEST_ID: Final = b"x-request-id"
_FORWARDED_FOR: Final = b"x-forwarded-for"
_ID: Final = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_PROBLEM: Final = re.compile(rb'^\{"type": "urn:speech-training:problem:([a-z_]{1,40})"')
_PROBLEM_BYTES: Final = 120
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FIRST_REFUSED: Final = 400
_NOT_MODIFIED: Final = 304


class AccessLog:
    """ASGI middleware.

    Args:
        app: what comes behind.
        log: told when a request is over.
        trail: told of refusals.
        proxies: whose ``X-Forwarded-For`` and ``X-Request-Id`` are believed.
        metrics: shows how many requests are in flight.
    """

    def __init__(self, app: ASGIApp, log: RequestLog, trail: Trail, proxies: Proxies, metrics: ApiMetrics) -> None:
        self._app = app
        self._log = log
        self._trail = trail
        self._proxies = proxies
        self._in_flight = 0
        # Ids need not be secret, only different: from other processes' by a beginning, from each other by a number.
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count(1)
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._begin(scope)
        if record.method not in _BODILESS:
            receive = _counted(record, receive)
        self._in_flight += 1
        try:
            await self._app(scope, receive, _told(record, send))
        except Exception:
            if record.status is None:  # starlette's outermost handler answers for us
                record.status, record.code = 500, "internal"
            raise
        finally:
            self._in_flight -= 1
            self._log.ended(record)
            self._trail.ended(record)

    def _begin(self, scope: Scope) -> RequestRecord:
        """Look at the head; the scope then names the client itself, and carries the record."""
        peer = scope["client"][0] if scope.get("client") else UNKNOWN
        address, request_id = peer, None
        if self._proxies.trusts(peer):
            address, request_id = self._forwarded(scope, peer)
        record = RequestRecord(
            request_id or f"{self._prefix}-{next(self._numbers):x}",
            method_of(scope["method"]),
            route_of(scope["path"]),
            address,
            peer,
            scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass"),
            scope["headers"],
        )
        scope["record"] = record
        ORIGIN.set(record)
        return record

    def _forwarded(self, scope: Scope, peer: str) -> tuple[str, str | None]:
        """What a trusted proxy says: the client's address, and the request's id where it gave one."""
        address = self._proxies.client(peer, [value for name, value in scope["headers"] if name == _FORWARDED_FOR])
        scope["client"] = (address, 0)
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        return address, given.decode("ascii") if _ID.fullmatch(given) else None


def _told(record: RequestRecord, send: Send) -> Send:
    """The same, with the answer taken down and the request's id in it."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            record.seconds = time.perf_counter() - record.began
            if record.status != _NOT_MODIFIED:  # such a poll has no line that its id could find
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, record.request_id.encode())]
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            if record.sent == 0 and record.status is not None and record.status >= _FIRST_REFUSED:
                problem = _PROBLEM.match(body[:_PROBLEM_BYTES])
                record.code = problem[1].decode("ascii") if problem else None
            record.sent += len(body)
        await send(message)

    return told


def _counted(record: RequestRecord, receive: Receive) -> Receive:
    """The same, with its bytes counted."""

    async def counted() -> Message:
        message = await receive()
        record.received += len(message.get("body", b""))
        return message

    return counted
