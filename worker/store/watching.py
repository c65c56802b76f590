"""Counts over everybody's runs, for whoever watches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.store.database import Database, queries

_Q: Final = queries("watching")


@dataclass(frozen=True)
class Backlog:
    """What waits and runs in the database, all workers."""

    waiting: Mapping[str, tuple[int, float]]
    """By cause (slot, organization_cap, base_language_cap, back_off): runs, and seconds the oldest has been due."""
    organizations_waiting: int
    longest_queue: int
    """Waiting runs of the organization that has most of them."""
    running: int
    expired_leases: int
    workers: int
    slots: int


class WatchStore:
    """Every statement that only counts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def backlog(self, alive_s: float) -> Backlog:
        """Count.

        Args:
            alive_s: a worker silent for longer counts as gone.

        Raises:
            DatabaseAway: nobody knows.
        """
        row = await self._database.fetch_row(_Q["backlog"], alive_s)
        assert row is not None
        waiting = {cause: (int(runs), float(oldest_s)) for cause, (runs, oldest_s) in row["waiting"].items()}
        counted = {name: int(row[name]) for name in Backlog.__dataclass_fields__ if name != "waiting"}
        return Backlog(waiting=waiting, **counted)
