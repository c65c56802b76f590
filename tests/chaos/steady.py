"""The suite's own way to database and broker: patient, so that what it reads and sends is certain."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aio_pika
import asyncpg

if TYPE_CHECKING:
    from collections.abc import Sequence

_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class SteadyDatabase:
    """Statements that are repeated until the database answers; each must be harmless to repeat."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def fetch(self, query: str, *arguments: object) -> Sequence[asyncpg.Record]:
        async with self._one_at_a_time:
            while True:
                try:
                    if self._connection is None:
                        self._connection = await asyncpg.connect(self._url, timeout=5, command_timeout=10)
                    return await self._connection.fetch(query, *arguments)
                except _AWAY:
                    await self._drop()
                    await asyncio.sleep(0.2)

    async def value(self, query: str, *arguments: object) -> Any:
        rows = await self.fetch(query, *arguments)
        return rows[0][0] if rows else None

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.terminate()

    async def close(self) -> None:
        await self._drop()


class SteadyProducer:
    """Publishes with confirms; a message without one is sent again, so a producer's duplicates are real."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None
        self._exchange: Any = None
        self._one_at_a_time = asyncio.Lock()
        self.repeated = 0

    async def publish(
        self, message: aio_pika.Message, key: str = "training.run.requested", *, once: bool = False
    ) -> bool:
        """True when the broker has confirmed it; False only with ``once``."""
        async with self._one_at_a_time:
            while True:
                try:
                    if self._exchange is None:
                        self._connection = await aio_pika.connect(self._url, timeout=5)
                        channel = await self._connection.channel(on_return_raises=True)
                        self._exchange = await channel.get_exchange("training", ensure=False)
                    await self._exchange.publish(message, key, timeout=5)
                except (
                    OSError,
                    TimeoutError,
                    aio_pika.exceptions.AMQPError,
                    RuntimeError,
                    asyncio.CancelledError,
                ) as error:
                    task = asyncio.current_task()
                    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                        raise
                    await self._drop()
                    if once:
                        return False
                    self.repeated += 1
                    await asyncio.sleep(0.3)
                else:
                    return True

    async def _drop(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.close(), 2)

    async def close(self) -> None:
        await self._drop()


async def drained(url: str, queue: str) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Everything that lies in a queue, in order."""
    connection = await aio_pika.connect(url)
    found = []
    async with connection:
        channel = await connection.channel()
        source = await channel.get_queue(queue, ensure=False)
        while (message := await source.get(fail=False, no_ack=True)) is not None:
            found.append(message)
    return found
