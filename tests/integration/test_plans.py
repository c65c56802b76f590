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


async def test_twenty_times_as_many_runs_cost_no_more_pages(database_url: str, large_url: str) -> None:
    await fill(database_url, SMALL)
    await fill(large_url, LARGE)
    small, large = await _pages(database_url), await _pages(large_url)
    grown = {name: (small[name], large[name]) for name in small if large[name] > 1.5 * small[name] + 60}
    assert not grown, f"pages touched at 1,000 and at 20,000 runs: {grown}"
