"""Taskiq with its aio-pika broker."""

import os

from taskiq import TaskiqEvents
from taskiq_aio_pika import AioPikaBroker

from peers.ledger import SLOTS, AsyncLedger

broker = AioPikaBroker(os.environ["BENCH_AMQP_URL"], qos=2 * SLOTS)
ledger = AsyncLedger()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def _open(_: object) -> None:
    await ledger.open()


@broker.task(task_name="train")
async def train(run_id: str, requested_at: str) -> None:
    await ledger.train(run_id, requested_at)


async def sender():
    await broker.startup()
    yield train.kiq
