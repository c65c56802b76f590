"""Intake: the only place that acknowledges. A delivery is acked once its run's row, or its dead letter, is safe."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, Final

import structlog
from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage

from worker.broker import Backoff, pause, stay_connected, translated
from worker.domain.run import Request
from worker.errors import BrokerAway, DatabaseAway, DatabaseRefused
from worker.intake.burying import Bury, burying
from worker.intake.dead_letters import asked_again, worn
from worker.intake.feed import Feed, feeding
from worker.intake.handler import Accepted, Again, Dead, DeadReason, Duplicate, Properties, judge, understand
from worker.intake.topology import declare
from worker.metrics import Metrics
from worker.publisher import Publisher
from worker.store.runs import RunStore
from worker.tracing import OFF, Tracing, trace_of

PREFETCH: Final = 200
BATCH: Final = 100
"""Half of the prefetch: while one batch is being committed the next is on its way."""
LOOKS: Final = 5
"""How often a request is tried again whose obstacle vanished between two looks."""

_log = structlog.get_logger(__name__)


class Intake:
    """Takes requests from the queue into the database, busy or not.

    Args:
        amqp_url: the broker.
        runs: tells why a request did not become a row.
        take_in: makes rows of requests, and begins what need not wait; see ``Dispatcher.take_in``.
        metrics: counts messages by verdict.
        prefetch: deliveries under way at most.
        refused_limit_s: how long the broker may refuse us before that counts as final.
        uniform: uniform in [0, 1), for jitter.
        tracing: a span for each message, in its request's trace.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        amqp_url: str,
        runs: RunStore,
        take_in: Callable[[Sequence[Request]], Awaitable[list[bool]]],
        metrics: Metrics,
        *,
        prefetch: int = PREFETCH,
        refused_limit_s: float = 60.0,
        uniform: Callable[[], float] = random.random,
        tracing: Tracing = OFF,
    ) -> None:
        self._amqp_url = amqp_url
        self._tracing = tracing
        self._runs = runs
        self._take_in = take_in
        self._metrics = metrics
        self._prefetch = prefetch
        self._refused_limit_s = refused_limit_s
        self._uniform = uniform
        self._stop = asyncio.Event()
        self.consuming = False
        self.since = datetime.now(UTC)
        """When ``consuming`` last changed."""

    async def run(self, stop: asyncio.Event) -> None:
        """Take requests in until ``stop``.

        Raises:
            TopologyDiffers: a broker object exists with other arguments: people must mend that.
            BrokerRefused: the broker refused us for too long: the same.
        """
        self._stop = stop
        await stay_connected(
            self._amqp_url,
            "intake",
            self._serve,
            stop,
            on_lost=self._metrics.broker_reconnects.inc,
            backoff=Backoff(random=self._uniform),
            refused_limit_s=self._refused_limit_s,
        )

    async def _serve(self, connection: AbstractConnection) -> None:
        await declare(connection)
        dead = await Publisher.on(connection)
        while not self._stop.is_set():
            unregistered: list[Request] = []
            try:
                async with (
                    feeding(connection, self._prefetch) as feed,
                    _renewing(feed, dead),
                    burying(feed, dead, self._metrics) as bury,
                ):
                    self._now(consuming=True)
                    await self._until_stop(self._consume(feed, bury, unregistered))
            except (DatabaseAway, DatabaseRefused) as error:
                # The block is left: consumer cancelled, everything in flight back in the queue.
                _log.warning("intake_waits_for_database", error=str(error), returned=len(unregistered))
                self._now(consuming=False)
                await self._until_stop(self._database_back(connection, unregistered))
            finally:
                self._now(consuming=False)

    def _now(self, *, consuming: bool) -> None:
        if consuming != self.consuming:
            self.consuming, self.since = consuming, datetime.now(UTC)
            self._metrics.intake_up.set(int(consuming))
            _log.info("intake_consumes" if consuming else "intake_rests")

    async def _until_stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends or we are to stop; what it was at is settled by redelivery."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _consume(self, feed: Feed, bury: Bury, unregistered: list[Request]) -> None:
        while True:
            batch = await feed.take(BATCH)
            began = datetime.now(UTC)
            verdicts = [understand(message.body, _properties(message)) for message in batch]
            unregistered[:] = [verdict.request for verdict in verdicts if isinstance(verdict, Accepted)]
            settled = await self._registered(unregistered)
            safe: list[DeliveredMessage] = []
            left = iter(settled)
            for message, verdict in zip(batch, verdicts, strict=True):
                final = verdict if isinstance(verdict, Dead) else next(left)
                if isinstance(final, Dead):
                    bury(message, final)
                else:
                    safe.append(message)
            await feed.ack(safe)
            for request in unregistered:
                trace = trace_of(request.run_id, request.traceparent)
                self._tracing.record("take in", began, trace, run=str(request.run_id))
            self._count(settled)

    async def _registered(self, requests: Sequence[Request]) -> list[Accepted | Duplicate | Dead]:
        """What became of each request, all of them committed or known not to be needed.

        Raises:
            DatabaseAway, DatabaseRefused: none of it is certain; registering again is harmless.
        """
        settled: dict[int, Accepted | Duplicate | Dead] = {}
        looks = 0
        while waiting := {index: request for index, request in enumerate(requests) if index not in settled}:
            if looks == LOOKS:
                raise DatabaseRefused(f"{len(waiting)} requests can neither be registered nor refused")
            if looks:
                await pause(self._stop, 0.01 * 2**looks * self._uniform())
            found = await self._tried(waiting)
            settled |= {index: verdict for index, verdict in found.items() if not isinstance(verdict, Again)}
            looks += 1
        return [settled[index] for index in range(len(requests))]

    async def _tried(self, waiting: dict[int, Request]) -> dict[int, Accepted | Duplicate | Dead | Again]:
        created: dict[int, bool | DatabaseRefused]
        found: dict[int, Accepted | Duplicate | Dead | Again] = {}
        try:
            created = dict(zip(waiting, await self._take_in(list(waiting.values())), strict=True))
        except DatabaseRefused as refusal:
            created = await self._one_by_one(waiting, refusal)
        unclear = [waiting[index] for index, result in created.items() if result is False]
        standing = await self._runs.explain(unclear) if unclear else {}
        for index, result in created.items():
            request = waiting[index]
            if isinstance(result, DatabaseRefused):
                found[index] = Dead(DeadReason.REFUSED, str(result)[:1_000])
            elif result is True:
                found[index] = Accepted(request)
            else:
                found[index] = judge(request, dict(standing[request.run_id]))
        return found

    async def _one_by_one(
        self, waiting: dict[int, Request], refusal: DatabaseRefused
    ) -> dict[int, bool | DatabaseRefused]:
        """One request that the database refuses must not spoil those that shared its statement.

        Raises:
            DatabaseRefused: it refuses all of them, so the fault is ours and no message is used up.
        """
        created: dict[int, bool | DatabaseRefused] = {}
        for index, request in waiting.items():
            created[index] = await self._alone(request)
        refused = [index for index, result in created.items() if isinstance(result, DatabaseRefused)]
        if len(refused) == len(created):
            raise refusal
        for index in refused:
            # A database that refuses everything for a moment refuses the first ones only: ask while it takes others.
            created[index] = await self._alone(waiting[index])
        return created

    async def _alone(self, request: Request) -> bool | DatabaseRefused:
        try:
            [created] = await self._take_in([request])
        except DatabaseRefused as error:
            return error
        return created

    def _count(self, settled: Sequence[Accepted | Duplicate | Dead]) -> None:
        self._metrics.messages.labels("accepted").inc(sum(isinstance(verdict, Accepted) for verdict in settled))
        self._metrics.messages.labels("duplicate").inc(sum(isinstance(verdict, Duplicate) for verdict in settled))

    async def _database_back(self, connection: AbstractConnection, unregistered: Sequence[Request]) -> None:
        """Wait until the database takes what it did not take before: that is the proof that it is well.

        The messages stay in the queue meanwhile, so that one worker returns them once in an outage, see ``_renewing``.
        Their redelivery finds the row made here: a duplicate.
        """
        pauses = Backoff(first_s=0.1, most_s=5.0, random=self._uniform)
        closed = asyncio.ensure_future(_closed(connection))
        try:
            for request in cycle(unregistered):
                await asyncio.sleep(pauses.next_s())
                if closed.done():
                    raise BrokerAway("the connection closed")
                with suppress(DatabaseAway, DatabaseRefused):
                    await self._take_in([request])
                    return
        finally:
            closed.cancel()


@asynccontextmanager
async def _renewing(feed: Feed, publisher: Publisher) -> AsyncIterator[None]:
    """Where a block ends because of the database, ask anew for what was returned often already.

    RabbitMQ 4 counts how often a message was returned, and drops it at 20: a lone request goes from worker to worker
    while the database is away, once for each of them. A copy is counted from 0; twice in the queue it is harmless.

    Raises:
        BrokerAway: the connection broke; what was not confirmed goes back as it is.
    """
    try:
        yield
    except (DatabaseAway, DatabaseRefused):
        if old := [message for message in feed.rest() if worn(message)]:
            answers = await publisher.publish([asked_again(message) for message in old])
            renewed = [message for message, refusal in zip(old, answers, strict=True) if refusal is None]
            await feed.ack(renewed)
            _log.info("requests_renewed", renewed=len(renewed), of=len(old))
        raise


async def _closed(connection: AbstractConnection) -> None:
    async with translated():
        await connection.closed()


def _properties(message: DeliveredMessage) -> Properties:
    told = message.header.properties
    return Properties(
        content_type=told.content_type,
        content_encoding=told.content_encoding,
        type=told.message_type,
        message_id=told.message_id,
        headers=told.headers,
    )
