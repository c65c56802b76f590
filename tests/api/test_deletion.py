"""Delete means delete: no row and no file holds a customer's words, file names or sound any more."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from schemas.failures import FailureClass
from schemas.status import Gate
from worker.api.tidy import Tidying
from worker.domain.outcome import Failed, Succeeded, Version
from worker.domain.run import Checkpoint, Claim, Progress, RunInputs
from worker.errors import DatabaseAway
from worker.store import tidying as tidying_module
from worker.store.runs import Limits, RunStore
from worker.store.tidying import TidyStore

if TYPE_CHECKING:
    from worker.domain.run import ClaimedRun

CANARY = "canarybird"

pytestmark = pytest.mark.usefixtures("housekeeping_by_hand")


def tidying(live: Any) -> Tidying:
    api = live.app.state.api
    return Tidying(TidyStore(live.database), live.storage, api.webhooks, api.encryption)


async def tidy(live: Any) -> None:
    await live.database.execute("update erasures set created_at = created_at - interval '10 minutes'")
    await live.database.execute("update training_runs set created_at = created_at - interval '20 minutes'")
    while await tidying(live).once():
        pass


async def an_hour_later(live: Any) -> None:
    await live.database.execute("update custom_models set purged_at = purged_at - interval '2 hours'")
    await live.database.execute("update removals set due_at = due_at - interval '2 hours'")


async def rows_with(live: Any, word: str) -> dict[str, int]:
    """Rows that hold a word, by table: what a dump of the database would show, bytes as well."""
    tables = await live.database.fetch("select tablename from pg_tables where schemaname = 'public'")
    found = {}
    for (table,) in tables:
        row = await live.database.fetch_row(
            f"select count(*) as n from {table} t where t::text ilike $1 or t::text like $2",
            f"%{word}%",
            f"%{word.encode().hex()}%",
        )
        if row["n"]:
            found[table] = row["n"]
    return found


def files_with(live: Any, word: str) -> list[str]:
    found = [path for path in live.storage.root.rglob("*") if path.is_file()]
    return sorted(
        path.relative_to(live.storage.root).as_posix()
        for path in found
        if word.encode() in path.read_bytes() or word in path.as_posix()
    )


def runs_of(live: Any) -> RunStore:
    return RunStore(live.database, Limits(failures=3, hand_overs=50), lambda: 0.5)


async def claimed(live: Any, customer: Any, model: Any) -> ClaimedRun:
    """The model trains: everything that an attempt stores is stored, with the customer's words in it."""
    started = await customer.http.post(f"/custom_models/{model['id']}/run")
    assert started.status_code == 202, started.text
    [run] = await runs_of(live).claim(Claim.of("worker", 1e6, 1))
    prefix = f"runs/{run.id}/{run.attempt}"
    inputs = RunInputs(
        manifest=f"{prefix}/load/manifest.jsonl", manifest_sha256="0", rows=1, base_language_id=1, base_key="en",
        base_weights="/base", base_version="1", recipe="whisper", recipe_version="1", seed=1,
        parameters={"note": CANARY},
    )  # fmt: skip
    runs = runs_of(live)
    await runs.fix_inputs(run.fence, inputs)
    for step in ("prepare", "train", "evaluate", "export"):
        await live.storage.put_bytes(f"{prefix}/{step}/file", f"{CANARY} speaks".encode())
        result = {"speakers": {CANARY: 1.0}}
        await runs.store_step_output(run.fence, f"{run.id}-{step}", step, f"{prefix}/{step}", "0" * 64, 1, result)
    for name in ("load/manifest.jsonl", "load/verdicts.jsonl", "log.txt", "checkpoints/00000050/state"):
        await live.storage.put_bytes(f"{prefix}/{name}", f"{CANARY} {name}".encode())
    checkpoint = Checkpoint(run.attempt, 50, f"{prefix}/checkpoints/00000050", "0" * 64, 1, "1")
    await runs.register_checkpoint(run.fence, checkpoint)
    await live.storage.put_bytes(f"{prefix}/export/report.html", f"<p>{CANARY}.wav</p>".encode())
    await live.storage.put_bytes(f"steps/{run.id}/1-train-1/log", CANARY.encode())
    rejections = [{"file": f"{CANARY}.wav", "reason_code": "silent", "reason": f"{CANARY} is silent."}]
    await runs.record_data_report(run.fence, {"usable_s": 60.0, "rejections": rejections})
    await runs.record_progress([Progress(run.fence, "train", 5.0, None, {"note": CANARY})])
    return run


