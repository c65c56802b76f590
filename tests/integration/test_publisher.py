"""Confirmed publishing: every message gets the broker's own answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pamqp.commands import Basic

from tests.messages_support import Line, line_to
from worker.broker import connected
from worker.errors import BrokerAway
from worker.intake.topology import declare
from worker.publisher import Outgoing, Publisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def publisher(vhost: str) -> AsyncIterator[Publisher]:
    async with connected(vhost, "test") as connection:
        await declare(connection)
        yield await Publisher.on(connection, confirm_s=5)


@pytest.fixture
async def line(vhost: str, publisher: Publisher) -> AsyncIterator[Line]:
    async with line_to(vhost) as made:
        yield made


def _message(key: str, message_id: str | None = None, body: bytes = b"x") -> Outgoing:
    return Outgoing("training", key, body, Basic.Properties(message_id=message_id, delivery_mode=2), mandatory=True)


async def test_what_no_queue_takes_is_refused_and_the_rest_is_confirmed(publisher, line):
    keys = ["training.run.requested", "nowhere", "training.run.requested", "nowhere"]
    answers = await publisher.publish([_message(key, str(number)) for number, key in enumerate(keys)])
    assert [answer is None for answer in answers] == [True, False, True, False]
    assert "no queue takes it" in str(answers[1])
    assert await line.depth() == 2


async def test_messages_without_an_id_or_with_the_same_id_are_told_apart(publisher, line):
    messages = [_message("nowhere") for _ in range(5)] + [_message("nowhere", "same") for _ in range(5)]
    answers = await publisher.publish([*messages, _message("training.run.requested", "same")])
    assert [answer is None for answer in answers] == [False] * 10 + [True]
    assert await line.depth() == 1


async def test_ten_thousand_small_and_a_few_large_ones_arrive_whole(publisher, line):
    large = bytes(range(256)) * 4_000  # several frames
    for start in range(0, 10_000, 1_000):
        wave = [_message("training.run.requested", f"{start + number}") for number in range(1_000)]
        assert await publisher.publish(wave) == [None] * 1_000
    assert await publisher.publish([_message("training.run.requested", "large", large)] * 3) == [None] * 3
    assert await publisher.publish([_message("training.run.requested", "empty", b"")]) == [None]
    assert await line.depth() == 10_004
    queue = await line.channel.get_queue("training.runs")
    bodies = [(await queue.get(no_ack=True)).body for _ in range(10_004)]
    assert bodies == [b"x"] * 10_000 + [large] * 3 + [b""]


async def test_a_channel_that_breaks_says_so_at_once(publisher):
    missing = Outgoing("no such exchange", "x", b"", Basic.Properties(delivery_mode=2))
    with pytest.raises(BrokerAway, match="no such exchange"):
        await publisher.publish([missing])
    with pytest.raises(BrokerAway):
        await publisher.publish([_message("training.run.requested", "late")])


async def test_nothing_is_published_in_no_time(publisher):
    assert await publisher.publish([]) == []
