"""Models and runs as the API reads and changes them.

Writes take the caller's transaction, so that they commit with their audit entry and their kept answer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import UUID, uuid4

from schemas.status import TrainingStatus
from worker.errors import DatabaseRefused
from worker.store.batch import Batch
from worker.store.database import Connection, Database, Record, connections_for_everybody, queries

_MODELS: Final = queries("api_models")
_LISTS: Final = queries("api_lists")
_RUNS: Final = queries("api_runs")
_MOVES: Final = queries("runs")

ACTIVE: Final = (TrainingStatus.READY_TO_RUN, TrainingStatus.RUNNING)
SORTS: Final = ("id", "name", "key", "last_modified", "base_language_key", "training_status")
Direction = Literal["asc", "desc"]
FEW: Final = 500
"""Matches up to which a search is sorted whole; above, the sort's own index is walked until the page is full."""
_FOUND_KEPT: Final = 1_000
_POLLS_TOGETHER: Final = 200


@dataclass(frozen=True)
class Counts:
    """An organization's exact counts; the revision changes with anything a list could show."""

    models: int = 0
    stored_bytes: int = 0
    stored_ms: int = 0
    revision: int = 0
    stored_files: int = 0
    manifest_names: int = 0
    uploads: int = 0
    """Unfinished ones."""
    upload_bytes: int = 0
    """That they announced."""
    arriving_bytes: int = 0
    """That requests are storing."""
    leaving_bytes: int = 0
    """That were deleted and still lie in storage."""
    changes: int = 0
    """Requests of this day that made something."""


@dataclass(frozen=True)
class Limits:
    """An organization's own limits; None: the default counts."""

    models: int | None = None
    hours: float | None = None
    """Of stored audio."""
    waiting: int | None = None
    """Runs."""
    bytes: int | None = None
    files: int | None = None
    uploads: int | None = None
    manifest_names: int | None = None
    changes: int | None = None
    """A day."""


@dataclass(frozen=True)
class Quota:
    """An organization's own limits, and its waiting runs."""

    waiting: int
    limits: Limits


@dataclass(frozen=True)
class Found:
    """A page of models, how many match in all, and the revision of the organization it shows."""

    total: int
    revision: int
    rows: Sequence[Record]


@dataclass(frozen=True)
class Page:
    """Which rows of a list."""

    offset: int
    limit: int
    sort: str
    direction: Direction
    search: str | None


