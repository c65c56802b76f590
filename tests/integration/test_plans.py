"""Hot statements look at as few pages in a large database as in a small one, whatever the planner believes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.bench.scale import Size, fill, statements
from worker.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Services

ORGANIZATIONS = 500
SMALL, LARGE = Size(1_000, ORGANIZATIONS), Size(20_000, ORGANIZATIONS)
TOUCHED = re.compile(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?")


async def _pages(url: str) -> dict[str, int]:
    """Pages that each hot statement touches, planned anew and as its prepared statement keeps it."""
    database = Database(url, size=1)
    found = {}
    for name, (statement, arguments) in (await statements(database)).items():
        for mode in ("force_custom_plan", "force_generic_plan"):
            async with database.connection() as connection:
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(f"set local plan_cache_mode = {mode}")
                rows = await connection.fetch(
                    f"explain (analyze, buffers, costs off, timing off) {statement}", *arguments()
                )
                await transaction.rollback()
            first = TOUCHED.search("\n".join(row[0] for row in rows))
            assert first is not None
            found[f"{name} ({mode})"] = sum(int(part or 0) for part in first.groups())
    await database.close()
    return found


@pytest.fixture
def large_url(services: Services, migrated_template: str) -> Iterator[str]:
    from deploy.local.postgres import create_database, drop_database  # noqa: PLC0415
    from deploy.local.program import run_blocking  # noqa: PLC0415

    yield run_blocking(lambda: create_database(services.database_url, "plans_large", template=migrated_template))
    run_blocking(lambda: drop_database(services.database_url, "plans_large"))


def _grown(small: dict[str, int], large: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (small[name], large[name]) for name in small if large[name] > 1.5 * small[name] + 60}


async def test_twenty_times_as_many_runs_cost_no_more_pages(database_url: str, large_url: str) -> None:
    await fill(database_url, SMALL)
    await fill(large_url, LARGE)
    grown = _grown(await _pages(database_url), await _pages(large_url))
    assert not grown, f"pages touched at 1,000 and at 20,000 runs: {grown}"


# What the server knows of a queue is as old as its last ANALYZE: from before the first run, or from a quiet night.
_NOTHING = """
delete from pg_statistic;
update pg_class set reltuples = -1, relpages = 0 where relnamespace = 'public'::regnamespace;
"""
_A_QUIET_NIGHT = """
set session_replication_role = replica;
create table kept_runs as select * from training_runs where status in (2, 3);
create table kept_outbox as select * from outbox;
create table kept_organizations as select * from organizations;
update training_runs set status = 4, worker_id = null, lease_expires_at = null, ended_at = now(), figures = '{}',
    gate = 'published' where status in (2, 3);
delete from outbox;
update organizations set waiting = 0, running = 0;
"""
_AND_THEN_MORNING = """
update training_runs r set status = k.status, worker_id = k.worker_id, lease_expires_at = k.lease_expires_at,
    ended_at = null from kept_runs k where k.id = r.id;
insert into outbox overriding system value select * from kept_outbox;
update organizations o set waiting = k.waiting, running = k.running from kept_organizations k where k.id = o.id;
set session_replication_role = origin;
"""


@pytest.mark.parametrize(
    "moments", [[_NOTHING], [_A_QUIET_NIGHT, "vacuum analyze", _AND_THEN_MORNING]], ids=["nothing", "a quiet night"]
)
async def test_what_the_server_knew_when_it_planned_costs_no_pages(
    database_url: str, large_url: str, moments: list[str]
) -> None:
    await fill(database_url, SMALL)
    await fill(large_url, LARGE)
    right = await _pages(database_url)
    database = Database(large_url, size=1, settings={"enable_seqscan": "on"})
    async with database.connection() as connection:
        for statement in moments:
            await connection.execute(statement)
    await database.close()
    grown = _grown(right, await _pages(large_url))
    assert not grown, f"pages touched at 1,000 runs, and at 20,000 planned with old statistics: {grown}"