FIGURES = {
    "wer_custom": 0.1,
    "examples": [
        {"text": f"{CANARY} takes her pills", "base": "cannery", "custom": CANARY, "file": f"{CANARY}.wav"},
        {"text": "another sentence", "base": "another", "custom": "another sentence", "file": "other.wav"},
    ],
}


async def ended(live: Any, run: ClaimedRun, *, well: bool = True) -> None:
    runs = runs_of(live)
    export = f"runs/{run.id}/{run.attempt}/export"
    outcome = (
        Succeeded(FIGURES, Gate.PUBLISHED, Version(export, "0" * 64), None, f"{export}/report.html")
        if well
        else Failed(FailureClass.DATA, "bad", f"{CANARY} cannot be read.", f"{CANARY} in detail")
    )
    move = runs.moves.after(run, outcome)
    assert move is not None
    await runs.settle(move)


async def lived(live: Any, customer: Any) -> dict[str, Any]:
    """A model with everything that a customer can give it, trained twice, and deleted."""
    model = await customer.model(f"The {CANARY} ward")
    path = f"/custom_models/{model['id']}"
    await customer.feed(model["id"], name=CANARY)
    manifest = json.dumps({"audio_filepath": f"{CANARY}2.wav", "text": CANARY}).encode()
    again = {"Idempotency-Key": "again"}
    sent = await customer.http.post(f"{path}/data", files=[("f", (f"{CANARY}.jsonl", manifest))], headers=again)
    assert sent.status_code == 201
    begun = await customer.http.post(f"{path}/uploads", json={"name": f"{CANARY}3.wav", "bytes": 100})
    part = await customer.http.patch(
        f"{path}/uploads/{begun.json()['id']}", content=CANARY.encode(), headers={"Upload-Offset": "0"}
    )
    assert part.status_code == 200
    await ended(live, await claimed(live, customer, model))
    await ended(live, await claimed(live, customer, model), well=False)
    body = {"name": f"The {CANARY} ward", "language_id": customer.base_id, "organization_id": customer.id}
    assert (await customer.http.put(path, json=body, headers=again)).status_code == 200
    return model


async def test_of_a_deleted_model_no_row_and_no_file_holds_the_customers_words(live, customer):
    model = await lived(live, customer)
    before = await rows_with(live, CANARY)
    assert set(before) >= {
        "audit_log", "custom_models", "idempotency_keys", "manifest_names", "model_versions", "step_outputs",
        "training_data", "training_runs", "uploads",
    }, before  # fmt: skip
    assert len(files_with(live, CANARY)) > 15
    assert (await customer.http.delete(f"/custom_models/{model['id']}")).status_code == 204
    await tidy(live)
    assert await rows_with(live, CANARY) == {}
    assert files_with(live, CANARY) == []
    trail = await live.database.fetch("select action, detail from audit_log where custom_model_id = $1", model["id"])
    assert [row["action"] for row in trail if row["action"] == "upload"] == [
        "upload"
    ] * 2  # who, when, what: that stays
    kept = await live.database.fetch("select status, failure_class, gate from training_runs")
    assert sorted(tuple(row) for row in kept) == [(4, None, "published"), (5, "data", None)]


async def test_what_was_purged_by_an_earlier_release_loses_its_words_too(live, customer):
    model = await lived(live, customer)
    await customer.http.delete(f"/custom_models/{model['id']}")
    await live.database.execute("update custom_models set purged_at = now() - interval '9 days'")
    await tidy(live)
    assert await rows_with(live, CANARY) == {}


