"""Workers: who works, who was asked to drain."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from worker.store.database import Database, Record, queries

_Q: Final = queries("workers")


class WorkerStore:
    """Every statement on workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign_on(self, worker_id: str, host: str, pid: int, version: str, slots: int) -> None:
        """A worker process begins."""
        await self._database.execute(_Q["sign_on"], worker_id, host, pid, version, slots)

    async def sign_of_life(self, worker_id: str) -> bool:
        """The worker is here; True when an operator asked it to drain."""
        row = await self._database.fetch_row(_Q["sign_of_life"], worker_id)
        return row is not None and bool(row["drain"])

    async def sign_off(self, worker_id: str) -> None:
        """The worker ended in order."""
        await self._database.execute(_Q["sign_off"], worker_id)

    async def request_drain(self, worker_id: str) -> bool:
        """Ask one worker to end; False: no such worker, or it has ended."""
        return await self._database.fetch_row(_Q["request_drain"], worker_id) is not None

    async def list(self, *, everybody: bool = False) -> Sequence[Record]:
        """Who works, the newest first."""
        return await self._database.fetch(_Q["list_workers"], everybody)

    async def look(self, worker_id: str) -> datetime | None:
        """Is the database there, and does it take what owners write? Its clock; None: it does not know this worker.

        Raises:
            DatabaseAway: no.
        """
        row = await self._database.fetch_row(_Q["look"], worker_id)
        return None if row is None else row["now"]
