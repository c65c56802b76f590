"""The outbox relay: tells the broker what the database has committed, at least once, in order per run."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID

import structlog
from aio_pika.abc import AbstractConnection
from pamqp.commands import Basic

from schemas.messages import EVENT_NAMES, EXCHANGE, REQUEST_ROUTING_KEY, REQUEST_TYPE, RunMoved, RunRequested
from worker.broker import Backoff, pause, stay_connected
from worker.errors import BrokerAway, DatabaseAway, DatabaseRefused
from worker.intake.topology import Declare
from worker.metrics import Metrics
from worker.publisher import CONFIRM_S, PERSISTENT, Outgoing, Publisher, Refusal
from worker.store.outbox import OutboxStore, Unsent
from worker.tracing import OFF, Tracing, trace_of

BATCH: Final = 300
"""Runs in one transaction; each brings all it has to tell."""
_LONGEST_HOLD_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Relay:
    """Sends what the outbox holds. Any number of relays may run: they never hold the same run at once.

    Args:
        amqp_url: the broker; the relay has a connection of its own.
        outbox: where it stands what is to be told.
        declare: makes the exchange and queues, so that the relay does not depend on intake having started.
        metrics: counts what was confirmed.
        soon_s: until it looks again after it told something: what follows soon shares a batch. Longer makes larger
            batches, and whoever claims a run meanwhile waits for them.
        idle_s: until it looks again after it found nothing.
        confirm_s: how long the broker may take to confirm one message.
        uniform: uniform in [0, 1), for jitter.
        tracing: a span for each message, in its run's trace.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        amqp_url: str,
        outbox: OutboxStore,
        declare: Declare,
        metrics: Metrics,
        *,
        soon_s: float = 0.25,
        idle_s: float = 1.0,
        confirm_s: float = CONFIRM_S,
        refused_limit_s: float = 60.0,
        uniform: Callable[[], float] = random.random,
        tracing: Tracing = OFF,
    ) -> None:
        self._amqp_url = amqp_url
        self._tracing = tracing
        self._outbox = outbox
        self._declare = declare
        self._metrics = metrics
        self._soon_s = soon_s
        self._idle_s = idle_s
        self._confirm_s = confirm_s
        self._refused_limit_s = refused_limit_s
        self._uniform = uniform
        self._held: dict[UUID, tuple[float, Backoff]] = {}
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until ``stop``; a batch under way is finished.

        Raises:
            TopologyDiffers: a broker object exists with other arguments: people must mend that.
            BrokerRefused: the broker refused us for too long: the same.
        """
        self._stop = stop
        await stay_connected(
            self._amqp_url,
            "relay",
            self._serve,
            stop,
            on_lost=self._metrics.broker_reconnects.inc,
            backoff=Backoff(random=self._uniform),
            refused_limit_s=self._refused_limit_s,
        )

    async def _serve(self, connection: AbstractConnection) -> None:
        await self._declare(connection)
        publisher = await Publisher.on(connection, self._confirm_s)
        pauses = Backoff(first_s=0.1, most_s=5.0, random=self._uniform)
        while not self._stop.is_set():
            try:
                told = await self._one_batch(publisher)
                pauses.reset()
            except (DatabaseAway, DatabaseRefused) as error:
                wait_s = pauses.next_s()
                _log.warning("relay_waits_for_database", error=str(error), again_in_s=round(wait_s, 2))
                await pause(self._stop, wait_s)
                continue
            if told < BATCH:
                await self._wait(connection, self._soon_s if told else self._idle_s)

    async def _wait(self, connection: AbstractConnection, wait_s: float) -> None:
        """Until it is time to look again, or to stop, or the connection is lost."""
        waits = [asyncio.ensure_future(waiting) for waiting in (self._stop.wait(), connection.closed())]
        try:
            await asyncio.wait(waits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if waits[1].done():
                raise BrokerAway("the connection closed")
        finally:
            for waiting in waits:
                waiting.cancel()

    async def _one_batch(self, publisher: Publisher) -> int:
        """Send what some runs have to tell; how many these are. ``BATCH`` of them: there may be more at once."""
        held = self._still_held()
        async with self._outbox.unsent(BATCH, held) as batch:
            by_run = [list(rows) for _, rows in groupby(batch.rows, key=attrgetter("run_id"))]
            sent: list[Unsent] = []
            lost: BrokerAway | None = None
            try:
                await self._send(publisher, by_run, sent)
            except BrokerAway as error:
                lost = error  # raised once what the broker did confirm is committed: it need not be told again
            if sent:
                await batch.mark_sent([row.outbox_id for row in sent])
        self._metrics.events_sent.inc(len(sent))
        if lost is not None:
            raise lost
        return len(by_run)

    async def _send(self, publisher: Publisher, by_run: Sequence[list[Unsent]], sent: list[Unsent]) -> None:
        """First every run's oldest row, confirmed, then every run's next: in order per run, runs side by side.

        Raises:
            BrokerAway: the connection broke; ``sent`` holds what was confirmed before.
        """
        while by_run:
            heads = [rows[0] for rows in by_run]
            began = datetime.now(UTC)
            answers = await publisher.publish([message_of(row) for row in heads])
            following = []
            sick: Refusal | None = None
            for rows, answer in zip(by_run, answers, strict=True):
                if answer is None:
                    sent.append(rows[0])
                    self._told(rows[0], began)
                    self._held.pop(rows[0].run_id, None)
                    if rows[1:]:
                        following.append(rows[1:])
                    continue
                self._hold_back(rows[0], answer)
                if answer.silent or rows[0].kind == "request":
                    sick = answer
            if sick is not None:
                # Silence: RabbitMQ 3.10 never confirms on a channel that published to a quorum queue while it had
                # no leader. A request that no queue takes: somebody deleted it. A new connection mends both.
                raise BrokerAway(str(sick))
            by_run = following

    def _told(self, row: Unsent, began: datetime) -> None:
        trace = trace_of(row.run_id, row.traceparent)
        self._tracing.record(f"publish {row.kind}", began, trace, run=str(row.run_id), to=row.to_status.name)

    def _hold_back(self, row: Unsent, answer: Refusal) -> None:
        _, pauses = self._held.get(
            row.run_id, (0.0, Backoff(first_s=0.5, most_s=_LONGEST_HOLD_S, random=self._uniform))
        )
        wait_s = pauses.next_s()
        self._held[row.run_id] = time.monotonic() + wait_s, pauses
        _log.info("event_held_back", run=str(row.run_id), error=str(answer), again_in_s=round(wait_s, 2))

    def _still_held(self) -> list[UUID]:
        now = time.monotonic()
        # Due so long ago and neither sent nor refused by us: another relay has told it.
        self._held = {run_id: held for run_id, held in self._held.items() if now - held[0] < _LONGEST_HOLD_S}
        return [run_id for run_id, (until, _) in self._held.items() if until > now]


def message_of(row: Unsent) -> Outgoing:
    """The row as a message."""
    headers = {"traceparent": row.traceparent} if row.traceparent else None
    if row.kind == "request":
        request = RunRequested(
            run_id=row.run_id,
            custom_model_id=row.custom_model_id,
            organization_id=row.organization_id,
            requested_at=row.requested_at,
        )
        properties = _properties(str(row.run_id), REQUEST_TYPE, headers)
        body = request.model_dump_json().encode()
        return Outgoing(EXCHANGE, REQUEST_ROUTING_KEY, body, properties, mandatory=True)
    name = EVENT_NAMES[row.to_status]
    event = RunMoved(
        event_id=row.event_id,
        run_id=row.run_id,
        sequence=row.sequence,
        attempt=row.attempt,
        from_status=row.from_status,
        to_status=row.to_status,
        at=row.at,
        custom_model_id=row.custom_model_id,
        organization_id=row.organization_id,
        reason_code=row.reason_code,
    )
    properties = _properties(str(row.event_id), f"training.run.{name}.v1", headers)
    return Outgoing(EXCHANGE, f"training.run.{name}", event.model_dump_json(by_alias=True).encode(), properties)


def _properties(message_id: str, message_type: str, headers: dict[str, str] | None) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        message_id=message_id,
        message_type=message_type,
        headers=dict(headers) if headers else None,
    )
