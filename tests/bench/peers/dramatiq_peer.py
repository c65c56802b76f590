"""Dramatiq with RabbitMQ and confirmed publishing."""

import os
import threading

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from peers.ledger import Ledger

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_AMQP_URL"], confirm_delivery=True))
_lock = threading.Lock()
_ledgers: list[Ledger] = []


@dramatiq.actor
def train(run_id: str, requested_at: str) -> None:
    with _lock:
        if not _ledgers:
            _ledgers.append(Ledger())
    _ledgers[0].train(run_id, requested_at)


def sender():
    return train.send