async def test_what_a_late_writer_leaves_goes_with_the_second_purge(live, customer):
    model = await lived(live, customer)
    await customer.http.delete(f"/custom_models/{model['id']}")
    await tidy(live)
    run = await live.database.fetch_row("select id from training_runs limit 1")
    late = f"runs/{run['id']}/1/train/late"
    await live.storage.put_bytes(late, CANARY.encode())
    await tidy(live)
    assert files_with(live, CANARY) == [late]
    await an_hour_later(live)
    await tidy(live)
    assert files_with(live, CANARY) == []
    assert await live.database.fetch("select from custom_models where cleared_at is null") == []


async def test_a_purge_that_dies_half_way_goes_on_and_holds_no_lock_for_all_of_a_model(live, customer, monkeypatch):
    model = await customer.model()
    await customer.http.post(
        f"/custom_models/{model['id']}/data", files=[("f", (f"{CANARY}{n}.txt", b"words")) for n in range(10)]
    )
    await customer.http.delete(f"/custom_models/{model['id']}")
    monkeypatch.setattr(tidying_module, "_ROWS_AT_ONCE", 3)
    store, batches = TidyStore(live.database), 0
    execute = live.database.execute

    async def dies(query: str, *arguments: Any) -> int:
        nonlocal batches
        batches += "delete from training_data" in query
        if batches == 3:
            raise ConnectionResetError
        return await execute(query, *arguments)

    async def nobody_waits(_: Any) -> None:
        async with live.database.transaction() as other:  # while bytes are removed, which may take minutes
            await other.fetch("select from organization_counts for update nowait")
            await other.fetch("select from custom_models for update nowait")

    monkeypatch.setattr(live.database, "execute", dies)
    with pytest.raises(DatabaseAway):
        await store.purge(nobody_waits, b"")
    assert len(await live.database.fetch("select from training_data")) == 4
    monkeypatch.setattr(live.database, "execute", execute)
    await tidy(live)
    assert await rows_with(live, CANARY) == {}


async def test_a_purge_deletes_the_names_in_manifests_a_few_at_a_time(live, customer, monkeypatch):
    """In one statement with their manifests millions of them take longer than a statement may, each time again."""
    model = await customer.model()
    lines = b"".join(b'{"audio_filepath": "%d.wav"}\n' % number for number in range(20))
    await customer.http.post(f"/custom_models/{model['id']}/data", files=[("f", ("m.jsonl", lines))])
    await customer.http.delete(f"/custom_models/{model['id']}")
    monkeypatch.setattr(tidying_module, "_ROWS_AT_ONCE", 8)
    execute, left = live.database.execute, []

    async def watched(query: str, *arguments: Any) -> int:
        done = await execute(query, *arguments)
        row = await live.database.fetch_row("select count(*) as n from manifest_names")
        left.append(row["n"])
        return done

    monkeypatch.setattr(live.database, "execute", watched)
    await tidy(live)
    assert max(before - after for before, after in zip([20, *left], left, strict=False)) == 8
    assert left[-1] == 0


async def test_two_processes_never_purge_one_model_at_the_same_time(live, customer):
    others: list[bool] = []

    async def beside(_: Any) -> None:
        others.append(await TidyStore(live.database).purge(beside, b""))

    mine = False
    while not mine:  # the API under test purges as well, and may have been quicker
        model = await customer.model()
        await customer.http.delete(f"/custom_models/{model['id']}")
        mine = await TidyStore(live.database).purge(beside, b"")
    assert others == [False]


HOLD_COUNTS = "select from organization_counts where organization_id = $1 for no key update"


