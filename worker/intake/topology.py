"""The broker's objects: declared at the start, compared with what exists, differences named."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from schemas.messages import DEAD_EXCHANGE, DEAD_QUEUE, EXCHANGE, REQUEST_QUEUE, REQUEST_ROUTING_KEY
from worker.broker import connected, translated
from worker.domain.finding import Finding
from worker.errors import BrokerAway, BrokerRefused, TopologyDiffers

# RabbitMQ's words for a 406, 3.10 to 4.x: PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue
# 'training.runs' in vhost '/': received the value 'quorum' of type 'longstr' but current is none
_DIFFERENCE: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>\w+) '(?P<name>[^']+)'.*?: "
    r"received (?:the value )?(?P<wanted>.+?)(?: of type '\w+')? but current is (?P<found>.+?)(?: of type '\w+')?$",
    re.DOTALL,
)


@dataclass(frozen=True)
class Exchange:
    """A durable exchange of ours."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"exchange {self.name}"

    async def declare(self, channel: AbstractChannel, *, only_look: bool) -> None:
        """Make it, or compare it with what exists; ``only_look`` asks whether it exists."""
        await channel.declare_exchange(self.name, self.kind, durable=True, passive=only_look)


@dataclass(frozen=True)
class Queue:
    """A durable quorum queue of ours: 1,980 of 2,000 messages after 20 acks and a kill -9, exactly."""

    name: str
    exchange: str
    """The exchange it is bound to."""
    routing_key: str
    arguments: dict[str, Any] = field(default_factory=lambda: {"x-queue-type": "quorum"})

    def __str__(self) -> str:
        return f"queue {self.name}"

    async def declare(self, channel: AbstractChannel, *, only_look: bool) -> None:
        """Make and bind it, or compare it with what exists; ``only_look`` asks whether it exists."""
        queue = await channel.declare_queue(
            self.name, durable=True, passive=only_look, arguments=None if only_look else dict(self.arguments)
        )
        if not only_look:
            await queue.bind(self.exchange, self.routing_key)


TOPOLOGY: Final[tuple[Exchange | Queue, ...]] = (
    Exchange(EXCHANGE, "topic"),
    Exchange(DEAD_EXCHANGE, "fanout"),
    Queue(REQUEST_QUEUE, EXCHANGE, REQUEST_ROUTING_KEY),
    Queue(DEAD_QUEUE, DEAD_EXCHANGE, ""),
)


async def declare(connection: AbstractConnection) -> None:
    """Make what is missing.

    Raises:
        TopologyDiffers: something exists with other arguments; names each of them.
        BrokerAway: the connection broke.
        BrokerRefused: this user may not.
    """
    differences = []
    for thing in TOPOLOGY:
        async with translated():
            # The broker answers a difference by closing the channel: a fresh one for each thing names them all.
            try:
                async with connection.channel() as channel:
                    await thing.declare(channel, only_look=False)
            except ChannelPreconditionFailed as error:
                differences.append(difference(str(thing), str(error.args[0])))
            except ChannelAccessRefused:
                # A user who may not configure: it is enough that somebody else has made it.
                async with connection.channel() as channel:
                    await thing.declare(channel, only_look=True)
    if differences:
        raise TopologyDiffers("; ".join(differences))


def difference(thing: str, text: str) -> str:
    """RabbitMQ's 406 in words for an operator; its own text where it says something unforeseen."""
    found = _DIFFERENCE.search(text)
    if found is None:
        return f"{thing} differs: {text}"
    wanted, current = (found[part].strip().strip("'") for part in ("wanted", "found"))
    return f"{thing} has {found['argument']} = {current}, this worker needs {wanted}"


async def check(amqp_url: str) -> list[Finding]:
    """What an operator should know of the broker: reachable, allowed, each object as it should be. Changes nothing."""
    try:
        async with connected(amqp_url, "doctor") as connection:
            findings = [Finding("broker", ok=True, what="answers, and the credentials are accepted")]
            findings += [await _checked(connection.channel, thing) for thing in TOPOLOGY]
            return findings
    except BrokerAway as error:
        mend = "Start RabbitMQ, or correct host and port in WORKER_AMQP_URL."
        return [Finding("broker", ok=False, what=str(error), mend=mend)]
    except BrokerRefused as error:
        mend = "Correct user, password and virtual host in WORKER_AMQP_URL, or give that user permissions there."
        return [Finding("broker", ok=False, what=str(error), mend=mend)]


async def _checked(channel: Callable[[], AbstractChannel], thing: Exchange | Queue) -> Finding:
    name = str(thing)
    try:
        async with translated(), channel() as opened:
            await thing.declare(opened, only_look=True)
        async with translated(), channel() as opened:
            await thing.declare(opened, only_look=False)
    except BrokerRefused:
        return Finding(name, ok=True, what="there; this user may not compare its arguments")
    except BrokerAway as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            return Finding(name, ok=True, what="not there yet; a worker that may configure makes it when it starts")
        if isinstance(error.__cause__, ChannelPreconditionFailed):
            mend = f"Move its messages elsewhere, delete the {name} and start a worker, which makes it anew."
            return Finding(name, ok=False, what=difference(name, str(error.__cause__.args[0])), mend=mend)
        raise
    return Finding(name, ok=True, what="as it should be")


Declare = Callable[[AbstractConnection], Awaitable[None]]
