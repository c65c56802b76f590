"""Dead letters are published beside the intake of requests, never before it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import structlog
from aiormq.abc import DeliveredMessage

from worker.errors import BrokerAway
from worker.intake.dead_letters import dead_letter
from worker.intake.feed import Feed
from worker.intake.handler import Dead
from worker.metrics import Metrics
from worker.publisher import Publisher

Bury = Callable[[DeliveredMessage, Dead], None]
"""Gives up a refused message; returns at once."""
_Refused = tuple[DeliveredMessage, Dead]

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def burying(feed: Feed, dead: Publisher, metrics: Metrics) -> AsyncIterator[Bury]:
    """Publish what is refused during a block as dead letters, and ack each that the broker has confirmed.

    A queue of dead letters that takes nothing holds back at most as many good requests as the prefetch has room for.
    Where one is not confirmed the feed is lost: none of them is acked, and they come again, on a new connection that
    has declared the queue.
    """
    refused: asyncio.Queue[_Refused] = asyncio.Queue()
    work = asyncio.ensure_future(_bury(feed, dead, metrics, refused))

    def ended(_: "asyncio.Future[None]") -> None:
        feed.lose("nobody buries dead letters any more")

    work.add_done_callback(ended)
    try:
        yield lambda message, verdict: refused.put_nowait((message, verdict))
    finally:
        work.remove_done_callback(ended)  # by us: the feed may be needed
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


async def _bury(feed: Feed, dead: Publisher, metrics: Metrics, refused: asyncio.Queue[_Refused]) -> None:
    while True:
        taken = [await refused.get()]
        while not refused.empty():
            taken.append(refused.get_nowait())
        try:
            await _confirmed(dead, taken)
            await feed.ack([message for message, _ in taken])
        except BrokerAway as error:
            feed.lose(str(error))
            return
        for message, verdict in taken:
            metrics.messages.labels(verdict.reason.value).inc()
            _log.warning(
                "dead_letter",
                reason=verdict.reason.value,
                detail=verdict.detail,
                message_id=message.header.properties.message_id,
            )


async def _confirmed(dead: Publisher, taken: Sequence[_Refused]) -> None:
    now = datetime.now(UTC)
    answers = await dead.publish([dead_letter(message, verdict, now) for message, verdict in taken])
    failures = [answer for answer in answers if answer is not None]
    if failures:
        raise BrokerAway(f"{len(failures)} dead letters were not confirmed: {failures[0]}")