class ApiStore:
    """What the API reads of models and runs."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._polls: Batch[tuple[int, int | None], Record | None] = Batch(
            self._polled, key=lambda _: object(), most=_POLLS_TOGETHER, lanes=2
        )
        # (organization, folded text) to (revision, total, ids where few): exact while the revision stands.
        self._found: OrderedDict[tuple[int, str], tuple[int, int, list[int] | None]] = OrderedDict()

    async def model(self, model_id: int, organization_id: int | None) -> Record | None:
        """A model for whoever may see it. Polls that arrive together share a statement."""
        return await self._polls((model_id, organization_id))

    async def _polled(self, wanted: list[tuple[int, int | None]]) -> list[Record | None]:
        with connections_for_everybody():
            rows = await self.database.fetch(
                _MODELS["polled"], [model_id for model_id, _ in wanted], [organization for _, organization in wanted]
            )
        answers: list[Record | None] = [None] * len(wanted)
        for row in rows:
            answers[row["n"] - 1] = row
        return answers

    async def watched(self, model_ids: Sequence[int]) -> dict[int, tuple[object, ...]]:
        """What a watcher compares, by model."""
        return {row["id"]: tuple(row) for row in await self.database.fetch(_MODELS["watched"], model_ids)}

    async def counts(self, organization_id: int) -> Counts:
        """An organization's counts; zeroes before its first model."""
        row = await self.database.fetch_row(_MODELS["counts_of"], organization_id)
        return Counts() if row is None else Counts(*row)

    async def quota(self, organization_id: int) -> Quota:
        """An organization's limits.

        Raises:
            DatabaseRefused: there is no such organization.
        """
        async with self.database.connection() as connection:
            return await quota(connection, organization_id)

    async def page(self, organization_id: int, page: Page) -> Found:
        """A page of an organization's models."""
        kind = f"by_{page.sort}_{page.direction}"
        if page.search is None:
            rows = await self.database.fetch(_LISTS[kind], organization_id, page.offset, page.limit)
            if not rows:  # the organization never had a model
                return Found(0, 0, [])
            return Found(rows[0]["total"], rows[0]["revision"], [row for row in rows if row["id"] is not None])
        # Read before the search: a change meanwhile gives the answer an older tag, so the next poll asks again.
        revision = (await self.counts(organization_id)).revision
        text = await self._like(page.search)
        total, ids = await self._find(organization_id, revision, text)
        if ids is None:
            rows = await self.database.fetch(_LISTS["found_" + kind], organization_id, page.offset, page.limit, text)
        elif ids:
            rows = await self.database.fetch(_LISTS[f"these_{page.direction}"], ids, page.offset, page.limit, page.sort)
        else:
            rows = []
        return Found(total, revision, rows)

    async def page_of_all(self, page: Page) -> tuple[int, Sequence[Record]]:
        """A page of every organization's models, for an operator."""
        text = "%" if page.search is None else await self._like(page.search)
        total = await self.database.fetch_row(_LISTS["everybody_total"], text)
        assert total is not None
        rows = await self.database.fetch(
            _LISTS[f"everybody_{page.direction}"], page.offset, page.limit, page.sort, text
        )
        return int(total["total"]), rows

    async def _like(self, search: str) -> str:
        """The pattern of a literal text, folded as the stored one is."""
        row = await self.database.fetch_row(_LISTS["folded"], search)
        assert row is not None
        folded = str(row["folded"])
        for character in ("\\", "%", "_"):
            folded = folded.replace(character, "\\" + character)
        return f"%{folded}%"

    async def _find(self, organization_id: int, revision: int, text: str) -> tuple[int, list[int] | None]:
        kept = self._found.get((organization_id, text))
        if kept is not None and kept[0] == revision:
            return kept[1], kept[2]
        row = await self.database.fetch_row(_LISTS["find"], organization_id, text, FEW)
        assert row is not None
        total, ids = int(row["total"]), row["ids"] if row["total"] else []
        self._found[organization_id, text] = (revision, total, ids)
        if len(self._found) > _FOUND_KEPT:
            self._found.popitem(last=False)
        return total, ids

    async def base_languages(self) -> Sequence[Record]:
        """What models may start from."""
        return await self.database.fetch(_MODELS["base_languages"])

    async def runs(self, model_id: int, offset: int, limit: int) -> tuple[int, Sequence[Record]]:
        """A page of a model's runs, the newest first, and how many there are."""
        total = await self.database.fetch_row(_RUNS["count_runs"], model_id)
        assert total is not None
        return int(total["n"]), await self.database.fetch(_RUNS["runs_page"], model_id, offset, limit)

    async def run(self, model_id: int, run_id: UUID, organization_id: int | None) -> Record | None:
        """One run of a model, whole, for whoever may see the model."""
        return await self.database.fetch_row(_RUNS["run_whole"], model_id, run_id, organization_id)

    async def transitions(self, run_id: UUID) -> Sequence[Record]:
        """A run's history, in order."""
        return await self.database.fetch(_MOVES["transitions_of_run"], run_id)

    async def versions(self, model_id: int, offset: int, limit: int) -> tuple[int, Sequence[Record]]:
        """A page of what a model has published, the newest first, and how many there are."""
        total = await self.database.fetch_row(_MODELS["count_versions"], model_id)
        assert total is not None
        return int(total["n"]), await self.database.fetch(_MODELS["versions"], model_id, offset, limit)


async def quota(connection: Connection, organization_id: int) -> Quota:
    """An organization's limits.

    Raises:
        DatabaseRefused: there is no such organization.
    """
    row = await connection.fetchrow(_MODELS["quota_of"], organization_id)
    if row is None:
        raise DatabaseRefused(f"no organization {organization_id}")
    return Quota(row["waiting"], Limits(*row[1:]))


async def counts_now(connection: Connection, organization_id: int) -> Counts:
    """An organization's counts as this transaction sees them."""
    row = await connection.fetchrow(_MODELS["counts_of"], organization_id)
    return Counts() if row is None else Counts(*row)


