"""One structured line for each request that matters, and a bound on what a flood of refusals can write.

Who logs what:

- every change, every refusal, and every read of a log, a report or the audit trail: one line (level info);
- other successful reads, above all polls, are counted only, unless ``WORKER_API_LOG_READS`` asks for their lines, too;
- refusals of one client above a few a second, and of all clients together above some more, are summed up: one line a
  second for each client and cause, with their number.

Lines are JSON in ASCII, made by structlog: a line break or a text direction mark that a client sent cannot leave its
field. The query is never logged; what looks like a key is hidden wherever it stands.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from worker.api.addresses import client_network
from worker.api.buckets import Buckets
from worker.api.metrics import ApiMetrics
from worker.api.routes import PREFIX
from worker.store.api_keys import Key
from worker.store.audit import Origin

_LOG: Final = structlog.get_logger("api.request")
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
SENSITIVE: Final = frozenset(
    {
        f"{PREFIX}/custom_models/{{id}}/runs/{{run_id}}/log",
        f"{PREFIX}/custom_models/{{id}}/runs/{{run_id}}/report",
        f"{PREFIX}/audit_log",
    }
)
"""Routes whose reads are logged: they show what customers said, or who did what."""
_KEYS: Final = re.compile(r"stk_[\w%-]*", re.ASCII)
_SHOWN: Final = 200
_AGENT_SHOWN: Final = 120
_FIRST_REFUSED: Final = 400

_LINES_PER_S: Final = 5.0
_LINES_BURST: Final = 20
"""Lines of refusals that one client may cause."""
_ALL_LINES_PER_S: Final = 100.0
_ALL_LINES_BURST: Final = 200
"""Lines of refusals that all clients may cause together."""
_MOST_SUMS: Final = 1_000
_SUMS_SHOWN: Final = 20
_FLUSH_S: Final = 1.0
OTHERS: Final = "others"


class RequestRecord(Origin):
    """A request and what became of it; travels in the ASGI scope as ``record``, and is the origin of its audit entries.

    A plain class whose defaults are the class's: every poll makes one.

    Attributes:
        method: one of ``METHODS`` or other.
        route: the template, one of ``ROUTES``.
        address: the client's, behind trusted proxies.
        peer: the other end of the connection.
        key: None until the caller is known.
        status: None until an answer begins.
        code: of the problem document, where it was refused.
        seconds: until the answer began.
        received: bytes of the body.
        sent: bytes of the answer's body.
    """

    request_id: str
    address: str
    key: Key | None = None
    status: int | None = None
    code: str | None = None
    seconds: float | None = None
    received = 0
    sent = 0

    def __init__(  # noqa: PLR0913 - what a head tells
        self,
        request_id: str,
        method: str,
        route: str,
        address: str,
        peer: str,
        raw_path: bytes,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        self.request_id = request_id
        self.method = method
        self.route = route
        self.address = address
        self.peer = peer
        self._raw_path = raw_path
        self._headers = headers
        self.began = time.perf_counter()

    @property
    def path(self) -> str:
        """As it was sent, without the query, fit for a log line."""
        return shown(self._raw_path)

    @property
    def agent(self) -> str:
        """What the client calls itself, fit for a log line."""
        return shown(next((value for name, value in self._headers if name == b"user-agent"), b""), _AGENT_SHOWN)


def shown(text: str | bytes, longest: int = _SHOWN) -> str:
    """A text of a stranger for a log line: visible ASCII, of bounded length, without keys."""
    raw = text[: longest * 4] if isinstance(text, bytes) else text[: longest * 4].encode("utf-8", "surrogatepass")
    visible = "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw)  # noqa: PLR2004 - ASCII
    visible = _KEYS.sub("stk_***", visible)
    return visible if len(visible) <= longest else visible[:longest] + "..."


class RequestLog:
    """Writes the lines, counts, and sums refusals up.

    Args:
        metrics: counts every request, with or without a line.
        reads: a line for every successful read, too.
        now: monotonic seconds.
    """

    def __init__(self, metrics: ApiMetrics, *, reads: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._reads = reads
        self._clients = Buckets(_LINES_PER_S, _LINES_BURST, now, most=10_000)
        self._all = Buckets(_ALL_LINES_PER_S, _ALL_LINES_BURST, now, most=1)
        self._sums: dict[tuple[str, int | None, str, str], int] = {}

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        self._metrics.ended(record.method, record.route, record.status, record.seconds, record.code)
        if record.received:
            self._metrics.received.inc(record.received)
        if record.sent:
            self._metrics.sent.inc(record.sent)
        if record.status is None or record.status >= _FIRST_REFUSED:
            cause = record.code or str(record.status or "no_answer")
            if self._may_write(record.address, record.key, cause, record.route):
                self._write(record)
        elif self._reads or record.method not in _READS or record.route in SENSITIVE:
            self._write(record)

    def connection_ended(self, cause: str, address: str) -> None:
        """Bytes that became no request, or a connection that this process ended.

        Args:
            cause: one of ``CONNECTION_ENDS``.
            address: the client's.
        """
        self._metrics.connection_ended(cause)
        if cause != "idle" and self._may_write(address, None, cause, "connection"):
            _LOG.info("connection ended", cause=cause, address=shown(address))

    def _may_write(self, address: str, key: Key | None, cause: str, route: str) -> bool:
        """A line of its own for this refusal? If not, it is in the next sum."""
        client = client_network(address)
        if not self._clients.take(client) and not self._all.take(""):
            return True
        self._metrics.suppressed.inc()
        summed = (client, None if key is None else key.id, cause, route)
        if summed not in self._sums and len(self._sums) >= _MOST_SUMS:
            summed = (OTHERS, None, OTHERS, OTHERS)
        self._sums[summed] = self._sums.get(summed, 0) + 1
        return False

    def _write(self, record: RequestRecord) -> None:
        key = record.key
        _LOG.info(
            "request",
            request=record.request_id,
            key=None if key is None else key.id,
            organization=None if key is None else key.organization_id,
            role=None if key is None else key.role,
            method=record.method,
            route=record.route,
            path=record.path,
            status=record.status,
            code=record.code,
            bytes_in=record.received,
            bytes_out=record.sent,
            ms=round((time.perf_counter() - record.began) * 1000, 1),
            address=record.address,
            proxy=None if record.peer == record.address else record.peer,
            agent=record.agent,
        )

    async def run(self) -> None:
        """Write the sums once a second, for ever; what is left at the end, too."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_S)
                self.flush()
        finally:
            self.flush()

    def flush(self) -> None:
        """Write what was summed up: the largest sums by themselves, the rest as one."""
        sums, self._sums = self._sums, {}
        largest = sorted(sums.items(), key=lambda one: -one[1])
        for (client, key, cause, route), count in largest[:_SUMS_SHOWN]:
            _LOG.info("requests refused", client=client, key=key, code=cause, route=route, count=count)
        rest = largest[_SUMS_SHOWN:]
        if rest:
            _LOG.info(
                "requests refused",
                client=OTHERS,
                clients=len({client for (client, *_), _ in rest}),
                count=sum(count for _, count in rest),
            )
