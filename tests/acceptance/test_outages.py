"""Broker gone, database gone, for seconds and for several leases: nothing is lost, no attempt is counted."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import aio_pika
import pytest

from deploy.local.postgres import create_database
from deploy.local.program import run_blocking
from deploy.local.services import LocalServices
from tests.acceptance.world import World, publish_request, until, world_at
from worker.store.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LEASE_S = 3.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    services = LocalServices(tmp_path_factory.mktemp("own"))
    services.start()
    try:
        yield services
    finally:
        services.stop()
        services.postgres.remove()


@pytest.fixture
async def world(tmp_path: Path, own: LocalServices) -> AsyncIterator[World]:
    name = f"w{uuid.uuid4().hex[:8]}"
    database_url = run_blocking(lambda: create_database(own.postgres.url(), name))
    await migrate(database_url)
    async with world_at(tmp_path, own.rabbitmq.create_vhost(name), database_url) as made:
        yield made


async def test_postmaster_down_for_three_leases_changes_no_attempt_number(world: World, own: LocalServices) -> None:
    await world.started()
    await world.started()
    runs = [await world.ask(steps=80, step_s=0.05, checkpoint_every=10) for _ in range(4)]
    for run in runs:
        await world.trainer_of(run, "train")
    own.postgres.kill()
    await asyncio.sleep(3 * LEASE_S)
    own.postgres.start()
    for run in runs:
        row = await world.over(run)
        assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), dict(row)
    assert world.overlaps() == []


async def test_frozen_database_pauses_trainers_and_changes_no_attempt_number(world: World, own: LocalServices) -> None:
    worker = await world.started()
    run = await world.ask(steps=60, step_s=0.05)
    await world.trainer_of(run, "train")
    own.postgres.server.freeze()
    try:
        await until(
            lambda: all(process.state in "tT" for process in world.trainers(run)), "its trainer stands still", 15
        )
        await asyncio.sleep(3 * LEASE_S)
    finally:
        own.postgres.server.thaw()
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), (dict(row), worker.tail())


async def test_broker_killed_while_training_pauses_nothing_and_loses_no_event(world: World, own: LocalServices) -> None:
    worker = await world.started()
    run = await world.ask(steps=60, step_s=0.05)
    await world.trainer_of(run, "train")
    own.rabbitmq.wait_until_queues_are_on_disk()
    own.rabbitmq.kill()
    row = await world.over(run)
    assert (row["status"], row["attempt"]) == (4, 1)
    own.rabbitmq.start()
    await until(lambda: world.pool.fetchval("select count(*) = 0 from outbox"), "everything has been told", 90)
    again = await world.ask()
    assert (await world.over(again))["status"] == 4
    assert worker.alive


async def test_both_gone_at_once_cost_a_delay_only(world: World, own: LocalServices) -> None:
    await world.started()
    run = await world.ask(steps=60, step_s=0.05, checkpoint_every=10)
    await world.trainer_of(run, "train")
    own.rabbitmq.wait_until_queues_are_on_disk()
    own.postgres.kill()
    own.rabbitmq.kill()
    await asyncio.sleep(2 * LEASE_S)
    own.rabbitmq.start()
    own.postgres.start()
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0), dict(row)


async def test_training_longer_than_the_consumer_timeout_finishes_once_without_a_channel_error(
    world: World, own: LocalServices
) -> None:
    """The node closes channels that hold a delivery for 2 s, looking every second; the training takes 12 s."""
    own.rabbitmq.control(
        "eval",
        "application:set_env(rabbit, consumer_timeout, 2000), application:set_env(rabbit, channel_tick_interval, 1000).",
    )
    try:
        await _proof_that_the_node_enforces_it(world.amqp_url)
        worker = await world.started()
        run = await world.ask(steps=120, step_s=0.1)
        row = await world.over(run)
        again, model = uuid.uuid4(), await world.new_model()
        await publish_request(world.amqp_url, again, *model)
        assert (await world.over(again))["status"] == 4
        assert not worker.said("broker_lost"), worker.tail()
    finally:
        # the node's own values; without one in its environment a channel's next look would crash
        own.rabbitmq.control(
            "eval",
            "application:set_env(rabbit, channel_tick_interval, 60000), application:set_env(rabbit, consumer_timeout, 1800000).",
        )
    assert (row["status"], row["attempt"]) == (4, 1)
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 4)]


async def _proof_that_the_node_enforces_it(amqp_url: str) -> None:
    """A consumer that trains before it acknowledges loses its channel here, as it does in production after 30 min."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("patience", durable=True, arguments={"x-queue-type": "quorum"})
        held = asyncio.Event()

        async def hold(_: object) -> None:
            held.set()

        await queue.consume(hold)
        await channel.default_exchange.publish(aio_pika.Message(b""), "patience")
        await asyncio.wait_for(held.wait(), 10)
        closed = asyncio.Event()
        channel.close_callbacks.add(lambda *_: closed.set())
        await asyncio.wait_for(closed.wait(), 30)
