"""What may be removed, and that it was."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from worker.store.database import Database, queries

_Q: Final = queries("api_data")
_FORGET: Final = queries("api_webhooks")["forget_deliveries"]
_AT_ONCE: Final = 500


@dataclass(frozen=True)
class Purge:
    """A deleted model whose runs are over."""

    model_id: int
    organization_id: int
    runs: tuple[UUID, ...]


class TidyStore:
    """Rows stay locked while their bytes are removed, so that a crash repeats the removal and two never share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def forget(self) -> None:
        """Rows that are too old to matter."""
        await self._database.execute(_Q["forget_answers"])
        await self._database.execute(_FORGET)

    async def end_stale_uploads(self) -> None:
        """Files that nobody sends any more."""
        async with self._database.transaction() as connection:
            for row in await connection.fetch(_Q["stale_uploads"]):
                if row["parts"]:
                    await connection.execute(_Q["may_remove"], row["custom_model_id"], row["parts"])

    async def remove(self, delete: Callable[[Sequence[str]], Awaitable[None]]) -> bool:
        """Remove bytes without an owner; True: there may be more."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_Q["due_removals"], _AT_ONCE)
            await delete(sorted({row["address"] for row in rows if not row["used"]}))
            await connection.execute(_Q["removed"], [row["id"] for row in rows])
        return len(rows) == _AT_ONCE

    async def purge(self, delete: Callable[[Purge], Awaitable[None]]) -> bool:
        """Remove what a deleted model has stored; False: there was none."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_Q["to_purge"])
            if row is None:
                return False
            model = Purge(row["id"], row["organization_id"], tuple(row["runs"]))
            await connection.execute(_Q["forget_outputs_of_runs"], model.organization_id, list(model.runs))
            await delete(model)
            await connection.execute(_Q["purge_rows"], model.model_id)
            await connection.execute(_Q["purged"], model.model_id)
        return True
