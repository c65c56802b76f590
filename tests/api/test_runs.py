"""Runs as customers see them: listed, detailed, cancelled, with log and report; versions; changes at once."""

import asyncio
import json
from uuid import UUID, uuid4

from worker.store.database import queries

RUNS = queries("runs")


async def claim(live):
    rows = await live.database.fetch(RUNS["claim_runs"], "worker-1", 1, 60.0, [uuid4()])
    return rows[0]


async def settle(live, run, to, **fields):
    move = {
        "run_id": str(run["id"]),
        "attempt": run["attempt"],
        "from_status": 3,
        "to_status": to,
        "transition_id": str(uuid4()),
    }
    await live.database.fetch(RUNS["settle_runs"], [move | fields])


async def started(customer):
    model = await customer.trainable_model()
    await customer.http.post(f"/custom_models/{model['id']}/run")
    run = (await customer.http.get(f"/custom_models/{model['id']}/runs")).json()["result"][0]
    return model, f"/custom_models/{model['id']}/runs/{run['id']}"


async def test_a_run_is_told_from_start_to_success(live, customer):
    model, path = await started(customer)
    run = await claim(live)
    live_figures = {"figures": {}, "curve": [[1, "loss", 2.5], [2, "loss", 1.25]]}
    await live.database.execute(RUNS["record_progress"], [run["id"]], [1], ["train"], [40.0], [30.0], [live_figures])
    detail = (await customer.http.get(path)).json()
    assert (detail["training_status"], detail["phase"], detail["percent"], detail["eta_s"], detail["attempt"]) == (
        3,
        "train",
        40.0,
        30.0,
        1,
    )
    assert detail["since_sign_of_life_s"] >= 0
    assert detail["curve"] == [
        {"name": "loss", "steps_done": 1, "value": 2.5},
        {"name": "loss", "steps_done": 2, "value": 1.25},
    ]
    assert [(move["from"], move["to"]) for move in detail["transitions"]] == [(None, 2), (2, 3)]
    examples = [{"text": "metoprolol <i>", "base": "met a pro lol", "custom": "metoprolol", "file": "a.wav"}]
    figures = {"wer_base": 0.4, "wer_custom": 0.1, "examples": examples, "gate_sentence": "Better: 40 % to 10 %."}
    version = {"version_address": "runs/x", "version_sha256": "0" * 64, "version_figures": figures}
    await settle(live, run, 4, figures=figures, gate="published", **version)
    detail = (await customer.http.get(path)).json()
    assert (detail["training_status"], detail["gate"], detail["error_rates"]) == (
        4,
        "published",
        {"base": 0.4, "custom": 0.1},
    )
    shown = (await customer.http.get(f"/custom_models/{model['id']}")).json()
    assert shown["training_log"]["training_status"] == 4
    assert shown["is_trainable"] is True
    versions = (await customer.http.get(f"/custom_models/{model['id']}/versions")).json()
    assert [(one["number"], one["serving"]) for one in versions["result"]] == [(1, True)]
    assert (await customer.http.post(f"/custom_models/{model['id']}/versions/1/serve")).status_code == 200
    assert (await customer.http.post(f"/custom_models/{model['id']}/versions/2/serve")).status_code == 404
    page = await customer.http.get(path + "/report")
    for shown in ("40.0%", "Better: 40 % to 10 %.", "metoprolol &lt;i&gt;", "met a pro lol"):
        assert shown in page.text
    assert "sandbox" in page.headers["content-security-policy"]


async def test_a_failed_run_says_why(live, customer):
    _, path = await started(customer)
    run = await claim(live)
    reason = {
        "failure_class": "data",
        "failure_code": "too_little_data",
        "failure_reason": "Only 3 s of <b>audio</b> are usable.",
    }
    await settle(live, run, 5, **reason)
    detail = (await customer.http.get(path)).json()
    assert detail["training_status"] == 5
    assert detail["failure"] == {
        "class": "data",
        "code": "too_little_data",
        "reason": "Only 3 s of <b>audio</b> are usable.",
    }
    assert "Only 3 s of &lt;b&gt;audio" in (await customer.http.get(path + "/report")).text


async def test_a_customer_is_told_nothing_about_the_runs_of_others_that_stopped_the_worker(live, customer):
    _, path = await started(customer)
    code = "bystander_of_lost_worker"
    lost = {"failure_class": "lost_worker", "failure_code": code, "failure_reason": "The machine was lost."}
    await settle(live, await claim(live), 2, reason_code=code, bystander=True, failure_detail="worker w1", **lost)
    assert (await live.database.fetch("select bystander_losses from training_runs"))[0][0] == 1
    detail = await customer.http.get(path)
    assert detail.json()["transitions"][-1]["reason_code"] == detail.json()["failure"]["code"] == "lease_expired"
    report = await customer.http.get(f"{path}/report")
    assert "bystander" not in detail.text + report.text


