"""Dead letters: published with their reason, and what an operator does with them: list, replay, discard."""

import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import encode
from pamqp.commands import Basic

from schemas.messages import DEAD_EXCHANGE, DEAD_QUEUE, EXCHANGE, REQUEST_ROUTING_KEY
from worker.broker import connected, translated
from worker.errors import BrokerAway
from worker.intake.handler import Dead
from worker.intake.topology import declare
from worker.publisher import PERSISTENT, Outgoing, Publisher

REASON: Final = "x-reason"
DETAIL: Final = "x-detail"
FIRST_SEEN: Final = "x-first-seen"
_OURS: Final = frozenset({REASON, DETAIL, FIRST_SEEN})
# The broker's own: counts deliveries; routes by CC and BCC wherever a message is published again.
_NOT_KEPT: Final = frozenset({"x-delivery-count", "x-acquired-count", "CC", "BCC"})
_MOST_HEADERS: Final = 65_536
"""Bytes. A header frame (131,072) is never split: headers that fill it leave no room for ours."""
WORN: Final = 10
"""Returns. RabbitMQ 4 drops what was returned to a quorum queue 20 times, by default; a copy starts at 0 again."""


@dataclass(frozen=True)
class Letter:
    """One dead letter as an operator sees it."""

    message_id: str | None
    reason: str
    detail: str
    first_seen: str
    body: bytes
    headers: Mapping[str, Any]


def dead_letter(message: DeliveredMessage, verdict: Dead, now: datetime) -> Outgoing:
    """The message as it came, with why it was refused.

    Properties that would make the broker refuse or drop it are left out: another user's id, an expiry.
    """
    came = message.header.properties
    headers = {name: value for name, value in (came.headers or {}).items() if name not in _NOT_KEPT}
    first_seen = headers.get(FIRST_SEEN)
    if not _can_be_sent(headers):
        headers = {}
    headers |= {
        REASON: verdict.reason.value,
        DETAIL: verdict.detail,
        FIRST_SEEN: first_seen
        if isinstance(first_seen, str)
        else now.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    return Outgoing(DEAD_EXCHANGE, "", message.body, _properties(came, headers), mandatory=True)


def asked_again(message: DeliveredMessage) -> Outgoing:
    """The message as a new request: it has been delivered no more than any other, and says nothing of its past."""
    headers = {name: value for name, value in _kept(message).items() if name not in _OURS - {FIRST_SEEN}}
    properties = _properties(message.header.properties, headers if _can_be_sent(headers) else {})
    return Outgoing(EXCHANGE, REQUEST_ROUTING_KEY, message.body, properties, mandatory=True)


def worn(message: DeliveredMessage) -> bool:
    """Whether the broker has taken it back so often that it may soon drop it."""
    counted = (message.header.properties.headers or {}).get("x-delivery-count")
    return isinstance(counted, int) and counted >= WORN


def _can_be_sent(headers: dict[str, Any]) -> bool:
    try:
        return len(encode.field_table(headers)) <= _MOST_HEADERS
    except (ValueError, TypeError, ArithmeticError, struct.error):
        return False  # what can be read cannot always be written


def _properties(came: Basic.Properties, headers: dict[str, Any]) -> Basic.Properties:
    return Basic.Properties(
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        message_type=came.message_type,
        message_id=came.message_id,
        correlation_id=came.correlation_id,
        timestamp=came.timestamp,
        app_id=came.app_id,
        headers=headers,
        delivery_mode=PERSISTENT,
    )


# --- for operators -----------------------------------------------------------------------------------------------


async def count(amqp_url: str) -> int:
    """How many there are.

    Raises:
        BrokerAway, BrokerRefused, TopologyDiffers: as their names say.
    """
    async with _queue(amqp_url) as (channel, _), translated():
        return (await channel.queue_declare(DEAD_QUEUE, passive=True)).message_count or 0


async def letters(amqp_url: str, most: int = 100) -> list[Letter]:
    """The oldest dead letters. They stay where they are.

    Raises:
        BrokerAway, BrokerRefused, TopologyDiffers: as their names say.
    """
    found = []
    async with _queue(amqp_url) as (channel, publisher):
        async for message in _taken(channel, most):
            found.append(_letter(message))
            if worn(message):
                copy = Outgoing(
                    DEAD_EXCHANGE, "", message.body,
                    _properties(message.header.properties, _kept(message)), mandatory=True,
                )  # fmt: skip
                await _moved(channel, publisher, message, copy)
    return found


async def replay(amqp_url: str, message_ids: set[str] | None = None, most: int = 1_000) -> int:
    """Send dead letters back to the request queue: those with these ids, or all.

    Args:
        amqp_url: the broker.
        message_ids: None takes them all.
        most: dead letters looked at.

    Returns:
        How many were sent back; each is gone from the dead letters once the broker has confirmed the new one.

    Raises:
        BrokerAway, BrokerRefused, TopologyDiffers: as their names say; what was not confirmed is still a dead letter.
    """
    replayed = 0
    async with _queue(amqp_url) as (channel, publisher):
        async for message in _taken(channel, most):
            if _chosen(message, message_ids):
                await _moved(channel, publisher, message, asked_again(message))
                replayed += 1
    return replayed


async def discard(amqp_url: str, message_ids: set[str] | None = None, most: int = 1_000) -> int:
    """Remove dead letters for good: those with these ids, or all. Arguments and errors as for ``replay``."""
    discarded = 0
    async with _queue(amqp_url) as (channel, _):
        async for message in _taken(channel, most):
            if _chosen(message, message_ids):
                async with translated():
                    await channel.basic_ack(message.delivery_tag or 0)
                discarded += 1
    return discarded


@asynccontextmanager
async def _queue(amqp_url: str) -> AsyncIterator[tuple[AbstractChannel, Publisher]]:
    async with connected(amqp_url, "dead-letters") as connection:
        await declare(connection)
        publisher = await Publisher.on(connection)
        # What is not acknowledged on this channel goes back to its place when the channel closes.
        async with connection.channel() as channel:
            yield await channel.get_underlay_channel(), publisher


async def _taken(channel: AbstractChannel, most: int) -> AsyncIterator[DeliveredMessage]:
    """The messages that are there now, one by one, at most so many: what is copied behind them is not met again."""
    async with translated():
        there = (await channel.queue_declare(DEAD_QUEUE, passive=True)).message_count or 0
    for _ in range(min(there, most)):
        async with translated():
            message = await channel.basic_get(DEAD_QUEUE)
        if isinstance(message.delivery, Basic.GetEmpty):
            return
        yield message


async def _moved(channel: AbstractChannel, publisher: Publisher, message: DeliveredMessage, copy: Outgoing) -> None:
    [refusal] = await publisher.publish([copy])
    if refusal is not None:
        raise BrokerAway(f"not confirmed, so it stays a dead letter: {refusal}")
    async with translated():
        await channel.basic_ack(message.delivery_tag or 0)


def _kept(message: DeliveredMessage) -> dict[str, Any]:
    return {name: value for name, value in (message.header.properties.headers or {}).items() if name not in _NOT_KEPT}


def _chosen(message: DeliveredMessage, message_ids: set[str] | None) -> bool:
    return message_ids is None or message.header.properties.message_id in message_ids


def _letter(message: DeliveredMessage) -> Letter:
    headers = dict(message.header.properties.headers or {})
    return Letter(
        message_id=message.header.properties.message_id,
        reason=str(headers.pop(REASON, "unknown")),
        detail=str(headers.pop(DETAIL, "")),
        first_seen=str(headers.pop(FIRST_SEEN, "")),
        body=message.body,
        headers=headers,
    )
