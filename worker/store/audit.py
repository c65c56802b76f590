"""The audit trail: who did what, from where. Entries are added, never changed; the oldest end after a time.

A write's entry is in the transaction of the write. Time and database login of an entry are set by the database.
"""

from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from worker.store.database import Connection, Database, Record, queries

if TYPE_CHECKING:
    from worker.store.api_keys import Key

_Q: Final = queries("audit")
_AT_ONCE: Final = 10_000
"""Entries that one batch of the retention removes at most; the database's own limit."""
_PAGE: Final = 1_000


@dataclass
class Origin:
    """Where something comes from. Never changed; not frozen, since each poll makes one and freezing costs time.

    Attributes:
        address: the client's, of a request.
        request_id: of the request or of the command.
        os_user: who typed a command; with sudo the person and the user that the command ran as.
        host: the machine it was typed on.
        command: its words, without secrets.
    """

    address: str | None = None
    request_id: str | None = None
    os_user: str | None = None
    host: str | None = None
    command: dict[str, Any] | None = None


UNKNOWN: Final = Origin()
ORIGIN: ContextVar[Origin] = ContextVar("origin", default=UNKNOWN)
"""Of the request or command that is being worked on: set once at its begin, read by every entry it makes."""


@dataclass(frozen=True)
class Subject:
    """What an entry is about."""

    organization_id: int | None = None
    model_id: int | None = None
    run_id: UUID | None = None


@dataclass(frozen=True)
class Summary:
    """Several alike in one entry: refusals of a key, or repeated reads of the same thing."""

    key_id: int | None
    subject: Subject
    action: str
    detail: dict[str, Any]
    address: str | None
    request_id: str | None


@dataclass(frozen=True)
class Wanted:
    """Which entries; None: any.

    Attributes:
        since: not before this.
        until: before this.
    """

    since: datetime | None = None
    until: datetime | None = None
    organization_id: int | None = None
    action: str | None = None
    key_id: int | None = None


async def audit(  # noqa: PLR0913 - a row has that many columns
    connection: Connection,
    key: "Key | None",
    organization_id: int | None,
    action: str,
    *,
    model_id: int | None = None,
    run_id: UUID | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Write down who did what, in the transaction that did it. No key: a command."""
    origin = ORIGIN.get()
    await connection.execute(
        _Q["audit"],
        None if key is None else key.id,
        organization_id,
        action,
        model_id,
        run_id,
        detail or {},
        origin.address,
        origin.request_id,
        origin.os_user,
        origin.host,
        origin.command,
    )


class AuditStore:
    """Entries that stand for themselves, and what is read of the trail."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: "Key | None", subject: Subject, action: str, detail: dict[str, Any] | None = None) -> None:
        """One entry, from the current origin.

        Raises:
            DatabaseAway: it is not written.
            DatabaseRefused: likewise; this login may not, or a migration is missing.
        """
        async with self._database.connection() as connection:
            await audit(
                connection,
                key,
                subject.organization_id,
                action,
                model_id=subject.model_id,
                run_id=subject.run_id,
                detail=detail,
            )

    async def add_summaries(self, summaries: Sequence[Summary]) -> None:
        """Several entries in one statement.

        Raises:
            DatabaseAway: none is written.
        """
        columns: list[list[Any]] = [
            [one.key_id for one in summaries],
            [one.subject.organization_id for one in summaries],
            [one.action for one in summaries],
            [one.subject.model_id for one in summaries],
            [one.subject.run_id for one in summaries],
            [one.detail for one in summaries],
            [one.address for one in summaries],
            [one.request_id for one in summaries],
        ]
        await self._database.execute(_Q["audit_summaries"], *columns)

    async def page(self, organization_id: int, before: int, limit: int) -> Sequence[Record]:
        """Entries of an organization before an id, the newest first."""
        return await self._database.fetch(_Q["audit_page"], organization_id, before, limit)

    async def newest(self, wanted: Wanted, most: int) -> Sequence[Record]:
        """The newest entries of all organizations, the newest first."""
        return await self._database.fetch(
            _Q["newest_audit_entries"],
            most,
            wanted.since,
            wanted.until,
            wanted.organization_id,
            wanted.action,
            wanted.key_id,
        )

    async def entries(self, wanted: Wanted) -> AsyncIterator[Record]:
        """Every entry, the oldest first, a page at a time."""
        after = 0
        while True:
            rows = await self._database.fetch(
                _Q["audit_entries"],
                after,
                _PAGE,
                wanted.since,
                wanted.until,
                wanted.organization_id,
                wanted.action,
                wanted.key_id,
            )
            for row in rows:
                yield row
            if len(rows) < _PAGE:
                return
            after = rows[-1]["id"]

    async def forget(self, days: int) -> int:
        """Remove entries older than so many days (at least 30), in batches; how many."""
        removed = 0
        while True:
            row = await self._database.fetch_row(_Q["forget_audit_entries"], days, _AT_ONCE)
            assert row is not None
            batch = int(row["n"])
            removed += batch
            if batch < _AT_ONCE:
                return removed

    async def subject(
        self,
        *,
        organization_id: int | None = None,
        model: str | None = None,
        run_id: UUID | None = None,
        key_id: int | None = None,
    ) -> Subject:
        """What an operator's words name; whatever is unknown is left out."""
        row = None
        if model is not None:
            row = await self._database.fetch_row(_Q["subject_of_model"], model)
        if run_id is not None:
            row = await self._database.fetch_row(_Q["subject_of_run"], run_id) or row
        if key_id is not None:
            row = await self._database.fetch_row(_Q["subject_of_key"], key_id) or row
        if row is None:
            return Subject(organization_id)
        return Subject(row["organization_id"], row.get("model_id"), row.get("run_id"))
