"""Runs in every state, for tests of the store: a clock that the test holds, and shortcuts through the story."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from schemas.status import Gate
from worker.domain.outcome import Outcome, Succeeded, Version
from worker.domain.run import Claim, Request
from worker.store.database import Connection, Database
from worker.store.models import ModelStore
from worker.store.runs import Limits, RunStore, Settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.domain.run import ClaimedRun

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


class HeldClock:
    """The database's clock, in the test's hand."""

    def __init__(self) -> None:
        self.now = BEGIN

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class ClockedDatabase(Database):
    """A database whose ``db_now()`` is the test's clock."""

    def __init__(self, dsn: str, clock: HeldClock, **options: Any) -> None:
        super().__init__(dsn, **options)
        self._held_clock = clock

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with super().connection() as connection:
            moment = self._held_clock.now.isoformat()
            await connection.execute("select set_config('training.fake_now', $1, false)", moment)
            yield connection


@dataclass
class Stage:
    """A migrated database with one base language; organizations, models and runs as the test asks for them."""

    url: str
    clock: HeldClock
    database: Database
    runs: RunStore
    models: ModelStore
    base: int
    limits: Limits
    _made: int = 0
    organizations: dict[str, int] = field(default_factory=dict)

    def store(self, database: Database) -> RunStore:
        return RunStore(database, self.limits, lambda: 0.5)

    async def organization(self, name: str = "clinic", cap: int = 1000) -> int:
        if name not in self.organizations:
            self.organizations[name] = await self.models.create_organization(None, name, cap)
        return self.organizations[name]

    async def model(self, organization: int, base: int | None = None) -> int:
        self._made += 1
        row = await self.database.fetch_row(
            "insert into custom_models (key, name, organization_id, base_language_id) values ($1, $1, $2, $3) returning id",
            f"m{self._made}",
            organization,
            base or self.base,
        )
        return row["id"]

    async def queued(self, organization: int | None = None, base: int | None = None, **changes: Any) -> uuid.UUID:
        """A run in the queue, of a new model."""
        owner = organization if organization is not None else await self.organization()
        request = Request(uuid.uuid4(), await self.model(owner, base), owner, self.clock.now, **changes)
        assert await self.runs.register([request]) == [True]
        return request.run_id

    async def claim(self, worker: str, slots: int, lease_s: float = 60.0) -> list[ClaimedRun]:
        return await self.runs.claim(Claim.of(worker, lease_s, slots))

    async def running(self, worker: str = "w1", lease_s: float = 60.0) -> ClaimedRun:
        run_id = await self.queued()
        claimed = await self.claim(worker, 1, lease_s)
        assert [run.id for run in claimed] == [run_id]
        return claimed[0]

    async def settled(self, run: ClaimedRun, outcome: Outcome) -> Settled | None:
        move = self.runs.moves.after(run, outcome)
        assert move is not None
        return await self.runs.settle(move)

    async def row(self, run_id: uuid.UUID) -> Any:
        row = await self.runs.by_id(run_id)
        assert row is not None
        return row

    async def history(self, run_id: uuid.UUID) -> list[tuple[int | None, int]]:
        return [(row["from_status"], row["to_status"]) for row in await self.runs.transitions(run_id)]

    async def books_agree(self) -> None:
        """The counters on organizations, bases and models say what the runs say."""
        wrong = await self.database.fetch(
            """
            select 'organization' as what, o.id from organizations o where o.waiting || ' ' || o.running <>
                (select count(*) filter (where status = 2) || ' ' || count(*) filter (where status = 3)
                    from training_runs r where r.organization_id = o.id)
            union all
            select 'base', b.id from base_languages b where b.running <>
                (select count(*) from training_runs r where r.base_language_id = b.id and r.status = 3)
            union all
            select 'model', m.id from custom_models m where m.training_status is distinct from
                (select r.status from run_transitions t join training_runs r on r.id = t.run_id
                    where r.custom_model_id = m.id order by t.at desc, t.from_status is null limit 1)
                and (select count(*) from training_runs r where r.custom_model_id = m.id) < 2
            union all
            select 'order', coalesce(m.id, o.custom_model_id)
                from (select id, last_modified, training_status from custom_models where deleted_at is null) m
                full join model_order o on o.custom_model_id = m.id
                where m.id is null or o.custom_model_id is null
                    or (o.last_modified, o.training_status) is distinct from (m.last_modified, m.training_status)
            union all
            select 'history', r.custom_model_id from training_runs r where r.status is distinct from
                (select to_status from run_transitions t where t.run_id = r.id order by sequence desc limit 1)
            union all
            select 'sequence', r.custom_model_id from training_runs r where r.sequence is distinct from
                (select count(*) from run_transitions t where t.run_id = r.id)
            """
        )
        assert not wrong, [dict(row) for row in wrong]


def success(address: str = "runs/x/1/export") -> Succeeded:
    return Succeeded({"wer_custom": 0.1}, Gate.PUBLISHED, Version(address, "0" * 64))


@asynccontextmanager
async def stage_at(url: str, *, limits: Limits | None = None, connections: int = 12) -> AsyncIterator[Stage]:
    clock = HeldClock()
    database = ClockedDatabase(url, clock, size=connections, answer_s=10)
    models = ModelStore(database)
    known = limits or Limits()
    runs = RunStore(database, known, lambda: 0.5)
    base = await models.create_base_language("en", "English", "/base")
    try:
        yield Stage(url, clock, database, runs, models, base, known)
    finally:
        await asyncio.shield(database.close())
