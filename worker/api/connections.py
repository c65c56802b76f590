"""Connections with patience: what uvicorn leaves to a reverse proxy, for those who have none.

uvicorn bounds neither the head of a request nor the time that it takes, and counts connections only once their head is
whole (its issue 157). So its protocol class is extended here: bytes are counted before they count as a request, and one
look a second ends whatever takes too long. Rates of bodies are ``worker.api.bodies``' own.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker.api.addresses import UNKNOWN, Proxies, client_network
from worker.api.problems import MEDIA_TYPE, Refused

LARGEST_HEAD_BYTES: Final = 64 * 1024
"""Of a request's first line and headers together; also of a chunked body's extensions and trailers."""
LARGEST_ADDRESS_BYTES: Final = 8 * 1024
"""Of the path with its query, whose fields cost more than their bytes."""
MOST_HEADERS: Final = 128
MOST_PIPELINED: Final = 16
"""Requests that a client may send before the answer to the first."""
MOST_UNREAD_BYTES: Final = 256 << 20
"""Of answers in our memory that clients have not taken, all connections together; beyond it the largest go."""
_LOOK_S: Final = 1.0
_LOG: Final = structlog.get_logger("api")


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        head_s: from connecting, or from the first byte of a further request, to the end of its head.
        idle_s: between requests.
        leftover_s: for a body that is still coming although its request is answered.
        stalled_s: in which a client takes none of an answer.
        slow_s: in which a client has never taken all that is written, although it takes some.
        closing_s: for a connection that is being closed, and has taken everything.
    """

    head_s: float = 10.0
    idle_s: float = 75.0
    leftover_s: float = 30.0
    stalled_s: float = 60.0
    slow_s: float = 3_600.0
    closing_s: float = 10.0