async def held_counts(connection: Connection, organization_id: int) -> Counts:
    """An organization's counts, locked until the transaction ends; it locks no model after this."""
    row = await connection.fetchrow(_MODELS["hold_counts"], organization_id)
    return Counts() if row is None else Counts(*row)


async def count_changes(connection: Connection, organization_id: int, number: int) -> int:
    """So many more things that an organization made; how many it has made today."""
    row = await connection.fetchrow(_MODELS["count_changes"], organization_id, number)
    assert row is not None
    return int(row["changes"])


async def known_parts(connection: Connection, organization_id: int, base_id: int) -> tuple[bool, bool]:
    """Whether the organization and the base language of a wanted model exist."""
    row = await connection.fetchrow(_MODELS["known_parts"], organization_id, base_id)
    assert row is not None
    return row["organization"], row["base"]


async def create_model(
    connection: Connection, key: str, name: str, organization_id: int, base_id: int
) -> Record | None:
    """A new model; None where its organization or base language does not exist."""
    return await connection.fetchrow(_MODELS["create_model"], key, name, organization_id, base_id)


async def lock_model(connection: Connection, model_id: int, organization_id: int | None) -> Record | None:
    """A model for whoever may see it, held until the transaction ends."""
    return await connection.fetchrow(_MODELS["lock_model"], model_id, organization_id)


async def read_model(connection: Connection, model_id: int, organization_id: int | None) -> Record | None:
    """A model for whoever may see it, as this transaction sees it."""
    return await connection.fetchrow(_MODELS["polled"], [model_id], [organization_id])


async def update_model(connection: Connection, model_id: int, name: str, base_id: int) -> Record | None:
    """Change a model's metadata; None where it was deleted meanwhile."""
    return await connection.fetchrow(_MODELS["update_model"], model_id, name, base_id)


async def hold_organization(connection: Connection, organization_id: int) -> None:
    """First lock of whoever moves a run."""
    await connection.execute(_MODELS["lock_organization"], organization_id)


async def active_run(connection: Connection, model_id: int) -> Record | None:
    """The run that a model is busy with: id, status, attempt, fixed, started_at."""
    return await connection.fetchrow(_RUNS["active_run"], model_id)


async def delete_model(connection: Connection, model_id: int) -> bool:
    """Hide a model for good."""
    return await connection.fetchrow(_MODELS["delete_model"], model_id) is not None


async def stop_run(connection: Connection, run_id: UUID) -> bool:
    """Ask a run to stop; a queued one is over with it. False: it was over already. The organization is held."""
    asked = await connection.fetchrow(_MOVES["request_cancel"], run_id)
    if asked is None or not asked["asked"]:
        return False
    if asked["status"] == TrainingStatus.READY_TO_RUN:
        await connection.fetch(_RUNS["cancel_waiting_run"], asked["id"], asked["attempt"], uuid4())
    return True


async def start_run(connection: Connection, model: Record, traceparent: str | None, wait_limit_s: float) -> UUID | None:
    """Queue a run of a held model: row, transition, and outbox rows that ring the broker and tell the event."""
    run_id = uuid4()
    rows = await connection.fetch(
        _MOVES["register_runs"],
        [run_id],
        [model["id"]],
        [model["organization_id"]],
        [datetime.now(UTC)],
        [uuid4()],
        [traceparent],
        [{}],
        [0],
        wait_limit_s,
        ["request", "event"],
    )
    return run_id if rows else None


async def serve_version(connection: Connection, model_id: int, number: int) -> bool:
    """Put a published version (back) into use; False: there is none of that number."""
    return await connection.fetchrow(queries("models")["serve_version"], model_id, number) is not None


async def run_now(connection: Connection, model_id: int, run_id: UUID) -> tuple[Record, Sequence[Record]] | None:
    """A run and its history as this transaction sees them; None where the model was deleted meanwhile."""
    row = await connection.fetchrow(_RUNS["run_whole"], model_id, run_id, None)
    return None if row is None else (row, await connection.fetch(_MOVES["transitions_of_run"], run_id))


async def set_quota(connection: Connection, organization_id: int, limits: Limits) -> None:
    """Give an organization limits of its own.

    Raises:
        DatabaseRefused: there is no such organization.
    """
    await connection.execute(_MODELS["set_quota"], organization_id, *astuple(limits))
