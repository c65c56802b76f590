"""FastStream on RabbitMQ: the message is acknowledged when the handler has returned."""

import os

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from peers.ledger import SLOTS, AsyncLedger

broker = RabbitBroker(os.environ["BENCH_AMQP_URL"], log_level=10)
app = FastStream(broker)
queue = RabbitQueue("train", durable=True)
ledger = AsyncLedger()


@app.on_startup
async def _open() -> None:
    await ledger.open()


@broker.subscriber(queue, channel=Channel(prefetch_count=SLOTS))
async def train(run_id: str, requested_at: str) -> None:
    await ledger.train(run_id, requested_at)


async def sender():
    await broker.connect()
    await broker.declare_queue(queue)

    async def send(run_id: str, requested_at: str) -> None:
        await broker.publish({"run_id": run_id, "requested_at": requested_at}, queue, persist=True)

    yield send
    await broker.stop()
