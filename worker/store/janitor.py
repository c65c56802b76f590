"""What runs have left behind, and that it is gone. Rows stay locked while their bytes are removed."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from worker.store.database import Database, queries

_Q: Final = queries("janitor")

Delete = Callable[[Sequence[str]], Awaitable[None]]
"""Removes everything below these storage prefixes."""
Sweep = Callable[[UUID, frozenset[str]], Awaitable[None]]
"""Removes everything that a run has stored but its logs and what is, or lies below, one of these addresses."""


class JanitorStore:
    """A crash between bytes and rows repeats the removal; two janitors never share a row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove_outputs(self, delete: Delete, *, over_s: float, unused_s: float, most: int) -> int:
        """Remove outputs of steps that nobody will ask for again.

        Args:
            delete: removes bytes.
            over_s: how long a run has to be over; late writes of a paused worker have come by then.
            unused_s: how long an output that any run of the organization may use is kept unused.
            most: outputs at once.

        Returns:
            How many there were.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_Q["spent_outputs"], over_s, unused_s, most)
            if rows:
                await delete(sorted(row["address"] for row in rows if not row["needed"]))
                keys = [row["content_key"] for row in rows]
                await connection.execute(_Q["forget_outputs"], [row["organization_id"] for row in rows], keys)
        return len(rows)

    async def remove_checkpoints(self, delete: Delete, *, over_s: float, most: int) -> int:
        """Remove checkpoints of runs that have been over for `over_s`; how many there were."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_Q["spent_checkpoints"], over_s, most)
            if rows:
                await delete(sorted({row["address"] for row in rows}))
                columns = ([row[name] for row in rows] for name in ("run_id", "attempt", "steps_done"))
                await connection.execute(_Q["forget_spent_checkpoints"], *columns)
        return len(rows)

    async def sweep_runs(self, sweep: Sweep, *, over_s: float, most: int) -> int:
        """Look once through what each run that has been over for `over_s` stored.

        Args:
            sweep: removes bytes that nothing names: stored, and their writer killed before it could say so.
            over_s: how long a run has to be over; late writes of a paused worker have come by then.
            most: runs at once.

        Returns:
            How many runs there were.
        """
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_Q["unswept_runs"], over_s, most)
            for row in rows:
                await sweep(row["id"], frozenset(row["named"]))
            await connection.execute(_Q["mark_swept"], [row["id"] for row in rows])
        return len(rows)

    async def deleted_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of these storage keys whose training data, model or step output is deleted; others' keys stay."""
        return {row["key"] for row in await self._database.fetch(_Q["deleted_keys"], keys)}

    async def attempts_under_way(self, runs: Sequence[UUID]) -> dict[UUID, int | None]:
        """The running attempt of each of these runs, None for one that does not run; unknown runs are left out."""
        rows = await self._database.fetch(_Q["attempts_under_way"], runs)
        return {row["id"]: row["attempt"] for row in rows}
