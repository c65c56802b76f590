"""Polls and lists stay on their indexes: no sequential scan and no sort of a whole organization, whatever it asks."""

from __future__ import annotations

import json

import pytest

from worker.store.api import SORTS
from worker.store.database import queries

MODELS = queries("api_models")
LISTS = queries("api_lists")
MANY = 5_000
OTHERS = 25_000
INDEXES = {
    "id": "models_by_id",
    "name": "models_by_name",
    "key": "models_by_key",
    "last_modified": "models_by_last_modified",
    "base_language_key": "models_by_base",
    "training_status": "models_by_status",
}


@pytest.fixture
async def filled(live, customer, stranger):
    for organization, first, last in ((customer.id, 1, MANY), (stranger.id, MANY + 1, MANY + OTHERS)):
        await live.database.execute(
            """insert into custom_models (key, name, organization_id, base_language_id, training_status)
            select 'm-' || n, 'Model ' || md5(n::text), $1, $2, 1 + n % 5 from generate_series($3::int, $4::int) n""",
            organization,
            live.base_id,
            first,
            last,
        )
    await live.database.execute("vacuum analyze custom_models")
    await live.database.execute("analyze organization_counts")
    return live.database


def nodes(plan):
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


async def explained(database, query, *arguments):
    row = await database.fetch_row("explain (analyze, buffers, format json) " + query, *arguments)
    text = row["QUERY PLAN"]
    return list(nodes((json.loads(text) if isinstance(text, str) else text)[0]["Plan"]))


def touched(plan):
    """Pages of the table and its indexes that the statement looked at."""
    return plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"]


async def test_a_poll_is_one_read_of_one_index(filled):
    plan = await explained(filled, MODELS["polled"], [1_000], [1])
    scans = [node for node in plan if "Relation Name" in node]
    assert [node["Node Type"] for node in scans] == ["Index Scan"]
    assert scans[0]["Index Name"] in {"custom_models_pkey", "custom_models_id_organization_id_key"}
    assert touched(plan) <= 6


async def test_the_list_of_a_304_is_one_read_of_one_row(filled, customer):
    plan = await explained(filled, MODELS["counts_of"], customer.id)
    assert touched(plan) <= 4


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_a_page_walks_the_index_of_its_sort(filled, customer, direction):
    for sort in SORTS:
        plan = await explained(filled, LISTS[f"by_{sort}_{direction}"], customer.id, 0, 25)
        used = {node.get("Index Name", "") for node in plan}
        assert any(name.startswith(INDEXES[sort]) for name in used), (sort, used)
        assert not [
            node for node in plan if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "custom_models"
        ]
        assert touched(plan) < 400, (sort, touched(plan))


async def test_a_search_counts_on_one_index_without_the_table(filled, customer):
    plan = await explained(filled, LISTS["find"], customer.id, "%model%", 1_000)
    scans = [node for node in plan if "Index Name" in node]
    assert [(node["Node Type"], node["Index Name"]) for node in scans] == [("Index Only Scan", "models_by_id")]


async def test_a_search_that_many_fit_ends_when_the_page_is_full(filled, customer):
    for sort in SORTS:
        plan = await explained(filled, LISTS[f"found_by_{sort}_asc"], customer.id, 0, 25, "%model%")
        assert touched(plan) < 400, (sort, touched(plan))


async def test_no_index_of_models_holds_what_the_moves_of_runs_write(live):
    """So their rows change in place: what a move costs does not grow with the ways to sort models."""
    rows = await live.database.fetch(
        "select indexdef from pg_indexes where tablename = 'custom_models' and indexdef ~ 'last_modified|training_status'"
    )
    assert not [row["indexdef"] for row in rows]
