"""What claim, heartbeat, settling, lists and sweep cost as tables grow: 1 thousand, 100 thousand, 1 million runs.

    bash tests/bench.sh scale [--sizes 1000,100000,1000000] [--organizations 10000] [--looks 40]

A tenth of the runs waits, spread over the organizations, 200 run, the rest is over. Every statement is the named
query that the worker or the API runs, with the sessions that they have; what it changes is rolled back. The sizes are
databases beside each other that are asked in turn. Prints the median and worst of each, and one last line
`RESULT {…}` with each median's ratio of the largest to the smallest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from deploy.local.postgres import create_database, drop_database
from worker.store.database import Connection, Database, Record
from worker.store.migrations import migrate
from worker.store.queries import queries

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNING = 200
SLOTS = 16
WORKER = "bench-worker"
WARM = 6
"""Looks that do not count: until the plan is settled and the pages are warm."""

# Triggers and foreign keys rest while this is loaded; the counters they keep are written as they would be.
FILL = """
insert into organizations (id, name, max_running) overriding system value
    select n, 'o' || n, 1000 from generate_series(1, {organizations}) n;
insert into base_languages (id, key, name, weights, max_running) values (1, 'en', 'English', '/none', 1000000);
insert into custom_models (id, key, name, organization_id, base_language_id, base_language_key)
    select 10 + n, 'm' || n, 'model ' || n, 1 + n % {organizations}, 1, 'en' from generate_series(0, {models} - 1) n;
insert into training_runs (id, custom_model_id, organization_id, base_language_id, status, sequence, attempt,
        requested_at, created_at, due_at, started_at, ended_at, worker_id, lease_expires_at, figures, gate)
    select md5('run' || n)::uuid, 10 + n % {models}, 1 + (n % {models}) % {organizations}, 1, s.status,
        case s.status when 2 then 1 when 3 then 2 else 3 end, (s.status > 2)::int,
        t.at, t.at, t.at, case when s.status > 2 then t.at end, case when s.status = 4 then t.at end,
        case when s.status = 3 then '{worker}' end, case when s.status = 3 then now() + interval '1 hour' end,
        case when s.status = 4 then '{{}}'::jsonb end, case when s.status = 4 then 'published' end
    from generate_series(0, {runs} - 1) n
    cross join lateral (
        select case when n < {waiting} then 2 when n < {waiting} + {running} then 3 else 4 end as status) s
    cross join lateral (select now() - ({runs} - n) * interval '1 millisecond' - interval '1 minute' as at) t;
insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt)
    select md5('move' || s || r.id)::uuid, r.id, s, nullif(s, 1), s + 1, (s > 1)::int
    from training_runs r cross join lateral generate_series(1, r.sequence) s;
insert into outbox (run_id, sequence, kind)
    select id, sequence, 'event' from training_runs where status = 4 order by created_at desc limit 600;
insert into organization_counts (organization_id, models)
    select organization_id, count(*) from custom_models group by 1
    on conflict (organization_id) do update set models = excluded.models;
update organizations o set waiting = r.waiting, running = r.running
    from (select organization_id, count(*) filter (where status = 2) as waiting,
            count(*) filter (where status = 3) as running from training_runs group by 1) r
    where r.organization_id = o.id;
