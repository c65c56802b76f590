"""What is still to be told to the broker: rows locked while they are sent, gone once they are confirmed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from schemas.status import TrainingStatus
from worker.store.database import Connection, Database, Record, queries

_Q: Final = queries("outbox")


@dataclass(frozen=True, slots=True)
class Unsent:
    """One thing to tell, with all that its message needs."""

    outbox_id: int
    kind: Literal["event", "request"]
    event_id: UUID
    run_id: UUID
    sequence: int
    attempt: int
    from_status: TrainingStatus | None
    to_status: TrainingStatus
    at: datetime
    reason_code: str | None
    custom_model_id: int
    organization_id: int
    requested_at: datetime
    traceparent: str | None


class UnsentBatch:
    """Everything that some runs have to tell; no other relay can have these runs meanwhile."""

    def __init__(self, connection: Connection, rows: list[Unsent]) -> None:
        self._connection = connection
        self.rows = rows
        """Run by run, each run's in order."""

    async def mark_sent(self, outbox_ids: Sequence[int]) -> None:
        """The broker has confirmed these.

        Raises:
            DatabaseAway: they will be sent once more.
        """
        await self._connection.execute(_Q["mark_sent"], outbox_ids)


class OutboxStore:
    """Every statement on the outbox.

    Args:
        database: the pool.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def unsent(self, runs: int, not_these: Sequence[UUID] = ()) -> AsyncIterator[UnsentBatch]:
        """Up to ``runs`` runs with something to tell, oldest first, locked until the block ends.

        Args:
            runs: how many at most.
            not_these: runs that are held back.

        Raises:
            DatabaseAway: nothing is lost.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_Q["lock_unsent"], runs, list(not_these))
            yield UnsentBatch(connection, [_unsent(row) for row in rows])

    async def backlog(self) -> tuple[int, float]:
        """How many rows are untold, and the age of the oldest in seconds."""
        row = await self._database.fetch_row(_Q["outbox_backlog"])
        assert row is not None
        return row["rows"], row["oldest_s"]


def _unsent(row: Record) -> Unsent:
    # Positional, in the query's own order: this runs three times a run.
    outbox_id, kind, event_id, run_id, sequence, attempt, from_status, to_status, *others = row
    return Unsent(
        outbox_id, kind, event_id, run_id, sequence, attempt,
        None if from_status is None else TrainingStatus(from_status), TrainingStatus(to_status),
        *others,
    )  # fmt: skip