class Connections:
    """All connections of one process: how many, whose, and which of them can go when there are too many.

    There are those that have not finished a head, and those that are between two requests. The oldest of the larger
    group goes, so that neither silent strangers nor idle ones keep an honest client out: it sends its head at once, and
    many have to come after it before it is the oldest. Of one address the oldest goes. Requests under way are never
    ended for room; strangers' requests, whose answers they do not take, count as none.

    Args:
        most: connections at most.
        per_address: of one address at most.
        proxies: whose connections are many clients'; they are counted by their requests instead.
        patience: how long each state may last.
        ended: told of every connection that is ended here: why, and its address.
    """

    def __init__(
        self,
        most: int,
        per_address: int,
        proxies: Proxies | None = None,
        patience: Patience | None = None,
        ended: Callable[[str, str], None] = lambda _cause, _address: None,
    ) -> None:
        self.patience = patience or Patience()
        self._ended = ended
        self._most = most
        self._per_address = per_address
        self._proxies = proxies or Proxies()
        self._all: OrderedDict[PatientProtocol, None] = OrderedDict()
        self._unfinished: OrderedDict[PatientProtocol, None] = OrderedDict()
        self._idle: OrderedDict[PatientProtocol, None] = OrderedDict()
        self._of_address: dict[str, OrderedDict[PatientProtocol, None]] = {}
        self._looking: asyncio.TimerHandle | None = None
        self.closed: Counter[str] = Counter()
        """Connections ended here, by why: head, idle, leftover, stalled, closing, full, address; or refused."""

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, new: "PatientProtocol") -> bool:
        """Count a connection; False: there is no room, because all others have a request under way."""
        same = self._of_address.get(new.address, OrderedDict())
        if len(same) >= self._per_address and not self._is_trusted(new):
            if not self._make_room("address", same):
                return False
        elif len(self._all) >= self._most and not self._make_room("full", None):
            return False
        self._all[new] = None
        self._of_address.setdefault(new.address, OrderedDict())[new] = None
        self._unfinished[new] = None
        if self._looking is None:
            self._looking = new.loop.call_later(_LOOK_S, self._look, new.loop)
        return True

    def forget(self, gone: "PatientProtocol") -> None:
        """A connection is over."""
        if gone not in self._all:
            return
        del self._all[gone]
        self.works(gone)
        same = self._of_address[gone.address]
        del same[gone]
        if not same:
            del self._of_address[gone.address]

    def waits(self, connection: "PatientProtocol", *, idle: bool) -> None:
        """A connection has no request under way that counts: it is between two (idle), or owes us the rest of one."""
        if connection in self._all:
            self.works(connection)
            (self._idle if idle else self._unfinished)[connection] = None

    def works(self, connection: "PatientProtocol") -> None:
        """A connection has a request under way."""
        self._unfinished.pop(connection, None)
        self._idle.pop(connection, None)

    def _make_room(self, why: str, among: "OrderedDict[PatientProtocol, None] | None") -> bool:
        waiting = self._unfinished if len(self._unfinished) >= len(self._idle) else self._idle
        if among is None:
            found = next(iter(waiting), None)
        else:
            found = next((one for one in among if one in self._unfinished or one in self._idle), None)
        if found is not None:
            self.end(found, why)
        return found is not None

    def end(self, connection: "PatientProtocol", why: str) -> None:
        """End a connection at once, and count it."""
        self.tell(connection, why)
        self.forget(connection)
        connection.transport.abort()

    def tell(self, connection: "PatientProtocol", why: str) -> None:
        """Count a connection that ends here, or bytes that are refused, and say so."""
        self.closed[why] += 1
        self._ended(why, connection.address)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._all):
            why = connection.overdue(now)
            if why == "head" and connection.tell_slow():
                self.tell(connection, why)  # it has a moment to read why
            elif why is not None:
                self.end(connection, why)
        self._bound_unread()
        self._looking = loop.call_later(_LOOK_S, self._look, loop) if self._all else None

    def _bound_unread(self) -> None:
        """End connections whose clients take nothing, where they hold too much of our memory together."""
        unread = sum(connection.unread for connection in self._all)
        if unread <= MOST_UNREAD_BYTES:
            return
        for connection in sorted(self._all, key=lambda one: one.unread, reverse=True):
            unread -= connection.unread
            self.end(connection, "stalled")
            if unread <= MOST_UNREAD_BYTES:
                return

    def _is_trusted(self, new: "PatientProtocol") -> bool:
        return new.client is None or self._proxies.trusts(new.client[0])  # a Unix socket has no address


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits of size and time. `protocol_for` gives it its ``book``."""

    book: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self._since = self.loop.time()  # the present state began
        self._head_open = True  # a head is expected, or has begun
        self._body_open = False
        self._unparsed = 0  # bytes since a head or a piece of a body was last complete
        self._refusal = Refused("malformed_request", "This is not an HTTP request.")
        self._left = 0  # bytes of answers that the client has not taken, at the last look
        self._left_since = self._moved_at = self._since
        self._closing_at: float | None = None

    # -- what uvicorn and the parser call ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counted, or refused where there is no room."""
        super().connection_made(transport)
        self.address = client_network(self.client[0] if self.client else UNKNOWN)
        if not self.book.admit(self):
            self._answer(Refused("unavailable", "Too many connections.", headers={"Retry-After": "5"}))
            self.book.tell(self, "refused")

    def connection_lost(self, exc: Exception | None) -> None:
        """Not counted any more."""
        self.book.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes count before anybody knows what they are; a large read goes in pieces, so that each is counted."""
        for start in range(0, len(data), LARGEST_HEAD_BYTES):
            if self.transport.is_closing():
                return
            piece = data[start : start + LARGEST_HEAD_BYTES]
            self._unparsed += len(piece)
            super().data_received(piece)
            if self._unparsed > LARGEST_HEAD_BYTES and not self.transport.is_closing():
                self._refusal = _head_too_large()
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        if not self._head_open:
            self._head_open = True
            if self.cycle.response_complete:
                self._now_owes()

    def on_headers_complete(self) -> None:
        """A head is whole: the request begins, if it is within limits."""
        if len(self.url) > LARGEST_ADDRESS_BYTES or len(self.headers) > MOST_HEADERS or self._is_too_large():
            self._refusal = _head_too_large()
            raise httptools.HttpParserError("too large")
        if len(self.pipeline) >= MOST_PIPELINED:
            self._refusal = Refused("malformed_request", "Too many requests before the answer to the first.")
            raise httptools.HttpParserError("too many")
        self._unparsed = 0
        self._head_open, self._body_open = False, True
        super().on_headers_complete()
        self._since = self.loop.time()
        if not self.flow.write_paused:
            self.book.works(self)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        self._unparsed = 0
        self._body_open = False
        super().on_message_complete()
        if self.cycle.response_complete and not self._head_open:
            self._now_idle()

    def on_response_complete(self) -> None:
        """The answer is whole, too."""
        super().on_response_complete()
        if self.cycle.response_complete:  # else one of a pipeline follows
            if self._head_open or self._body_open:
                self._now_owes()
            else:
                self._now_idle()

    def pause_writing(self) -> None:
        """The client does not take its answers: a stranger's connection gives way as if it were idle."""
        super().pause_writing()
        if not self._key_is_known():
            self.book.waits(self, idle=True)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing():
            self.book.works(self)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the reason is known better here
        """A problem document instead of uvicorn's text, and the end of the connection."""
        self.book.tell(self, "too_large" if self._refusal.code == "head_too_large" else "malformed")
        self._answer(self._refusal)

    # -- our own -----------------------------------------------------------------------------------------------

    def overdue(self, now: float) -> str | None:
        """Why the connection has to end, if it has. Called once a look."""
        patience = self.book.patience
        if self._is_stalled(now):
            return "stalled"
        if self._left:
            return None
        if self._is_closing(now):
            return "closing" if now - (self._closing_at or now) > patience.closing_s else None
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        why, limit_s = (
            ("head", patience.head_s)
            if self._head_open
            else ("leftover", patience.leftover_s)
            if self._body_open
            else ("idle", patience.idle_s)
        )
        return why if now - self._since > limit_s else None

    @property
    def unread(self) -> int:
        """Bytes of answers that the client had not taken at the last look."""
        return self._left

    def _is_stalled(self, now: float) -> bool:
        """Whether the client takes nothing of what is written, or has taken too long over it."""
        left = self.transport.get_write_buffer_size()
        if left != self._left:  # more only comes once some of it was taken
            self._moved_at = now
        if not left or not self._left:
            self._left_since = now
        self._left = left
        patience = self.book.patience
        stalled = now - self._moved_at > patience.stalled_s or now - self._left_since > patience.slow_s
        return bool(left) and stalled

    def _is_closing(self, now: float) -> bool:
        if self._closing_at is None and self.transport.is_closing():
            self._closing_at = now
        return self._closing_at is not None

    def tell_slow(self) -> bool:
        """Answer 408 to whoever has begun a head; nobody else waits for an answer."""
        if not self._unparsed:
            return False
        self._answer(Refused("too_slow", "The request's head did not arrive in time."))
        return True

    def _key_is_known(self) -> bool:
        """Whether the newest request has a valid key: its organization then has a limited number of them."""
        record: Any = None if self.cycle is None else self.cycle.scope.get("record")
        return record is not None and record.key is not None

    def _now_owes(self) -> None:
        self._since = self.loop.time()
        self.book.waits(self, idle=False)

    def _now_idle(self) -> None:
        self._since = self.loop.time()
        self.book.waits(self, idle=True)

    def _is_too_large(self) -> bool:
        """Less has come than a head may have, or it is counted exactly: the rest of a read may be the body."""
        if self._unparsed <= LARGEST_HEAD_BYTES:
            return False
        headers = sum(len(name) + len(value) + 4 for name, value in self.headers)
        return len(self.url) + headers > LARGEST_HEAD_BYTES

    def _answer(self, refused: Refused) -> None:
        body = refused.body()
        headers = {
            "content-type": MEDIA_TYPE,
            "content-length": str(len(body)),
            "connection": "close",
            **refused.headers,
        }
        lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
        self.book.waits(self, idle=True)  # whatever is under way: nobody is owed an answer any more


def _head_too_large() -> Refused:
    return Refused(
        "head_too_large",
        f"A request's head has at most {LARGEST_HEAD_BYTES} bytes and {MOST_HEADERS} headers, its address at most "
        f"{LARGEST_ADDRESS_BYTES} bytes.",
    )


def protocol_for(book: Connections) -> type[PatientProtocol]:
    """The class that uvicorn makes an instance of for each connection.

    Args:
        book: of all connections of this process.
    """
    return type("BookedProtocol", (PatientProtocol,), {"book": book})


__all__ = ["Connections", "Patience", "PatientProtocol", "protocol_for"]
