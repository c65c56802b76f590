"""Requests, models and queues for tests of intake, relay and dead letters."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aio_pika

from worker.domain.run import Request
from worker.store.database import Database
from worker.store.models import ModelStore
from worker.store.runs import Limits, RunStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from worker.metrics import Metrics

PATIENCE_S = 60.0


async def until(fact: Callable[[], Awaitable[Any]] | Callable[[], Any], what: str = "the fact") -> Any:
    """Wait for a fact; fails when it does not come true in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = fact()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true within {PATIENCE_S:.0f} s") from None


@dataclass
class Shop:
    """A migrated database with an organization and models."""

    url: str
    database: Database
    runs: RunStore
    organization: int
    base: int
    models: list[int]

    async def status(self, run_id: uuid.UUID) -> int | None:
        row = await self.database.fetch_row("select status from training_runs where id = $1", run_id)
        return None if row is None else row["status"]

    async def count(self) -> int:
        row = await self.database.fetch_row("select count(*) as n from training_runs")
        return row["n"]

    async def new_models(self, count: int, organization: int | None = None) -> list[int]:
        rows = await self.database.fetch(
            "insert into custom_models (key, name, organization_id, base_language_id) "
            "select 'm-' || gen_random_uuid(), 'm', $1, $2 from generate_series(1, $3) returning id",
            organization or self.organization,
            self.base,
            count,
        )
        return [row["id"] for row in rows]

    def request(self, model: int | None = None, **changes: Any) -> Request:
        known = {
            "run_id": uuid.uuid4(),
            "custom_model_id": model or self.models[0],
            "organization_id": self.organization,
            "requested_at": datetime.now(UTC),
        }
        return Request(**(known | changes))


@asynccontextmanager
async def shop_at(url: str, models: int = 1) -> AsyncIterator[Shop]:
    database = Database(url, size=6, answer_s=5)
    store = ModelStore(database)
    organization = await store.create_organization(None, "Clinic", 1000)
    base = await store.create_base_language("en", "English", "/base")
    shop = Shop(url, database, RunStore(database, Limits(), lambda: 0.5), organization, base, [])
    shop.models = await shop.new_models(models)
    try:
        yield shop
    finally:
        await database.close()


def body_of(request: Request, **changes: Any) -> bytes:
    known = {
        "run_id": str(request.run_id),
        "custom_model_id": request.custom_model_id,
        "organization_id": request.organization_id,
        "requested_at": request.requested_at.isoformat(),
    }
    return json.dumps(known | changes).encode()


@dataclass
class Line:
    """A producer's own connection to the broker."""

    channel: aio_pika.abc.AbstractChannel

    async def publish(self, body: bytes, key: str = "training.run.requested", **properties: Any) -> None:
        exchange = await self.channel.get_exchange("training", ensure=False)
        known = {"content_type": "application/json", "type": "training.run.requested.v1", "delivery_mode": 2}
        await exchange.publish(aio_pika.Message(body, **(known | properties)), key)

    async def ask(self, request: Request, **changes: Any) -> None:
        await self.publish(body_of(request, **changes), message_id=str(request.run_id))

    async def depth(self, queue: str = "training.runs") -> int:
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count

    async def consumers(self, queue: str = "training.runs") -> int:
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.consumer_count

    async def dead(self) -> aio_pika.abc.AbstractIncomingMessage | None:
        queue = await self.channel.get_queue("training.runs.dead", ensure=False)
        return await queue.get(fail=False, no_ack=True)


@asynccontextmanager
async def line_to(amqp_url: str) -> AsyncIterator[Line]:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        yield Line(await connection.channel(on_return_raises=True))


@asynccontextmanager
async def running(service: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A service for the duration of a block; what it raises fails the test."""
    stop = asyncio.Event()
    task = asyncio.ensure_future(service.run(stop))
    try:
        yield task
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and task.exception():
        raise task.exception()


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0