async def waits_for_a_lock(live: Any) -> None:
    waiting = (
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10):
        while not (await live.database.fetch_row(waiting))["n"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("what", ["removals", "stale uploads"])
async def test_tidying_that_waits_for_one_organization_holds_up_no_other(live, customer, stranger, what):
    """An upload holds its organization's counts for seconds; the rows of all are tidied together."""
    both = [(one, await one.model()) for one in (customer, stranger)]
    for one, model in both:
        await one.feed(model["id"], name=f"speech {one.id}")
        await one.http.post(f"/custom_models/{model['id']}/uploads", json={"name": "b.wav", "bytes": 10})
    if what == "removals":
        await live.database.execute(
            "insert into removals (address, custom_model_id, bytes) select address, custom_model_id, 1 "
            "from training_data"
        )
        await live.database.execute("update removals set due_at = now()")
    else:
        await live.database.execute("update uploads set changed_at = now() - interval '2 days'")
    store = TidyStore(live.database)
    async with live.database.transaction() as connection:
        await connection.fetch(HOLD_COUNTS, stranger.id)
        tidying = asyncio.create_task(
            store.remove(live.storage.delete) if what == "removals" else store.end_stale_uploads()
        )
        await waits_for_a_lock(live)
        await connection.fetch("set local lock_timeout = '5s'")
        await connection.fetch(HOLD_COUNTS, customer.id)  # as the other organization's next upload would
    await tidying
    left = await live.database.fetch_row(
        f"select count(*) as n from {what.split()[-1]} where custom_model_id = any($1)",
        [model["id"] for _, model in both],
    )
    assert left["n"] == 0


async def test_a_purge_waits_for_no_bytes_that_another_process_is_removing(live, customer):
    model = await customer.model()
    await customer.feed(model["id"])
    await customer.http.delete(f"/custom_models/{model['id']}")
    await live.database.execute(
        "insert into removals (address, custom_model_id, bytes, due_at) values ('a', $1, 1, now())", model["id"]
    )
    async with live.database.transaction() as connection:
        await connection.fetch("select from removals for update")
        async with asyncio.timeout(20):
            await tidying(live).once()
    row = await live.database.fetch_row("select purged_at from custom_models where id = $1", model["id"])
    assert row["purged_at"] is not None


async def test_a_repeated_creation_of_a_deleted_model_makes_no_second_one(live, customer):
    body = {"name": CANARY, "language_id": customer.base_id, "organization_id": customer.id}
    once = {"Idempotency-Key": "create"}
    model = (await customer.http.post("/custom_models", json=body, headers=once)).json()
    await customer.http.delete(f"/custom_models/{model['id']}")
    await tidy(live)
    again = await customer.http.post("/custom_models", json=body, headers=once)
    assert (again.status_code, again.json()["code"]) == (404, "not_found")
    assert len(await live.database.fetch("select from custom_models")) == 1


async def test_a_model_that_exists_cannot_be_cleared(live, customer):
    model = await lived(live, customer)
    before = await rows_with(live, CANARY)
    with pytest.raises(Exception, match="not deleted"):
        await live.database.execute("select clear_deleted_model($1)", model["id"])
    assert await rows_with(live, CANARY) == before


async def test_rows_of_what_was_made_and_deleted_in_a_loop_end(live, customer):
    for _ in range(3):
        model = await customer.model()
        await customer.http.delete(f"/custom_models/{model['id']}")
    trained = await lived(live, customer)
    await customer.http.delete(f"/custom_models/{trained['id']}")
    await live.database.execute(
        "insert into webhooks (organization_id, url, secret, disabled_at) select $1, 'https://x.org', '', now() - interval '40 days'"
        " from generate_series(1, 3)",
        customer.id,
    )
    await tidy(live)
    await an_hour_later(live)
    await tidy(live)
    assert len(await live.database.fetch("select from custom_models")) == 4
    await live.database.execute("update custom_models set cleared_at = cleared_at - interval '8 days'")
    await tidy(live)
    assert [row["id"] for row in await live.database.fetch("select id from custom_models")] == [trained["id"]]
    assert await live.database.fetch("select from webhooks") == []


async def two_recordings(live: Any, customer: Any) -> tuple[dict[str, Any], int, ClaimedRun]:
    model = await customer.model()
    await customer.feed(model["id"], name="other")
    made = await customer.feed(model["id"], name=CANARY)
    run = await claimed(live, customer, model)
    recording = next(item["id"] for item in made["result"] if item["kind"] == "audio")
    return model, recording, run


async def test_a_removed_recording_leaves_datasets_states_and_sentences_and_the_weights_stay(live, customer):
    model, recording, run = await two_recordings(live, customer)
    await ended(live, run)
    path = f"/custom_models/{model['id']}/data"
    assert (await customer.http.delete(f"{path}/{recording}")).status_code == 204
    await tidy(live)
    prefix = f"runs/{run.id}/1"
    left = sorted(path for path in files_with(live, "") if path.startswith("runs/"))
    assert left == [f"{prefix}/export/file", f"{prefix}/log.txt"]  # weights, and the log of the run
    row = await live.database.fetch_row("select figures, data_report, report_address from training_runs")
    assert [one["file"] for one in row["figures"]["examples"]] == ["other.wav"]
    assert (row["data_report"]["rejections"], row["report_address"]) == ([], None)
    version = await live.database.fetch_row("select figures from model_versions")
    assert [one["file"] for one in version["figures"]["examples"]] == ["other.wav"]
    assert await runs_of(live).find_step_output(run.organization_id, f"{run.id}-prepare") is None
    page = await customer.http.get(f"/custom_models/{model['id']}/runs/{run.id}/report")
    assert (page.status_code, CANARY in page.text, "another sentence" in page.text) == (200, False, True)


async def test_a_replaced_recording_leaves_what_runs_made_of_it_too(live, customer, make_wav):
    model, _, run = await two_recordings(live, customer)
    await ended(live, run)
    path = f"/custom_models/{model['id']}/data"
    await customer.http.post(path, files=[("f", (f"{CANARY}.wav", make_wav(61)))])
    await tidy(live)  # the same sound again: nothing was replaced
    assert await runs_of(live).find_step_output(run.organization_id, f"{run.id}-prepare") is not None
    await customer.http.post(path, files=[("f", (f"{CANARY}.wav", make_wav(62)))])
    await tidy(live)
    assert await runs_of(live).find_step_output(run.organization_id, f"{run.id}-prepare") is None


async def test_nothing_of_a_removed_recording_goes_while_a_run_of_the_model_reads(live, customer):
    model, recording, run = await two_recordings(live, customer)
    await ended(live, run)
    await customer.http.delete(f"/custom_models/{model['id']}/data/{recording}")
    reading = await claimed(live, customer, model)
    await tidy(live)
    assert await runs_of(live).find_step_output(run.organization_id, f"{run.id}-prepare") is not None
    await ended(live, reading, well=False)
    await tidy(live)
    assert await runs_of(live).find_step_output(run.organization_id, f"{run.id}-prepare") is None


async def test_a_report_that_does_not_name_the_removed_file_stays(live, customer):
    model, _, run = await two_recordings(live, customer)
    await ended(live, run)
    shown = (await customer.http.get(f"/custom_models/{model['id']}/data")).json()["result"]
    other = next(item["id"] for item in shown if item["name"] == "other.wav")
    await customer.http.delete(f"/custom_models/{model['id']}/data/{other}")
    await tidy(live)
    row = await live.database.fetch_row("select report_address from training_runs")
    assert row["report_address"] == f"runs/{run.id}/1/export/report.html"


async def test_after_many_removals_reports_go_without_a_search(live, customer):
    model, _, run = await two_recordings(live, customer)
    path = f"/custom_models/{model['id']}/data"
    await ended(live, run)
    made = await customer.http.post(path, files=[("f", (f"unused{n}.txt", b"words")) for n in range(21)])
    for item in made.json()["result"]:
        assert (await customer.http.delete(f"{path}/{item['id']}")).status_code == 204
    await tidy(live)
    row = await live.database.fetch_row("select report_address from training_runs")
    assert row["report_address"] is None


async def test_a_database_of_an_api_with_least_rights_cannot_rewrite_the_audit_trail(live):
    connection = await asyncpg.connect(live.settings.database_url.get_secret_value())
    rights = await connection.fetchval(
        "select count(*) from pg_proc p where p.proname like any (array['clear_%', 'forget_untrained%'])"
        " and p.prosecdef and has_function_privilege('public', p.oid, 'execute')"
    )
    await connection.close()
    assert rights == 0
