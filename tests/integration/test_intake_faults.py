"""Intake when something is away: nothing is used up, nothing is lost, and it consumes again by itself."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from urllib.parse import quote

import aio_pika
import pytest

from deploy.local.rabbitmq import call_management
from tests.messages_support import Line, Shop, body_of, line_to, running, sample, shop_at, until
from worker.broker import connected
from worker.errors import DatabaseAway, DatabaseRefused, TopologyDiffers
from worker.intake import consumer, dead_letters
from worker.intake.consumer import Intake
from worker.intake.topology import declare
from worker.metrics import Metrics
from worker.store.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from deploy.local.services import LocalServices


async def test_a_deleted_queue_cancels_the_consumer_and_is_mended(shop, line, intake):
    request = shop.request()
    async with running(intake):
        await until(lambda: intake.consuming)
        await line.channel.queue_delete("training.runs")
        await until(lambda: not intake.consuming, "noticing it")
        await until(lambda: intake.consuming, "consuming again")
        await line.ask(request)
        await until(lambda: shop.status(request.run_id), "the row")


async def test_a_queue_that_comes_back_with_other_arguments_ends_intake_with_a_typed_error(line, intake):
    task = asyncio.ensure_future(intake.run(asyncio.Event()))
    await until(lambda: intake.consuming)
    await line.channel.queue_delete("training.runs")
    await line.channel.declare_queue("training.runs", durable=True, auto_delete=False)
    async with asyncio.timeout(30):
        with pytest.raises(TopologyDiffers, match="x-queue-type"):
            await task
    assert not intake.consuming


async def test_a_connection_closed_by_an_operator_is_made_again(shop, line, intake, services, metrics):
    request = shop.request()
    async with running(intake):
        await until(lambda: intake.consuming)

        def intakes() -> list[str]:
            found = call_management(services.management_url, "GET", "connections")
            vhost = intake._amqp_url.rsplit("/", 1)[1]
            return [one["name"] for one in found if one.get("user_provided_name") == "intake" and one["vhost"] == vhost]

        names = await until(intakes, "the management plugin seeing the connection")
        for name in names:
            call_management(services.management_url, "DELETE", f"connections/{quote(name)}")
        await until(lambda: sample(metrics, "training_broker_reconnects_total") >= 1)
        await line.ask(request)
        await until(lambda: shop.status(request.run_id), "the row")


async def test_a_channel_that_dies_under_a_delivery_brings_it_again_and_registers_it_once(
    shop, line, intake, monkeypatch
):
    request = shop.request()
    died = False
    ack = consumer.Feed.ack

    async def die_once(self, batch):
        nonlocal died
        if not died:
            died = True
            await self._channel.basic_ack(999_999)  # an unknown tag: the broker closes the channel
            await until(lambda: self._lost)
        await ack(self, batch)

    monkeypatch.setattr(consumer.Feed, "ack", die_once)
    async with running(intake):
        await line.ask(request)
        await until(lambda: shop.status(request.run_id), "the row")
        await until(lambda: sample(intake._metrics, "training_messages_total", verdict="duplicate"))
    assert died
    assert await shop.count() == 1
    await asyncio.sleep(0.1)
    assert await line.depth() == 0


async def test_dead_letters_that_nobody_confirms_hold_back_no_request(shop, line, intake, monkeypatch):
    shop.models += await shop.new_models(20)
    requests = [shop.request(model=model) for model in shop.models]

    async def silence(publisher, messages):
        await asyncio.Event().wait()

    monkeypatch.setattr(consumer.Publisher, "publish", silence)
    async with running(intake):
        await until(lambda: intake.consuming)
        await line.publish(b"garbage")
        for request in requests:
            await line.ask(request)
            await line.publish(b"garbage")
        await until(lambda: _rows(shop, len(requests)), "the rows")
    # The requests are acknowledged; what could not be buried is in the queue again.
    await until(lambda: _depth(line, len(requests) + 1), "the garbage back in the queue")
    monkeypatch.undo()
    async with running(intake):
        await until(lambda: sample(intake._metrics, "training_messages_total", verdict="not_json") == len(requests) + 1)
        await until(lambda: _depth(line, 0))
    assert await line.depth("training.runs.dead") == len(requests) + 1
    assert await shop.count() == len(requests)


async def _depth(line: Line, wanted: int) -> bool:
    return await line.depth() == wanted


async def test_a_lost_answer_of_the_commit_ends_as_a_duplicate(shop, line, intake, monkeypatch):
    request = shop.request()
    register = shop.runs.register
    lost = False

    async def lose_the_answer(requests):
        nonlocal lost
        answer = await register(requests)
        if not lost:
            lost = True
            raise DatabaseAway("the answer of the commit was lost")
        return answer

    monkeypatch.setattr(intake, "_take_in", lose_the_answer)
    async with running(intake):
        await line.ask(request)
        await until(lambda: sample(intake._metrics, "training_messages_total", verdict="duplicate"))
    assert await shop.count() == 1
    assert await line.depth("training.runs.dead") == 0


async def test_a_database_that_refuses_everything_uses_up_no_message(shop, line, intake):
    await shop.database.execute("alter table run_transitions rename to hidden")
    for _ in range(5):
        await line.ask(shop.request())
    async with running(intake):
        await until(lambda: not intake.consuming and intake.since)
        await asyncio.sleep(1)
        assert await line.depth("training.runs.dead") == 0
        await shop.database.execute("alter table hidden rename to run_transitions")
        await until(shop.count, "a row")
        await until(lambda: intake.consuming, "consuming again")


async def test_one_request_that_the_database_refuses_does_not_spoil_its_neighbours(shop, line, intake, monkeypatch):
    shop.models += await shop.new_models(4)
    requests = [shop.request(model=model) for model in shop.models]
    register = shop.runs.register

    async def refuse_one(asked):
        if any(request.run_id == requests[2].run_id for request in asked):
            raise DatabaseRefused("this one")
        return await register(asked)

    monkeypatch.setattr(intake, "_take_in", refuse_one)
    for request in requests:
        await line.ask(request)
    async with running(intake):
        letter = await until(line.dead, "the dead letter")
        await until(lambda: _rows(shop, 4), "the others' rows")
    assert letter.headers["x-reason"] == "refused"
    assert letter.message_id == str(requests[2].run_id)


async def test_requests_refused_before_the_database_took_anything_are_asked_once_more(shop, intake, monkeypatch):
    """Rights that are granted anew, a server that was read-only for a moment: no message is guilty of that."""
    shop.models += await shop.new_models(4)
    requests = [shop.request(model=model) for model in shop.models]
    register = shop.runs.register
    asked = []

    async def refuse_at_first(some):
        asked.append(some)
        if len(asked) <= 3:  # all together, then the first two alone
            raise DatabaseRefused("permission denied")
        return await register(some)

    monkeypatch.setattr(intake, "_take_in", refuse_at_first)
    assert await intake._registered(requests) == [consumer.Accepted(request) for request in requests]
    assert await shop.count() == len(requests)


async def test_an_outage_that_many_workers_meet_in_turn_wears_no_request_out(vhost, shop, services, monkeypatch):
    """RabbitMQ 4 drops a message that went back to a quorum queue 20 times; a policy says so here, with less."""
    monkeypatch.setattr(dead_letters, "WORN", 2)
    policy = {"pattern": ".*", "apply-to": "queues", "definition": {"delivery-limit": 4}}
    name = quote(vhost.rsplit("/", 1)[1], safe="")
    call_management(services.management_url, "PUT", f"policies/{name}/four", policy)
    async with connected(vhost, "test") as connection:
        await declare(connection)
    request = shop.request()
    tried: set[int] = set()
    away = True

    def worker(number: int) -> Intake:
        async def take_in(requests):
            tried.add(number)
            if away:
                raise DatabaseAway("away")
            return await shop.runs.register(requests)

        return Intake(vhost, shop.runs, take_in, Metrics())

    workers = [worker(number) for number in range(8)]
    async with AsyncExitStack() as stack, line_to(vhost) as line:
        for one in workers:
            await stack.enter_async_context(running(one))
        await until(lambda: all(one.consuming for one in workers), "all consuming")
        await line.ask(request)
        await until(lambda: len(tried) == len(workers), "every worker having held it")
        away = False
        await until(lambda: shop.status(request.run_id), "the row")
        await until(lambda: all(one.consuming for one in workers), "consuming again")
        await until(lambda: _empty(line), "an empty queue")
        assert await line.depth("training.runs.dead") == 0


async def _rows(shop: Shop, wanted: int) -> bool:
    return await shop.count() == wanted


async def test_a_request_whose_obstacle_vanished_between_two_looks_is_registered(shop, intake):
    first, second = shop.request(), shop.request()
    await shop.runs.register([first])
    explain = shop.runs.explain

    async def and_then_it_ends(requests):
        await shop.database.execute(
            "with r as (update training_runs set status = 1, sequence = 2, ended_at = now() where id = $1 "
            "and status = 2 returning id) "
            "insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt) "
            "select gen_random_uuid(), id, 2, 2, 1, 0 from r",
            first.run_id,
        )
        return await explain(requests)

    shop.runs.explain = and_then_it_ends  # type: ignore[method-assign]
    [verdict] = await intake._registered([second])
    assert verdict == consumer.Accepted(second)
    assert await shop.status(second.run_id) == 2


async def test_late_and_reordered_messages_end_where_they_would_have_ended_anyway(shop, line, intake):
    shop.models += await shop.new_models(9)
    requests = [shop.request(model=model) for model in shop.models]
    for request in reversed(requests):
        await line.ask(request, requested_at="1999-12-31T23:59:59+00:00")
    for request in requests[::2]:
        await line.ask(request)
    async with running(intake):
        await until(lambda: _rows(shop, 10), "the rows")
        await until(lambda: sample(intake._metrics, "training_messages_total", verdict="duplicate") == 5)
    assert await line.depth("training.runs.dead") == 0


# --- the broker and the server themselves -----------------------------------------------------------------------


@pytest.fixture
async def own_line(private_services: LocalServices) -> AsyncIterator[Line]:
    broker = private_services.rabbitmq
    if not broker.node.running:
        broker.start()
    async with connected(broker.amqp_url(), "test") as connection:
        await declare(connection)
    await asyncio.to_thread(broker.wait_until_queues_are_on_disk)  # a test may kill the broker at once
    async with line_to(broker.amqp_url()) as made:
        await (await made.channel.get_queue("training.runs")).purge()
        yield made


@pytest.mark.timeout(180)
async def test_a_killed_broker_loses_no_confirmed_request(private_services, shop, own_line, metrics):
    broker = private_services.rabbitmq
    intake = Intake(broker.amqp_url(), shop.runs, shop.runs.register, metrics)
    shop.models += await shop.new_models(300)
    requests = [shop.request(model=model) for model in shop.models]
    async with running(intake):
        await asyncio.gather(*(own_line.ask(request) for request in requests))  # each is confirmed
        await until(shop.count, "the first rows")
        await asyncio.to_thread(broker.kill)
        await until(lambda: not intake.consuming, "noticing it")
        await asyncio.to_thread(broker.start)
        async with asyncio.timeout(60):
            while await shop.count() < len(requests):
                await asyncio.sleep(0.1)
        await until(lambda: intake.consuming, "consuming again")
        async with line_to(broker.amqp_url()) as line:
            await until(lambda: _empty(line), "an empty queue")
            assert await line.depth("training.runs.dead") == 0
    assert await shop.count() == len(requests)
    assert sample(metrics, "training_broker_reconnects_total") >= 1


async def _empty(line: Line) -> bool:
    return await line.depth() == 0


@pytest.mark.timeout(180)
async def test_a_frozen_broker_is_noticed_and_intake_goes_on_when_it_thaws(
    private_services, own_line, shop, metrics, monkeypatch
):
    monkeypatch.setattr("worker.broker.HEARTBEAT_S", 1)
    monkeypatch.setattr("worker.broker.CONNECT_S", 2)
    broker = private_services.rabbitmq
    intake = Intake(broker.amqp_url(), shop.runs, shop.runs.register, metrics)
    request = shop.request()
    async with running(intake):
        await until(lambda: intake.consuming)
        broker.node.freeze()
        try:
            await until(lambda: not intake.consuming, "noticing the silence")
        finally:
            broker.node.thaw()
        await until(lambda: intake.consuming, "consuming again")
        async with line_to(broker.amqp_url()) as line:
            await line.ask(request)
            await until(lambda: shop.status(request.run_id), "the row")


@pytest.mark.timeout(180)
async def test_while_the_database_is_away_requests_stay_in_the_queue(private_services, vhost, line, metrics):
    postgres = private_services.postgres
    url = postgres.url()
    await migrate(url)
    async with shop_at(url, models=50) as shop:
        intake = Intake(vhost, shop.runs, shop.runs.register, metrics)
        async with running(intake):
            await until(lambda: intake.consuming)
            await asyncio.to_thread(postgres.kill)
            requests = [shop.request(model=model) for model in shop.models]
            for request in requests:
                await line.ask(request)
            await until(lambda: not intake.consuming, "giving the messages back")
            await until(lambda: _consumers(line, 0), "no consumer")
            assert await line.depth() == len(requests)
            await asyncio.to_thread(postgres.start)
            await until(lambda: _rows(shop, len(requests)), "the rows")
            await until(lambda: intake.consuming, "consuming again")
            await until(lambda: _empty(line), "an empty queue")
        assert await line.depth("training.runs.dead") == 0


async def _consumers(line: Line, wanted: int) -> bool:
    return await line.consumers() == wanted


async def test_intake_keeps_up_while_messages_arrive_one_by_one(shop, line, intake):
    """Every message alone in its batch: no batch waits for company."""
    shop.models += await shop.new_models(50)
    async with running(intake):
        for model in shop.models:
            request = shop.request(model=model)
            await line.ask(request)
            await until(lambda: shop.status(request.run_id))  # noqa: B023 - awaited in this turn


async def test_a_body_as_large_as_the_broker_takes_is_not_decoded_and_not_lost(shop, line, intake):
    large = b"[" * 5_000_000
    async with running(intake):
        await line.publish(large)
        letter = await until(line.dead, "the dead letter")
    assert letter.headers["x-reason"] == "too_large"
    assert letter.body == large
    assert isinstance(letter, aio_pika.abc.AbstractIncomingMessage)
    assert body_of(shop.request()) != large
