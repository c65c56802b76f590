"""RabbitMQ's connections: where aio-pika's errors become ours, and lost connections are made again.

Plain connections, not ``connect_robust``: after a loss everything starts again from one place (connect,
declare, consume), so "connected but consuming nothing" cannot be a state, and no delivery tag outlives its
channel.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import random as system_random
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelClosed,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused
from pamqp import decode
from pamqp.exceptions import PAMQPException

from worker.errors import BrokerAway, BrokerRefused, TopologyDiffers, WorkerError

if TYPE_CHECKING:
    from pamqp.common import FieldTable

CONNECT_S: Final = 10.0
CLOSE_S: Final = 5.0
HEARTBEAT_S: Final = 10
"""A silent broker (frozen, unplugged) is noticed after about three of these."""
STEADY_S: Final = 30.0
"""A connection that lasted so long was a good one: the next pause starts small again."""
_ACCESS_REFUSED: Final = 403
_NOT_ALLOWED: Final = 530  # no such virtual host

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn aio-pika's and the socket's errors into ``BrokerAway`` or ``BrokerRefused``."""
    try:
        yield
    except WorkerError:
        raise
    except (AuthenticationError, ProbableAuthenticationError, ChannelAccessRefused) as error:
        raise BrokerRefused(_words(error)) from error
    except (ConnectionClosed, ChannelClosed) as error:
        refused = bool(error.args) and error.args[0] in (_ACCESS_REFUSED, _NOT_ALLOWED)
        raise (BrokerRefused if refused else BrokerAway)(_words(error)) from error
    except (AMQPError, PAMQPException, OSError, TimeoutError) as error:
        raise BrokerAway(_words(error)) from error
    except StopAsyncIteration as error:
        # aiormq's answer to a connection that closes during its handshake; in a generator it becomes a RuntimeError.
        raise BrokerAway("the connection closed while it was being opened") from error
    except RuntimeError as error:
        # aiormq raises plain RuntimeErrors for what is used after its connection or channel has closed.
        if "clos" not in str(error).lower() and "active transport" not in str(error):
            raise
        raise BrokerAway(_words(error)) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # aiormq ends what waits on a closed channel with a CancelledError: nobody cancelled us.
        raise BrokerAway("the channel closed") from error


def _words(error: BaseException) -> str:
    told = " ".join(str(part) for part in error.args if part is not None) or "no answer"
    return f"{type(error).__name__}: {told}"


@asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[AbstractConnection]:
    """A connection for the duration of a block, closed in any case.

    Args:
        url: ``amqp://…`` or ``amqps://…``.
        name: what the broker's overview shows.

    Raises:
        BrokerAway: nobody answers there, or the connection broke.
        BrokerRefused: wrong credentials, no such virtual host, a missing permission.
    """
    if "heartbeat=" not in url:
        url = f"{url}{'&' if '?' in url else '?'}heartbeat={HEARTBEAT_S}"
    async with translated():
        try:
            told: FieldTable = {"connection_name": name}
            connection = await aio_pika.connect(url, timeout=CONNECT_S, client_properties=told)
        except InvalidFrameError as error:
            if "Connection.Close" not in str(error):
                raise
            # aiormq expects OpenOk and drops the text of the Close that came instead.
            raise BrokerRefused("no such virtual host, or this user may not use it") from error
        try:
            yield connection
        finally:
            with suppress(TimeoutError, OSError, AMQPError, RuntimeError):
                await asyncio.wait_for(connection.close(), CLOSE_S)


class Backoff:
    """Growing pauses with jitter, so that a crowd does not come back at once.

    Args:
        first_s: about how long the first pause is.
        most_s: about how long the longest is.
        random: uniform in [0, 1).
    """

    def __init__(self, first_s: float = 0.2, most_s: float = 15.0, random: Callable[[], float] = system_random) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._random = random
        self._pauses = 0

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        pause_s = min(self._most_s, self._first_s * 2.0**self._pauses)
        self._pauses = min(self._pauses + 1, 30)
        return pause_s * (0.5 + 0.5 * self._random())

    def reset(self) -> None:
        """It worked: the next pause is a short one."""
        self._pauses = 0


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, but not beyond the moment of stopping."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def stay_connected(  # noqa: PLR0913 - wired in two places
    url: str,
    name: str,
    serve: Callable[[AbstractConnection], Awaitable[None]],
    stop: asyncio.Event,
    *,
    on_lost: Callable[[], None],
    backoff: Backoff | None = None,
    refused_limit_s: float = 60.0,
) -> None:
    """Serve on a connection until ``stop``; after a loss on a new one, with growing pauses.

    Args:
        url: the broker's address.
        name: of the connection, for people.
        serve: works on one connection; returns when ``stop`` is set, raises ``BrokerAway`` when it is lost.
        stop: ends it.
        on_lost: called for each lost or failed connection.
        backoff: the pauses.
        refused_limit_s: a broker that says no for so long (credentials, permissions) will not change its
            mind.

    Raises:
        BrokerRefused: it said no for too long.
        TopologyDiffers: an object exists with other arguments; waiting does not mend that.
    """
    pauses = backoff or Backoff()
    refused_since: float | None = None
    while not stop.is_set():
        began = time.monotonic()
        try:
            async with connected(url, name) as connection:
                await serve(connection)
        except TopologyDiffers:
            raise
        except (BrokerAway, BrokerRefused) as error:
            on_lost()
            now = time.monotonic()
            if isinstance(error, BrokerAway):
                refused_since = None
            else:
                refused_since = refused_since or now
                if now - refused_since >= refused_limit_s:
                    raise
            if now - began >= STEADY_S:
                pauses.reset()
            wait_s = pauses.next_s()
            _log.warning("broker_lost", connection=name, error=str(error), again_in_s=round(wait_s, 2))
            await pause(stop, wait_s)


_Reader = Callable[[bytes], tuple[int, object]]


def _lenient(read: _Reader, length: Callable[[bytes], int]) -> _Reader:
    def lenient(value: bytes) -> tuple[int, object]:
        try:
            return read(value)
        except (ValueError, OverflowError, OSError, ArithmeticError, RecursionError):
            return length(value), None

    return lenient


def _accept_unreadable_properties() -> None:
    """Read properties and headers that make no sense as nothing, instead of losing the connection over them.

    pamqp raises for a header that is not UTF-8 or a timestamp beyond the year 9999, and aiormq's reader dies of
    it; the message is then delivered again and again, and one careless producer stops every worker. So the
    decoders of the types whose length is known without reading them are replaced in pamqp's own table.
    """
    readers: dict[str, Any] = decode.METHODS
    readers["timestamp"] = _lenient(decode.timestamp, lambda _: 8)
    readers["shortstr"] = _lenient(decode.short_str, lambda value: 1 + value[0])
    readers["table"] = _lenient(decode.field_table, lambda value: 4 + int.from_bytes(value[:4], "big"))


_accept_unreadable_properties()
