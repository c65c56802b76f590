"""The outbox relay: at least once, in order per run, confirmed before forgotten."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.messages_support import Line, Shop, line_to, running, sample, until
from worker.broker import connected
from worker.intake.consumer import Intake
from worker.intake.topology import declare
from worker.publisher import Publisher, Refusal
from worker.services.relay import Relay
from worker.store.database import Database
from worker.store.outbox import OutboxStore
from worker.store.queries import queries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aio_pika

    from deploy.local.services import LocalServices
    from worker.metrics import Metrics


@pytest.fixture
def relay(vhost: str, shop: Shop, metrics: Metrics) -> Relay:
    return Relay(vhost, OutboxStore(shop.database), declare, metrics, idle_s=0.2, confirm_s=5)


class Listener:
    """A service that listens to every event."""

    def __init__(self) -> None:
        self.messages: list[aio_pika.abc.AbstractIncomingMessage] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(message.body) for message in self.messages]

    def sequences(self) -> dict[str, list[int]]:
        """Per run, in the order of arrival, each event once."""
        found: dict[str, list[int]] = defaultdict(list)
        seen = set()
        for event in self.events:
            if event["event_id"] not in seen:
                seen.add(event["event_id"])
                found[event["run_id"]].append(event["sequence"])
        return found


@pytest.fixture
async def listener(vhost: str) -> AsyncIterator[Listener]:
    async with connected(vhost, "test") as connection:
        await declare(connection)
    async with line_to(vhost) as line:
        made = Listener()

        async def hear(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            made.messages.append(message)
            await message.ack()

        queue = await line.channel.declare_queue("listener", durable=True)
        for name in ("queued", "running", "succeeded", "failed", "cancelled"):
            await queue.bind("training", f"training.run.{name}")
        await queue.consume(hear)
        yield made


async def _registered(shop: Shop, count: int) -> list[uuid.UUID]:
    models = await shop.new_models(count)
    requests = [shop.request(model=model) for model in models]
    assert all(await shop.runs.register(requests))
    return [request.run_id for request in requests]


async def _move(database: Database, ids: list[uuid.UUID]) -> None:
    """Claim runs and hand them over again: two more events each."""
    await database.execute(
        "with r as (update training_runs set status = 3, sequence = sequence + 1, attempt = attempt + 1, "
        "worker_id = 'w', lease_expires_at = now(), started_at = now() where id = any ($1::uuid[]) "
        "returning id, sequence, attempt), "
        "h as (insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt) "
        "select gen_random_uuid(), id, sequence, 2, 3, attempt from r) "
        "insert into outbox (run_id, sequence, kind) select id, sequence, 'event' from r",
        ids,
    )
    await database.execute(
        "with r as (update training_runs set status = 2, sequence = sequence + 1, worker_id = null, "
        "lease_expires_at = null where id = any ($1::uuid[]) returning id, sequence, attempt), "
        "h as (insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt, reason_code) "
        "select gen_random_uuid(), id, sequence, 3, 2, attempt, 'handed_over' from r) "
        "insert into outbox (run_id, sequence, kind) select id, sequence, 'event' from r",
        ids,
    )


async def _untold(shop: Shop) -> int:
    row = await shop.database.fetch_row("select count(*) as n from outbox")
    return row["n"]


async def _told(shop: Shop) -> bool:
    return await _untold(shop) == 0


async def test_what_follows_soon_is_told_soon_though_an_idle_relay_looks_seldom(vhost, shop, metrics, listener):
    [run] = await _registered(shop, 1)
    relay = Relay(vhost, OutboxStore(shop.database), declare, metrics, soon_s=2.0, idle_s=3600)
    async with running(relay):
        await until(lambda: len(listener.messages) == 1)
        await _move(shop.database, [run])  # before it looks for the second time, two seconds after the first
        await until(lambda: len(listener.messages) == 3)


async def test_an_event_carries_everything_the_contract_names(shop, relay, listener):
    request = shop.request(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    await shop.runs.register([request])
    await _move(shop.database, [request.run_id])
    async with running(relay):
        await until(lambda: len(listener.messages) == 3)
    first, second, third = listener.messages
    assert [message.routing_key for message in listener.messages] == [
        "training.run.queued", "training.run.running", "training.run.queued",
    ]  # fmt: skip
    assert second.type == "training.run.running.v1"
    assert second.content_type == "application/json"
    assert second.delivery_mode == 2
    assert second.headers["traceparent"] == request.traceparent
    event = json.loads(second.body)
    assert second.message_id == event["event_id"]
    assert event | {"event_id": 0, "at": 0} == {
        "event_id": 0, "at": 0, "run_id": str(request.run_id), "sequence": 2, "attempt": 1, "from": 2, "to": 3,
        "custom_model_id": shop.models[0], "organization_id": shop.organization, "reason_code": None,
    }  # fmt: skip
    assert datetime.fromisoformat(event["at"]).astimezone(UTC).year >= 2026
    assert json.loads(first.body)["from"] is None
    assert json.loads(third.body)["reason_code"] == "handed_over"


async def test_events_of_many_runs_arrive_in_order_per_run_and_the_outbox_empties(shop, relay, listener, metrics):
    ids = await _registered(shop, 700)
    await _move(shop.database, ids)
    await _move(shop.database, ids[:50])
    async with running(relay):
        await until(lambda: _told(shop))
        await until(lambda: len(listener.messages) >= 700 * 3 + 100)
    sequences = listener.sequences()
    assert len(sequences) == 700
    assert all(found == sorted(found) for found in sequences.values())
    assert sample(metrics, "training_events_sent_total") == 700 * 3 + 100


async def test_two_relays_at_once_send_every_event_once_and_in_order(shop, vhost, listener, metrics):
    ids = await _registered(shop, 900)
    relays = [Relay(vhost, OutboxStore(shop.database), declare, metrics, soon_s=0.05, idle_s=0.05) for _ in range(2)]
    async with running(relays[0]), running(relays[1]):
        for _ in range(3):
            await _move(shop.database, ids[:200])
        await until(lambda: _told(shop))
        await until(lambda: len(listener.messages) >= 900 + 1200)
    assert len(listener.messages) == 900 + 1200
    assert all(found == list(range(1, len(found) + 1)) for found in listener.sequences().values())


async def test_a_refused_confirm_holds_back_that_run_and_no_other(shop, relay, listener, monkeypatch):
    ids = await _registered(shop, 20)
    await _move(shop.database, ids)
    unlucky = str(ids[7])
    publish = Publisher.publish
    refusals = 0

    async def nack_some(self, messages):
        nonlocal refusals
        if refusals == 2:
            return await publish(self, messages)
        lucky = [message for message in messages if unlucky not in message.body.decode()]
        refusals += len(messages) - len(lucky)
        answers = iter(await publish(self, lucky))
        return [next(answers) if message in lucky else Refusal("nack", silent=False) for message in messages]

    monkeypatch.setattr(Publisher, "publish", nack_some)
    async with running(relay):
        await until(lambda: len(listener.messages) >= 19 * 3)
        assert unlucky not in {event["run_id"] for event in listener.events}
        await until(lambda: _told(shop))
        await until(lambda: len(listener.messages) == 20 * 3)
    assert refusals == 2
    assert listener.sequences()[unlucky] == [1, 2, 3]


async def test_a_full_queue_that_rejects_holds_events_back_until_there_is_room(shop, relay, vhost):
    """A real nack from the broker: a queue with a length limit that rejects what it cannot take."""
    async with connected(vhost, "test") as connection:
        await declare(connection)
    async with line_to(vhost) as line:
        small = await line.channel.declare_queue(
            "small", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        await small.bind("training", "training.run.queued")
        await _registered(shop, 3)
        async with running(relay):
            await until(lambda: _leaves(shop, 2), "the first being confirmed")
            await asyncio.sleep(0.5)
            assert await _untold(shop) == 2
            found = []
            while len(found) < 3:
                message = await small.get(fail=False)
                if message is None:
                    await asyncio.sleep(0.02)
                    continue
                await message.ack()
                found.append(json.loads(message.body)["run_id"])
            await until(lambda: _told(shop))
    assert len(set(found)) == 3


async def _leaves(shop: Shop, rows: int) -> bool:
    return await _untold(shop) == rows


async def test_a_request_from_the_outbox_reaches_intake_and_is_a_duplicate_there(shop, relay, listener, vhost, metrics):
    request = shop.request()
    await shop.database.execute(
        queries("runs")["register_runs"], *shop.runs.registration([request], ["request", "event"])
    )
    intake = Intake(vhost, shop.runs, shop.runs.register, metrics)
    async with running(relay), running(intake):
        await until(lambda: sample(metrics, "training_messages_total", verdict="duplicate") == 1)
        await until(lambda: _told(shop))
    assert await shop.status(request.run_id) == 2


async def test_a_request_that_no_queue_takes_is_kept_and_sent_once_the_queue_is_back(shop, relay, listener, vhost):
    async with line_to(vhost) as line:
        await line.channel.queue_delete("training.runs")
        request = shop.request()
        await shop.database.execute(queries("runs")["register_runs"], *shop.runs.registration([request], ["request"]))
        async with running(relay):
            await until(lambda: _told(shop))
        assert await line.depth() == 1


async def test_an_operator_closing_the_connection_costs_no_event(shop, relay, listener, monkeypatch):
    ids = await _registered(shop, 400)
    publish = Publisher.publish
    cut = False

    async def cut_once(self, messages):
        nonlocal cut
        if not cut:
            cut = True
            asyncio.get_running_loop().call_later(0.02, self._channel.connection._reader_task.cancel)
        return await publish(self, messages)

    monkeypatch.setattr(Publisher, "publish", cut_once)
    async with running(relay):
        await until(lambda: _told(shop))
    await until(lambda: len(listener.sequences()) == len(ids))
    assert cut


@pytest.mark.timeout(180)
async def test_a_killed_broker_costs_no_event_and_no_order(private_services: LocalServices, shop, metrics):
    broker = private_services.rabbitmq
    if not broker.node.running:
        await asyncio.to_thread(broker.start)
    async with connected(broker.amqp_url(), "test") as connection:
        await declare(connection)
    async with line_to(broker.amqp_url()) as line:
        queue = await line.channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind("training", "training.run.*")
    await asyncio.to_thread(broker.wait_until_queues_are_on_disk)
    ids = await _registered(shop, 600)
    relay = Relay(broker.amqp_url(), OutboxStore(shop.database), declare, metrics, idle_s=0.1)
    async with running(relay):
        await until(lambda: _leaves_fewer(shop, 600))
        await asyncio.to_thread(broker.kill)
        await _move(shop.database, ids)
        await asyncio.to_thread(broker.start)
        async with asyncio.timeout(60):
            while not await _told(shop):
                await asyncio.sleep(0.1)
    heard = Listener()
    async with line_to(broker.amqp_url()) as line:
        kept: Line = line
        queue = await kept.channel.get_queue("kept")
        while message := await queue.get(fail=False):
            await message.ack()
            heard.messages.append(message)
    sequences = heard.sequences()
    assert len(sequences) == 600
    assert all(found == [1, 2, 3] for found in sequences.values())


async def _leaves_fewer(shop: Shop, rows: int) -> bool:
    return await _untold(shop) < rows


async def test_the_database_going_away_costs_no_event(shop, relay, listener):
    ids = await _registered(shop, 300)
    mover = Database(shop.url, size=1)  # the only one that is not cut off
    async with running(relay):
        for _ in range(10):
            await mover.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            await _move(mover, ids[:20])
            await asyncio.sleep(0.05)
        await until(lambda: _told(shop))
    await mover.close()
    await until(lambda: len(listener.sequences()) == 300)
    assert all(found == list(range(1, len(found) + 1)) for found in listener.sequences().values())


async def test_the_backlog_is_measured(shop):
    outbox = OutboxStore(shop.database)
    assert await outbox.backlog() == (0, 0.0)
    await _registered(shop, 4)
    rows, oldest_s = await outbox.backlog()
    assert rows == 4
    assert oldest_s >= 0


async def test_what_another_relay_has_told_meanwhile_is_not_remembered_for_ever(relay: Relay, monkeypatch):
    moment = 1000.0
    monkeypatch.setattr("worker.services.relay.time", SimpleNamespace(monotonic=lambda: moment))
    ours, others = (SimpleNamespace(run_id=uuid.uuid4()) for _ in range(2))
    refusal = Refusal("no queue takes it", silent=False)
    for row in (ours, others):
        relay._hold_back(row, refusal)  # type: ignore[arg-type]
    assert set(relay._still_held()) == {ours.run_id, others.run_id}
    first_s = relay._held[ours.run_id][0] - moment
    for _ in range(20):
        moment = relay._held[ours.run_id][0]
        assert ours.run_id not in relay._still_held()  # its turn has come; how often it failed is remembered
        relay._hold_back(ours, refusal)  # type: ignore[arg-type]
    assert relay._held[ours.run_id][0] - moment > 10 * first_s
    assert set(relay._held) == {ours.run_id}
