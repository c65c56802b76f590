"""Confirmed publishing, many messages at once, each with an answer of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from aio_pika.abc import AbstractConnection
from aiormq.abc import ChannelFrame, DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from worker.broker import translated
from worker.errors import BrokerAway

CONFIRM_S: Final = 10.0
PERSISTENT: Final = 2


@dataclass(frozen=True, slots=True)
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


_SILENCE: Final = Refusal("the broker did not confirm in time", silent=True)


class Publisher:
    """One channel with publisher confirms; one ``publish`` at a time.

    aiormq's own ``basic_publish`` makes a task, three futures, a lock and a timeout for each message. Here a wave of
    messages is one write and one wait, which is what lets a relay tell several thousand transitions a second. The
    channel's table of confirmations stays aiormq's: it matches the broker's answers, single, multiple and returned.
    """

    def __init__(self, channel: Channel, confirm_s: float = CONFIRM_S) -> None:
        self._channel = channel
        self._confirm_s = confirm_s
        self._methods: dict[tuple[str, str, bool], bytes] = {}

    @classmethod
    async def on(cls, connection: AbstractConnection, confirm_s: float = CONFIRM_S) -> "Publisher":
        """A publisher with a channel of its own.

        Raises:
            BrokerAway: the connection broke.
        """
        async with translated():
            opened = connection.channel(publisher_confirms=True, on_return_raises=True)
            await opened.initialize()
            channel = await opened.get_underlay_channel()
        assert isinstance(channel, Channel)
        return cls(channel, confirm_s)

    async def publish(self, messages: Sequence[Outgoing]) -> list[Refusal | None]:
        """Publish, in this order, and wait for every answer.

        Returns:
            For each message None where the broker confirmed it, else why it did not.

        Raises:
            BrokerAway: the channel or the connection broke; what was confirmed before is not known.
        """
        for message in messages:
            if message.mandatory and not message.properties.message_id:
                # aiormq knows a returned message by its id only; without one it would count as delivered.
                message.properties.message_id = str(uuid4())
        answers: list[Refusal | None] = [None] * len(messages)
        for indexes in _waves(messages):
            told = await self._wave([messages[index] for index in indexes])
            for index, answer in zip(indexes, told, strict=True):
                answers[index] = answer
        return answers

    async def _wave(self, messages: Sequence[Outgoing]) -> list[Refusal | None]:
        wave = _Wave(len(messages))
        closing = self._channel.closing
        closing.add_done_callback(wave.channel_closed)
        try:
            async with translated(), asyncio.timeout(self._confirm_s):
                payload = b"".join(self._frames(message, wave, index) for index, message in enumerate(messages))
                await self._channel.write_queue.put(ChannelFrame(payload=payload, should_close=False))
                await wave.over
        except BrokerAway as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
        finally:
            closing.remove_done_callback(wave.channel_closed)
            closing.cancel()
        return wave.answers

    def _frames(self, message: Outgoing, wave: "_Wave", index: int) -> bytes:
        channel = self._channel
        channel.delivery_tag += 1
        channel.confirmations[channel.delivery_tag] = _Confirmation(wave, index)  # type: ignore[assignment]
        if message.mandatory:
            channel.message_id_delivery_tag[message.properties.message_id or ""] = channel.delivery_tag
        key = (message.exchange, message.routing_key, message.mandatory)
        method = self._methods.get(key)
        if method is None:
            frame = Basic.Publish(exchange=key[0], routing_key=key[1], mandatory=key[2])
            method = self._methods[key] = marshal(frame, channel.number)
        header = marshal(ContentHeader(body_size=len(message.body), properties=message.properties), channel.number)
        step = channel.max_content_size
        bodies = (
            marshal(ContentBody(message.body[start : start + step]), channel.number)
            for start in range(0, len(message.body), step)
        )
        return b"".join((method, header, *bodies))


class _Wave:
    """Messages under way together, and what the broker has said of each."""

    def __init__(self, size: int) -> None:
        self.answers: list[Refusal | None] = [_SILENCE] * size
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = size
        if not size:
            self.over.set_result(None)

    def answered(self, index: int, refusal: Refusal | None) -> None:
        """The broker has spoken."""
        self.answers[index] = refusal
        self._waiting -= 1
        if not self._waiting and not self.over.done():
            self.over.set_result(None)

    def channel_closed(self, closing: "asyncio.Future[object]") -> None:
        """Nothing more will be said."""
        if not self.over.done():
            error = None if closing.cancelled() else closing.exception()
            self.over.set_exception(BrokerAway(f"the channel closed: {error or 'by us'}"))


class _Confirmation:
    """Stands in aiormq's table where it would keep a future for each message."""

    __slots__ = ("_index", "_said", "_wave")

    def __init__(self, wave: _Wave, index: int) -> None:
        self._wave = wave
        self._index = index
        self._said = False

    def done(self) -> bool:
        return self._said

    def cancelled(self) -> bool:
        return False

    def set_result(self, _: "Basic.Ack | DeliveredMessage") -> None:
        self._said = True
        self._wave.answered(self._index, None)

    def set_exception(self, error: BaseException) -> None:
        self._said = True
        if isinstance(error, PublishError):
            why = f"no queue takes it: {error.frame}"
        else:
            why = "the broker refused it" if isinstance(error, DeliveryError) else str(error)
        self._wave.answered(self._index, Refusal(why, silent=False))


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
