"""What every peer writes: the same three durable transitions with history, each in a transaction of its own.

One statement a transition, autocommit, prepared: the cheapest way to do it honestly. `fsync` and
`synchronous_commit` are the server's, the same as for ours.
"""

from __future__ import annotations

import os
from datetime import datetime
from uuid import UUID

DATABASE_URL = os.environ["BENCH_DATABASE_URL"]
SLOTS = int(os.environ["BENCH_SLOTS"])

SCHEMA = """
create table runs (
    id uuid primary key,
    status smallint not null,
    sequence integer not null,
    requested_at timestamptz not null
);
create table transitions (
    run_id uuid not null references runs,
    sequence integer not null,
    from_status smallint,
    to_status smallint not null,
    at timestamptz not null default now(),
    primary key (run_id, sequence)
);
"""
QUEUED = """
with made as (insert into runs (id, status, sequence, requested_at) values ({0}, 2, 1, {1}) returning id)
insert into transitions (run_id, sequence, to_status) select id, 1, 2 from made
"""
MOVED = """
with moved as (update runs set status = {1}, sequence = sequence + 1 where id = {0} and status = {2}
    returning id, sequence)
insert into transitions (run_id, sequence, from_status, to_status) select id, sequence, {2}, {1} from moved
"""
READY, RUNNING, SUCCESS = 2, 3, 4


def placeholders(statement: str, names: list[str]) -> str:
    return statement.format(*names)


class Ledger:
    """The three transitions for tasks that are plain functions in threads."""

    def __init__(self) -> None:
        from psycopg_pool import ConnectionPool  # noqa: PLC0415 - the asyncio peers do not need it

        self._pool = ConnectionPool(
            DATABASE_URL, min_size=1, max_size=SLOTS, kwargs={"autocommit": True, "prepare_threshold": 1}
        )
        self._queued = placeholders(QUEUED, ["%s", "%s"])
        self._moved = MOVED.format("%(id)s", "%(to)s", "%(was)s")

    def train(self, run_id: str, requested_at: str) -> None:
        with self._pool.connection() as connection:
            connection.execute(self._queued, (run_id, requested_at))
            connection.execute(self._moved, {"id": run_id, "to": RUNNING, "was": READY})
            connection.execute(self._moved, {"id": run_id, "to": SUCCESS, "was": RUNNING})


class AsyncLedger:
    """The three transitions for tasks that are coroutines."""

    def __init__(self) -> None:
        self._pool = None

    async def open(self) -> None:
        import asyncpg  # noqa: PLC0415 - the peers in threads do not need it

        self._pool = await asyncpg.create_pool(DATABASE_URL, min_size=1, max_size=SLOTS)

    async def train(self, run_id: str, requested_at: str) -> None:
        run = UUID(run_id)
        async with self._pool.acquire() as connection:
            await connection.execute(placeholders(QUEUED, ["$1", "$2"]), run, datetime.fromisoformat(requested_at))
            moved = placeholders(MOVED, ["$1", "$2::smallint", "$3::smallint"])
            await connection.execute(moved, run, RUNNING, READY)
            await connection.execute(moved, run, SUCCESS, RUNNING)