async def test_cancel_of_a_queued_run_ends_it_and_of_a_running_one_asks_its_owner(live, customer):
    _, path = await started(customer)
    cancelled = await customer.http.post(path + "/cancel")
    assert (cancelled.status_code, cancelled.json()["training_status"]) == (202, 1)
    over = await customer.http.post(path + "/cancel")
    assert (over.status_code, over.json()["code"]) == (409, "run_over")
    _, path = await started(customer)
    run = await claim(live)
    asked = await customer.http.post(path + "/cancel")
    assert (asked.status_code, asked.json()["training_status"], asked.json()["cancel_requested"]) == (202, 3, True)
    await settle(live, run, 4, figures={}, gate="no_improvement")
    assert (await customer.http.get(path)).json()["training_status"] == 1


async def test_asking_again_for_a_cancel_fills_no_audit_trail(live, customer):
    """Nothing counts it, so that it is always possible; and it would be a row for a year."""
    _, path = await started(customer)
    await claim(live)
    answers = [await customer.http.post(path + "/cancel") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    row = await live.database.fetch_row("select count(*) as n from audit_log where action = 'cancel_run'")
    assert row["n"] == 1


async def test_a_cancel_whose_model_is_deleted_meanwhile_is_404_and_no_fault(live, customer):
    model, path = await started(customer)
    await claim(live)
    async with live.database.transaction() as connection:
        await connection.fetch("select from organizations where id = $1 for no key update", customer.id)
        cancelled = asyncio.create_task(customer.http.post(path + "/cancel"))
        waiting = (
            "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(10):
            while not (await live.database.fetch_row(waiting))["n"]:
                await asyncio.sleep(0.01)
        await connection.execute("update custom_models set deleted_at = now() where id = $1", model["id"])
    assert ((await cancelled).status_code, (await cancelled).json()["code"]) == (404, "not_found")


async def test_a_deleted_model_is_not_brought_back_by_its_run(live, customer):
    model, _ = await started(customer)
    run = await claim(live)
    assert (await customer.http.delete(f"/custom_models/{model['id']}")).status_code == 204
    row = await live.database.fetch_row("select cancel_requested_at is not null as asked, status from training_runs")
    assert tuple(row) == (True, 3)
    await settle(
        live, run, 4, figures={}, gate="published", version_address="x", version_sha256="0" * 64, version_figures={}
    )
    row = await live.database.fetch_row(
        "select status, (select count(*) from model_versions) as versions from training_runs"
    )
    assert tuple(row) == (1, 0)
    assert (await customer.http.get(f"/custom_models/{model['id']}")).status_code == 404


async def test_the_log_is_read_whole_by_range_and_by_its_tail(live, customer):
    _, path = await started(customer)
    run = await claim(live)
    assert (await customer.http.get(path + "/log")).status_code == 404
    text = "".join(f"line {n} ä\n" for n in range(1_000)).encode()
    key = f"runs/{run['id']}/1/log.txt"
    await live.storage.put_bytes(key, text)
    await live.database.fetch(RUNS["record_log"], run["id"], 1, key)
    whole = await customer.http.get(path + "/log")
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, text, "bytes")
    tail = await customer.http.get(path + "/log", params={"tail": 2})
    assert tail.text == "line 998 ä\nline 999 ä\n"
    part = await customer.http.get(path + "/log", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (
        206,
        text[5:10],
        f"bytes 5-9/{len(text)}",
    )
    last = await customer.http.get(path + "/log", headers={"Range": "bytes=-4"})
    assert last.content == text[-4:]
    nothing = await customer.http.get(path + "/log", headers={"Range": "bytes=-0"})
    assert (nothing.status_code, nothing.headers["content-range"]) == (416, f"bytes */{len(text)}")
    beyond = await customer.http.get(path + "/log", headers={"Range": f"bytes={len(text)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(text)}")


async def test_watchers_hear_of_a_change_at_once_and_of_the_end_of_the_model(live, customer):
    model = await customer.trainable_model()
    lines = asyncio.Queue()

    async def watch():
        async with customer.http.stream("GET", f"/custom_models/{model['id']}/changes", timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("event:"):
                    await lines.put(line.removeprefix("event: "))
        await lines.put("closed")

    watching = asyncio.create_task(watch())
    assert [await lines.get(), await lines.get()] == ["changed", "changed"]
    await customer.http.post(f"/custom_models/{model['id']}/run")
    assert await lines.get() == "changed"
    await customer.http.delete(f"/custom_models/{model['id']}")
    told = [await lines.get()]
    while told[-1] != "closed":
        told.append(await lines.get())
    assert told[-2] == "gone"
    await watching


async def test_a_run_of_another_model_of_the_same_organization_is_404(customer):
    _, path = await started(customer)
    other = await customer.model()
    run_id = UUID(path.rpartition("/")[2])
    assert (await customer.http.get(f"/custom_models/{other['id']}/runs/{run_id}")).status_code == 404
    assert (await customer.http.get(f"/custom_models/{other['id']}/runs/nonsense")).status_code == 404
    assert json.dumps((await customer.http.get(path)).json())
