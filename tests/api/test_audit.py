"""The audit trail: reads of what customers said, refusals, and where each entry came from; bounded; kept for a time."""

import asyncio
from urllib.parse import urlsplit

import pytest

from worker.errors import DatabaseAway
from worker.store.audit import AuditStore, Wanted
from worker.store.database import Database


async def run_with_log(live, customer):
    """A model's run whose attempt has left a log."""
    model = await customer.trainable_model()
    await customer.http.post(f"/custom_models/{model['id']}/run")
    run = (await customer.http.get(f"/custom_models/{model['id']}/runs")).json()["result"][0]["id"]
    await live.storage.put_bytes(f"runs/{run}/log.txt", b"what was said\n")
    await live.database.execute("update training_runs set log_address = $2 where id = $1", run, f"runs/{run}/log.txt")
    return model["id"], run


async def entries(live, action):
    return await live.database.fetch("select * from audit_log where action = $1 order by id", action)


async def test_a_read_of_a_log_or_report_is_written_down_before_it_is_shown(live, customer):
    model, run = await run_with_log(live, customer)
    operator = await live.key(None, "operator")
    path = f"/custom_models/{model}/runs/{run}"
    for http, key in ((customer.http, customer.key.id), (live.client(operator.secret), operator.id)):
        for what in ("log", "report"):
            answer = await http.get(f"{path}/{what}")
            assert answer.status_code == 200
            row = (await entries(live, f"read_{what}"))[-1]
            assert (row["api_key_id"], row["organization_id"], row["custom_model_id"]) == (key, customer.id, model)
            assert str(row["run_id"]) == run
            assert (row["address"], row["request_id"]) == ("127.0.0.1", answer.headers["x-request-id"])
    trail = (await customer.http.get("/audit_log")).json()["result"]
    assert operator.id in {entry["api_key_id"] for entry in trail if entry["action"] == "read_log"}, "its owner sees it"


async def test_whatever_an_operators_key_reads_of_a_customer_is_written_down_and_the_customer_sees_it(live, customer):
    model, run = await run_with_log(live, customer)
    operator = live.client((await live.key(None, "operator")).secret)
    path = f"/custom_models/{model}"
    for read in (
        "/speech-to-text/models",
        path,
        f"{path}/data",
        f"{path}/runs",
        f"{path}/runs/{run}",
        f"{path}/versions",
    ):
        assert (await operator.get(read)).status_code == 200
    assert (await operator.get("/custom_models/4000000000")).status_code == 404
    await operator.get("/caller")
    rows = await live.database.fetch(
        "select a.* from audit_log a join api_keys k on k.id = a.api_key_id where k.role = 'operator' order by a.id"
    )
    assert [row["action"] for row in rows] == [
        "list_models", "read_model", "list_data", "list_runs", "read_run", "list_versions",
    ]  # fmt: skip
    assert {row["organization_id"] for row in rows[1:]} == {customer.id}
    assert str(rows[4]["run_id"]) == run
    seen = (await customer.http.get("/audit_log")).json()["result"]
    assert "read_run" in {entry["action"] for entry in seen}
    own = await live.database.fetch(
        "select 1 from audit_log where action = 'read_model' and api_key_id = $1", customer.key.id
    )
    assert not own


async def test_a_log_that_is_looked_at_all_the_time_makes_two_entries_a_minute_at_most(live, customer):
    model, run = await run_with_log(live, customer)
    for _ in range(30):
        await customer.http.get(f"/custom_models/{model}/runs/{run}/log?tail=5")
    await live.app.state.api.trail.flush()
    rows = await entries(live, "read_log")
    assert [row["detail"] for row in rows] == [{}, {"repeats": 29}]


async def test_what_cannot_be_written_down_is_not_shown(live, customer):
    model, run = await run_with_log(live, customer)
    await live.database.execute("alter table audit_log add constraint full_disk check (action <> 'read_log') not valid")
    answer = await customer.http.get(f"/custom_models/{model}/runs/{run}/log")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert b"what was said" not in answer.content
    value = live.app.state.metrics.registry.get_sample_value
    assert value("training_api_audit_failures_total") == 1
    await live.database.execute("alter table audit_log drop constraint full_disk")
    assert (await customer.http.get(f"/custom_models/{model}/runs/{run}/log")).status_code == 200


