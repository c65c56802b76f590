"""Stores for the length of one command."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import SystemRandom

from worker.domain.moves import Limits
from worker.settings import Settings
from worker.store.data import DataStore
from worker.store.database import Database
from worker.store.models import ModelStore
from worker.store.runs import RunStore
from worker.store.workers import WorkerStore


@dataclass(frozen=True)
class Stores:
    """Everything a command may ask."""

    database: Database
    runs: RunStore
    models: ModelStore
    data: DataStore
    workers: WorkerStore


@asynccontextmanager
async def stores(settings: Settings) -> AsyncIterator[Stores]:
    """Connected stores, closed in any case.

    Raises:
        DatabaseAway: nobody answers.
    """
    database = Database(settings.database_url.get_secret_value(), size=4, name="training-cli")
    await database.open()
    limits = Limits(
        failures=settings.failure_limit,
        hand_overs=settings.hand_over_limit,
        wait_s=settings.wait_limit_s,
        run_s=settings.run_limit_s,
        lost_workers=settings.lost_worker_limit,
    )
    try:
        yield Stores(
            database,
            RunStore(database, limits, SystemRandom().random),
            ModelStore(database),
            DataStore(database),
            WorkerStore(database),
        )
    finally:
        await database.close()
