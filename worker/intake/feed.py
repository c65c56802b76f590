"""Deliveries of the request queue in batches, on one channel, until that channel is of no use any more."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel, DeliveredMessage

from schemas.messages import REQUEST_QUEUE
from worker.broker import translated
from worker.errors import BrokerAway


class Feed:
    """What was delivered and not taken yet. ``feeding`` makes one."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._arrived: deque[DeliveredMessage] = deque()
        self._held: dict[int, DeliveredMessage] = {}
        """What was taken and is not acknowledged, by delivery tag."""
        self._news = asyncio.Event()
        self._lost: str | None = None

    async def take(self, most: int) -> list[DeliveredMessage]:
        """What has arrived, oldest first, at least one; waits for it.

        Raises:
            BrokerAway: nothing will arrive any more: connection, channel or consumer is gone.
        """
        while not self._arrived and self._lost is None:
            self._news.clear()
            await self._news.wait()
        if self._lost is not None:
            raise BrokerAway(self._lost)
        batch = [self._arrived.popleft() for _ in range(min(most, len(self._arrived)))]
        self._held.update((_tag(message), message) for message in batch)
        return batch

    def rest(self) -> list[DeliveredMessage]:
        """All that would go back to the queue now: nothing of it is left to take."""
        self._held.update((_tag(message), message) for message in self._arrived)
        self._arrived.clear()
        return list(self._held.values())

    async def ack(self, settled: Sequence[DeliveredMessage]) -> None:
        """Acknowledge what was taken and is safe: with one frame where nothing older is still held.

        Raises:
            BrokerAway: the channel is gone, and the tags with it; the messages will come again, which is harmless.
        """
        if self._lost is not None:
            raise BrokerAway(self._lost)
        if not settled:
            return
        tags = sorted(map(_tag, settled))
        for tag in tags:
            self._held.pop(tag, None)
        at_once = all(held > tags[-1] for held in self._held)
        async with translated():
            for tag in tags[-1:] if at_once else tags:
                await self._channel.basic_ack(tag, multiple=at_once, wait=False)

    async def arrived(self, message: DeliveredMessage) -> None:
        """One more delivery."""
        self._arrived.append(message)
        self._news.set()

    def lose(self, why: str) -> None:
        """Nothing more will arrive."""
        self._lost = self._lost or why
        self._news.set()


def _tag(message: DeliveredMessage) -> int:
    return message.delivery_tag or 0


@asynccontextmanager
async def feeding(connection: AbstractConnection, prefetch: int) -> AsyncIterator[Feed]:
    """Consume the request queue for the duration of a block.

    Leaving the block closes the channel, which returns to the queue whatever was not acknowledged.

    Raises:
        BrokerAway: the connection broke.
    """
    async with translated(), connection.channel(publisher_confirms=False) as opened:
        channel = await opened.get_underlay_channel()
        feed = Feed(channel)
        # Three ways to lose a consumer. The broker cancels it where the queue is deleted or its node goes, while
        # connection and channel live on; a channel dies of an error; a connection takes its channels with it.
        channel.on_consumer_cancel_callbacks.add(lambda _: feed.lose("the broker cancelled the consumer"))
        closing = channel.closing
        closing.add_done_callback(lambda _: feed.lose("the channel closed"))
        try:
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(REQUEST_QUEUE, feed.arrived)
            yield feed
        finally:
            closing.cancel()