update base_languages set running = {running};
"""


@dataclass(frozen=True)
class Size:
    """A database of this many runs."""

    runs: int
    organizations: int

    @property
    def waiting(self) -> int:
        return max(SLOTS * 4, self.runs // 10)

    @property
    def running(self) -> int:
        return min(RUNNING, self.runs // 5)

    @property
    def models(self) -> int:
        return max(self.waiting + self.running, self.organizations)


async def fill(dsn: str, size: Size) -> None:
    """Load a database of that size; analysed, vacuumed and on disk as a running one would be."""
    database = Database(dsn, size=1, answer_s=1_800, settings={"enable_seqscan": "on"})
    async with database.connection() as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute(
            FILL.format(
                organizations=size.organizations,
                models=size.models,
                runs=size.runs,
                waiting=size.waiting,
                running=size.running,
                worker=WORKER,
            )
        )
        await connection.execute("set session_replication_role = origin")
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")  # what loading left to be written is no part of what is measured
    await database.close()


async def statements(database: Database) -> dict[str, tuple[str, Callable[[], tuple[Any, ...]]]]:
    """What is measured: name, statement, arguments made anew for each look."""
    runs, outbox, lists, api = queries("runs"), queries("outbox"), queries("api_lists"), queries("api_runs")
    held = await database.fetch("select id, attempt from training_runs where status = 3 order by id limit 100")
    fences = [row["id"] for row in held], [row["attempt"] for row in held]
    told = (["train"] * len(held), [50.0] * len(held), [60.0] * len(held), [{}] * len(held))
    model = (await database.fetch("select custom_model_id as id from training_runs order by id limit 1"))[0]["id"]
    return {
        "claim": (runs["claim_runs"], lambda: (WORKER, SLOTS, 60.0, [uuid.uuid4() for _ in range(SLOTS)])),
        "heartbeat": (runs["renew_leases"], lambda: (WORKER, *fences, 60.0)),
        "progress": (runs["record_progress"], lambda: (*fences, *told)),
        "settle": (runs["settle_runs"], lambda: ([ended(row) for row in held[:SLOTS]],)),
        "sweep_orphans": (runs["orphans"], lambda: (100,)),
        "sweep_overdue": (runs["overdue_waiting"], lambda: (100,)),
        "list_models": (lists["by_name_asc"], lambda: (1, 0, 25)),
        "list_runs_of_model": (api["runs_page"], lambda: (model, 0, 25)),
        "relay": (outbox["lock_unsent"], lambda: (300, [])),
    }


def ended(run: Record) -> dict[str, Any]:
    """The move of a running run to its success, as ``settle_runs`` reads it."""
    return {
        "run_id": str(run["id"]),
        "attempt": run["attempt"],
        "from_status": 3,
        "to_status": 4,
        "transition_id": str(uuid.uuid4()),
        "figures": {},
        "gate": "no_improvement",
    }


async def undone(connection: Connection, statement: str, arguments: tuple[Any, ...]) -> float:
    """Run a statement and roll it back; its milliseconds."""
    transaction = connection.transaction()
    await transaction.start()
    began = time.perf_counter()
    await connection.fetch(statement, *arguments)
    took = (time.perf_counter() - began) * 1000
    await transaction.rollback()
    return took


async def measure(databases: dict[int, Database], looks: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds of every look, by statement and size: all take turns, so that a moment's load hits all alike."""
    wanted = {size: await statements(database) for size, database in databases.items()}
    names = list(next(iter(wanted.values())))
    found: dict[str, dict[int, list[float]]] = {name: {size: [] for size in databases} for name in names}
    async with AsyncExitStack() as stack:
        connections = {
            size: await stack.enter_async_context(database.connection()) for size, database in databases.items()
        }
        for look, name, size in product(range(-WARM, looks), names, databases):
            statement, arguments = wanted[size][name]
            milliseconds = await undone(connections[size], statement, arguments())
            if look >= 0:
                found[name][size].append(milliseconds)
    return found


async def run(wanted: argparse.Namespace) -> None:
    """Load every size, then measure all of them side by side; the table and the result line."""
    server = os.environ["TEST_DATABASE_URL"]
    sizes = sorted(int(size) for size in wanted.sizes.split(","))
    names = {size: f"bench_scale_{uuid.uuid4().hex[:8]}" for size in sizes}
    databases: dict[int, Database] = {}
    try:
        for size, name in names.items():
            dsn = await create_database(server, name)
            await migrate(dsn)
            began = time.monotonic()
            await fill(dsn, Size(size, wanted.organizations))
            databases[size] = Database(dsn, size=1)
            print(f"{size} runs loaded in {time.monotonic() - began:.0f} s", flush=True)
        found = await measure(databases, wanted.looks)
    finally:
        for database in databases.values():
            await database.close()
        for name in names.values():
            await drop_database(server, name)
    medians = {name: {size: statistics.median(looks) for size, looks in took.items()} for name, took in found.items()}
    print("median (worst) in ms".ljust(20) + "".join(f"{size:>22}" for size in sizes))
    for name, took in found.items():
        told = (f"{medians[name][size]:.2f} ({max(took[size]):.2f})" for size in sizes)
        print(name.ljust(20) + "".join(f"{one:>22}" for one in told))
    ratios = {name: round(by_size[sizes[-1]] / by_size[sizes[0]], 2) for name, by_size in medians.items()}
    result = {str(size): {name: round(by_size[size], 2) for name, by_size in medians.items()} for size in sizes}
    print("RESULT " + json.dumps(result | {"ratio_largest_to_smallest": ratios}))


def main() -> None:
    """Command line; the server comes from TEST_DATABASE_URL."""
    parser = argparse.ArgumentParser(prog="bash tests/bench.sh scale", description=__doc__)
    parser.add_argument("--sizes", default="1000,100000,1000000", help="runs, comma-separated")
    parser.add_argument("--organizations", type=int, default=10_000)
    parser.add_argument("--looks", type=int, default=40)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