async def test_a_read_of_anothers_log_is_an_entry_of_refusals_that_tells_its_own_key_only(live, customer, stranger):
    model, run = await run_with_log(live, customer)
    for _ in range(3):
        await stranger.http.get(f"/custom_models/{model}/runs/{run}/log")
    await live.app.state.api.trail.flush()
    assert not await entries(live, "read_log")
    [row] = await entries(live, "refused")
    assert (row["api_key_id"], row["organization_id"]) == (stranger.key.id, stranger.id)
    cause = "404 not_found GET /api/v3/custom_models/{id}/runs/{run_id}/log"
    assert row["detail"] == {
        "count": 3,
        "causes": {cause: 3},
        "addresses": {"127.0.0.1": 3},
        "models": {str(model): 3},
    }
    shown = (await customer.http.get("/audit_log")).json()["result"]
    assert "refused" not in {entry["action"] for entry in shown}


async def test_a_flood_of_refusals_makes_one_entry_of_bounded_size(live, customer):
    for number in range(50):
        await customer.http.get(f"/custom_models/{4_000_000_000 + number}")
    await live.app.state.api.trail.flush()
    [row] = await entries(live, "refused")
    assert row["detail"]["count"] == 50
    assert len(row["detail"]["models"]) == 21
    assert row["detail"]["models"]["others"] == 30


async def test_refusals_that_the_database_does_not_take_are_kept_and_written_later(live, customer, monkeypatch):
    trail = live.app.state.api.trail
    away = [True]
    original = AuditStore.add_summaries

    async def sometimes(self, summaries):
        if away[0]:
            raise DatabaseAway("away")
        await original(self, summaries)

    monkeypatch.setattr(AuditStore, "add_summaries", sometimes)
    await customer.http.get("/custom_models/4000000000")
    await trail.flush()
    await customer.http.get("/custom_models/4000000001")
    away[0] = False
    await trail.flush()
    [row] = await entries(live, "refused")
    assert row["detail"]["count"] == 2


async def test_nobody_can_say_when_or_as_whom_an_entry_was_written(live):
    await live.database.execute(
        "insert into audit_log (action, at, database_role) values ('forged', now() - interval '9 years', 'somebody')"
    )
    [row] = await entries(live, "forged")
    now = await live.database.fetch_row(
        "select now() - $1 < interval '1 minute' as young, current_user as me", row["at"]
    )
    assert now["young"]
    assert row["database_role"] == now["me"]


async def aged(live, days, count):
    """Entries of long ago, which only the table's owner can make: by switching its trigger off."""
    async with live.database.transaction() as connection:
        await connection.execute("alter table audit_log disable trigger sign_audit_entry")
        await connection.execute(
            "insert into audit_log (action, at) select 'old', now() - $1 * interval '1 day' from generate_series(1, $2)",
            days,
            count,
        )
        await connection.execute("alter table audit_log enable trigger sign_audit_entry")


async def test_entries_end_after_their_time_in_batches_and_an_entry_says_so(live):
    await aged(live, 401, 10_500)
    await aged(live, 399, 7)
    async with asyncio.timeout(20):  # the API's own housekeeping may be at it as well
        while await AuditStore(live.database).forget(400) or len(await entries(live, "old")) > 7:
            await asyncio.sleep(0.01)
    assert len(await entries(live, "old")) == 7
    told = [row["detail"]["entries"] for row in await entries(live, "forget_audit_entries")]
    assert sum(told) == 10_500
    assert max(told) <= 10_000


async def test_no_setting_ends_entries_of_the_last_thirty_days(live):
    await aged(live, 29, 3)
    assert await AuditStore(live.database).forget(0) == 0
    assert len(await entries(live, "old")) == 3


async def test_entries_are_found_by_time_organization_action_and_key(live, customer, stranger):
    await customer.model()
    await stranger.model()
    store = AuditStore(live.database)
    [row] = await store.newest(Wanted(organization_id=customer.id, action="create_model"), 10)
    assert row["api_key_id"] == customer.key.id
    assert {row["organization_id"] async for row in store.entries(Wanted(key_id=stranger.key.id))} == {stranger.id}
    assert not await store.newest(Wanted(until=row["at"], action="create_model", organization_id=customer.id), 10)


async def test_the_api_login_adds_entries_reads_them_and_ends_old_ones_by_the_function_only(live):
    its = live.settings.database_url.get_secret_value()
    login = urlsplit(its).username
    database = Database(its, size=1)
    try:
        await database.execute("insert into audit_log (action) values ('by api')")
        [row] = await entries(live, "by api")
        assert row["database_role"] == login
        await aged(live, 500, 2)
        # The API under test does the same beside us, and whoever comes second leaves to the first what it holds.
        while await AuditStore(database).forget(400) or await entries(live, "old"):
            await asyncio.sleep(0.01)
        assert await entries(live, "forget_audit_entries")
        for forbidden in ("delete from audit_log", "update audit_log set action = ''", "truncate audit_log"):
            with pytest.raises(Exception, match="permission denied"):
                await database.execute(forbidden)
    finally:
        await database.close()
