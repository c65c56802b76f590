"""What may be removed, and that it was."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from worker.store.api_data import may_remove, parts_of
from worker.store.database import Connection, Database, Record, queries

_Q: Final = queries("api_data")
_WEBHOOKS: Final = queries("api_webhooks")
_LOCK_ORGANIZATION: Final = queries("api_models")["lock_organization"]
_AT_ONCE: Final = 500
_ROWS_AT_ONCE: Final = 1_000
"""Rows of data deleted in one transaction: the organization's counts are locked for so long."""
_CANDIDATES: Final = 10


@dataclass(frozen=True)
class Purge:
    """A deleted model whose runs are over."""

    model_id: int
    organization_id: int
    runs: tuple[UUID, ...]


@dataclass(frozen=True)
class RunRead:
    """A run that is over and may have read a removed file.

    Attributes:
        report_address: its page, where it has one.
        version_address: of the version that came of it, where one did.
        erased: nothing else that it stored is left but its log.
    """

    id: UUID
    report_address: str | None
    version_address: str | None
    erased: bool


@dataclass(frozen=True)
class Erasure:
    """Files that were removed from a model, and the runs that may have read them.

    Attributes:
        ids: of the rows that say so.
        names: of the files.
        until: when the last of them was removed.
    """

    model_id: int
    organization_id: int
    ids: tuple[int, ...]
    names: tuple[str, ...]
    until: datetime
    runs: tuple[RunRead, ...]


class TidyStore:
    """Rows stay until their bytes are removed, so that a crash repeats the removal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def forget(self) -> bool:
        """Rows that are too old to matter, some of each kind; True: there may be more."""
        removed = [
            await self._database.execute(_Q["forget_answers"], _ROWS_AT_ONCE),
            await self._database.execute(_WEBHOOKS["forget_deliveries"]),
            await self._database.execute(_WEBHOOKS["forget_webhooks"], _ROWS_AT_ONCE),
        ]
        models = await self._database.fetch_row(_Q["forget_models"], _ROWS_AT_ONCE)
        return max(*removed, 0 if models is None else models["n"]) >= _ROWS_AT_ONCE

    async def end_stale_uploads(self) -> None:
        """Files that nobody sends any more; in a transaction for each model, as `remove` says."""
        for ids in _of_models(await self._database.fetch(_Q["stale_uploads"], _AT_ONCE)):
            async with self._database.transaction() as connection:
                for row in await connection.fetch(_Q["end_stale_uploads"], ids):
                    await may_remove(connection, row["custom_model_id"], parts_of(row))

    async def remove(self, delete: Callable[[Sequence[str]], Awaitable[None]]) -> bool:
        """Remove bytes without an owner; True: there may be more.

        In a transaction for each model: it waits for the counts of the model's organization, which an upload may hold
        for seconds, and must not hold those of others meanwhile.
        """
        due = await self._database.fetch(_Q["due_removals"], _AT_ONCE)
        removed = 0
        for ids in _of_models(due):
            async with self._database.transaction() as connection:
                rows = await connection.fetch(_Q["hold_removals"], ids)
                await delete(sorted({row["address"] for row in rows if not row["used"]}))
                await connection.execute(_Q["removed"], [row["id"] for row in rows])
                removed += len(rows)
        return removed > 0 and len(due) == _AT_ONCE

    async def purge(self, delete: Callable[[Purge], Awaitable[None]], gone: bytes) -> bool:
        """Remove what a deleted model has stored, and the customer's words from its rows; False: there was none.

        A model is purged twice, the second time an hour later. Rows go in short transactions, after the bytes; whatever
        ends this half-way, it begins again.

        Args:
            delete: removes bytes.
            gone: what whoever repeats a request about the model is answered, a problem document.
        """
        async with self._database.transaction() as turn:
            model = await self._next_purge(turn)
            if model is None:
                return False
            async with self._database.transaction() as connection:
                await connection.execute(_Q["forget_outputs_of_runs"], model.organization_id, list(model.runs))
                await connection.execute(_Q["forget_checkpoints_of_runs"], list(model.runs))
            await delete(model)
            for part in ("purge_names", "purge_rows"):
                while await self._database.execute(_Q[part], model.model_id, _ROWS_AT_ONCE):
                    pass
            async with self._database.transaction() as connection:
                await connection.execute(_Q["purge_uploads"], model.model_id)
                await connection.execute(_Q["purge_removals"], model.model_id)
                await connection.execute(_Q["purge_erasures"], model.model_id)
                await connection.execute(_Q["clear_answers"], model.model_id, gone)
                await connection.execute(_Q["clear_deleted_model"], model.model_id)
                await connection.execute(_Q["purged"], model.model_id)
        return True

    async def _next_purge(self, turn: Connection) -> Purge | None:
        """The next model that no other process works on."""
        for row in await turn.fetch(_Q["to_purge"], _CANDIDATES):
            taken = await turn.fetchrow(_Q["take_purge"], row["id"])
            if taken is not None and taken["mine"]:
                return Purge(row["id"], row["organization_id"], tuple(row["runs"]))
        return None

    async def erase(self, delete: Callable[[Erasure], Awaitable[Sequence[UUID]]]) -> bool:
        """Remove what runs made of files that were removed one by one; False: there was nothing.

        The rows of datasets and states go first, under the organization's lock and while no run of the model is active:
        the next run finds a dataset by its content, and must not find one whose bytes are about to vanish.

        Args:
            delete: removes bytes; the runs whose report is gone.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_Q["to_erase"], _AT_ONCE)
            if row is None:
                return False
            await connection.execute(_LOCK_ORGANIZATION, row["organization_id"])
            read = await connection.fetch(_Q["runs_that_read"], row["model_id"], row["until"])
            if any(run["active"] for run in read):  # it began just now: another time
                return True
            runs = tuple(
                RunRead(run["id"], run["report_address"], run["version_address"], run["erased"]) for run in read
            )
            await connection.execute(_Q["forget_data_of_runs"], row["organization_id"], [run.id for run in runs])
            await connection.execute(_Q["forget_checkpoints_of_runs"], [run.id for run in runs])
        found = Erasure(
            row["model_id"], row["organization_id"], tuple(row["ids"]), tuple(row["names"]), row["until"], runs
        )
        without_report = await delete(found)
        async with self._database.transaction() as connection:
            await connection.execute(_Q["runs_erased"], [run.id for run in runs if not run.erased])
            for run_id in without_report:
                await connection.execute(_Q["forget_report"], run_id)
            await connection.execute(_Q["clear_removed_files"], found.model_id, list(found.names), found.until)
            await connection.execute(_Q["erased"], list(found.ids))
        return True


def _of_models(rows: Sequence[Record]) -> list[list[Any]]:
    """Ids of rows, together for each model."""
    found: dict[int, list[Any]] = {}
    for row in rows:
        found.setdefault(row["custom_model_id"], []).append(row["id"])
    return list(found.values())
