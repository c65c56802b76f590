"""Confirmed publishing, many messages at once, each with an answer of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from worker.broker import translated
from worker.errors import BrokerAway, BrokerRefused

CONFIRM_S: Final = 10.0
PERSISTENT: Final = 2


@dataclass(frozen=True)
class Outgoing:
    """One message on its way to the broker."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Basic.Properties
    mandatory: bool = False
    """Whether it is a failure that no queue takes it."""


@dataclass(frozen=True)
class Refusal:
    """Why a message was not confirmed."""

    why: str
    silent: bool
    """The broker said nothing in time; the message may have arrived."""

    def __str__(self) -> str:
        return self.why


class Publisher:
    """One channel with publisher confirms."""

    def __init__(self, channel: AbstractChannel, confirm_s: float = CONFIRM_S) -> None:
        self._channel = channel
        self._confirm_s = confirm_s

    @classmethod
    async def on(cls, connection: AbstractConnection, confirm_s: float = CONFIRM_S) -> "Publisher":
        """A publisher with a channel of its own.

        Raises:
            BrokerAway: the connection broke.
        """
        async with translated():
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return cls(await channel.get_underlay_channel(), confirm_s)

    async def publish(self, messages: Sequence[Outgoing]) -> list[Refusal | None]:
        """Publish, in this order, and wait for every answer.

        Returns:
            For each message None where the broker confirmed it, else why it did not.

        Raises:
            BrokerAway: the channel or the connection broke; what was confirmed before is not known.
        """
        answers: list[Refusal | None] = [None] * len(messages)
        for wave in _waves(messages):
            told = await asyncio.gather(*(self._one(messages[index]) for index in wave))
            for index, answer in zip(wave, told, strict=True):
                answers[index] = answer
        if self._channel.is_closed and any(answers):
            raise BrokerAway(next(answer.why for answer in answers if answer))
        return answers

    async def _one(self, message: Outgoing) -> Refusal | None:
        try:
            async with translated():
                await self._channel.basic_publish(
                    message.body,
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    properties=message.properties,
                    mandatory=message.mandatory,
                    timeout=self._confirm_s,
                    wait=False,
                )
        except (BrokerAway, BrokerRefused) as error:
            return Refusal(str(error), silent=isinstance(error.__cause__, TimeoutError))
        return None


def _waves(messages: Sequence[Outgoing]) -> list[list[int]]:
    """Indexes of messages that can be under way together.

    aiormq finds the message that an unroutable one's return belongs to by message id: two mandatory ones with one
    id under way together, and the first would count as delivered.
    """
    waves: list[list[int]] = [[]]
    met: dict[str | None, int] = {}
    for index, message in enumerate(messages):
        wave = 0
        if message.mandatory:
            wave = met.get(message.properties.message_id, 0)
            met[message.properties.message_id] = wave + 1
        while len(waves) <= wave:
            waves.append([])
        waves[wave].append(index)
    return waves
