"""Celery, as its documentation advises for tasks that must not be lost: acks_late, confirmed publishing, no results."""

import os

from celery import Celery
from celery.signals import worker_process_init

from peers.ledger import Ledger

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=16,  # many short tasks: "a large value"
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
_ledgers: list[Ledger] = []


@worker_process_init.connect
def _open(**_: object) -> None:
    _ledgers.clear()


@app.task(name="train")
def train(run_id: str, requested_at: str) -> None:
    if not _ledgers:
        _ledgers.append(Ledger())
    _ledgers[0].train(run_id, requested_at)


def sender():
    return train.delay
