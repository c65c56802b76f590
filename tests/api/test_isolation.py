"""Organizations never see each other, and cannot tell another's id from one that does not exist."""

import asyncio
import uuid

import pytest

BESIDE = {
    "watched",
    "claim_deliveries",
    "forget_answers",
    "forget_deliveries",
    "stale_uploads",
    "end_stale_uploads",
    "due_removals",
    "hold_removals",
    "removed",
    "to_purge",
}
"""What runs beside requests."""
NOBODY = 4_000_000_000
RUN = "00000000-0000-4000-8000-000000000000"


def requests_on(model_id, run_id, data_id, upload_id, body):
    model = f"/custom_models/{model_id}"
    return [
        ("GET", model, None),
        ("PUT", model, body),
        ("DELETE", model, None),
        ("GET", f"{model}/data", None),
        ("POST", f"{model}/run", None),
        ("POST", f"{model}/data", "file"),
        ("DELETE", f"{model}/data/{data_id}", None),
        ("POST", f"{model}/uploads", {"name": "x.wav", "bytes": 10}),
        ("GET", f"{model}/uploads/{upload_id}", None),
        ("DELETE", f"{model}/uploads/{upload_id}", None),
        ("GET", f"{model}/runs", None),
        ("GET", f"{model}/runs/{run_id}", None),
        ("POST", f"{model}/runs/{run_id}/cancel", None),
        ("GET", f"{model}/runs/{run_id}/log", None),
        ("GET", f"{model}/runs/{run_id}/report", None),
        ("GET", f"{model}/changes", None),
        ("GET", f"{model}/versions", None),
        ("POST", f"{model}/versions/1/serve", None),
    ]


@pytest.fixture
def statements(monkeypatch):
    """The text of every statement the API's process sends, in order."""
    import asyncpg  # noqa: PLC0415

    seen = []
    for name in ("fetch", "fetchrow", "fetchval", "execute"):
        original = getattr(asyncpg.Connection, name)

        def watched(self, query, *args, _original=original, **kwargs):
            name = query.splitlines()[0].removeprefix("-- name: ")
            if query.startswith("-- name:") and name not in BESIDE:
                seen.append(name)
            return _original(self, query, *args, **kwargs)

        monkeypatch.setattr(asyncpg.Connection, name, watched)
    return seen


async def send(http, method, path, body):
    if body == "file":
        return await http.post(path, files=[("file", ("a.txt", b"words"))])
    return await http.request(method, path, json=body)


async def test_anothers_ids_are_404_by_the_same_statements_as_missing_ids(customer, stranger, statements):
    model = await stranger.trainable_model()
    await stranger.http.post(f"/custom_models/{model['id']}/run")
    run_id = (await stranger.http.get(f"/custom_models/{model['id']}/runs")).json()["result"][0]["id"]
    data_id = (await stranger.http.get(f"/custom_models/{model['id']}/data")).json()["result"][0]["id"]
    upload = await stranger.http.post(f"/custom_models/{model['id']}/uploads", json={"name": "x.wav", "bytes": 10})
    body = {"name": "x", "language_id": customer.base_id, "organization_id": customer.id}
    await customer.http.get("/caller")
    theirs = requests_on(model["id"], run_id, data_id, upload.json()["id"], body)
    missing = requests_on(NOBODY, RUN, NOBODY, uuid.uuid4(), body)
    for (method, path, sent), (_, nowhere, _) in zip(theirs, missing, strict=True):
        statements.clear()
        foreign = await send(customer.http, method, path, sent)
        foreign_statements = list(statements)
        statements.clear()
        absent = await send(customer.http, method, nowhere, sent)
        assert (method, path, foreign.status_code) == (method, path, 404)
        assert foreign.content == absent.content
        assert foreign_statements == list(statements), path
        assert foreign_statements, path
    assert (await stranger.http.get(f"/custom_models/{model['id']}")).json()["training_log"]["training_status"] == 2
    assert (await customer.http.get("/speech-to-text/models")).json()["total_results"] == 0


async def test_webhooks_of_another_organization_are_404(live, customer, stranger):
    from worker.store import webhooks  # noqa: PLC0415

    async with live.database.transaction() as connection:
        hook = await webhooks.create(
            connection, stranger.id, "https://example.com/", "whsec_eA==", live.app.state.api.encryption
        )
    for method, path in (("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries")):
        answers = [await customer.http.request(method, f"/webhooks/{one}{path}") for one in (hook["id"], NOBODY)]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].content == answers[1].content


async def test_fifty_equal_starts_at_once_make_one_run(live, customer):
    model = await customer.trainable_model()
    answers = await asyncio.gather(*(customer.http.post(f"/custom_models/{model['id']}/run") for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 49
    rows = await live.database.fetch_row(
        """select (select count(*) from training_runs) as runs, (select count(*) from outbox) as told,
            (select waiting from organizations where id = $1) as waiting""",
        customer.id,
    )
    assert tuple(rows) == (1, 2, 1)


async def test_an_operators_key_may_name_any_organization(live, customer):
    operator = live.client((await live.key(None, "operator")).secret)
    body = {"name": "x", "language_id": live.base_id, "organization_id": customer.id}
    made = await operator.post("/custom_models", json=body)
    assert (made.status_code, made.json()["organization_id"]) == (201, customer.id)
    nobody = await operator.post("/custom_models", json=body | {"organization_id": NOBODY})
    assert (nobody.status_code, nobody.json()["errors"][0]["field"]) == (422, "organization_id")
    listed = (
        await operator.get("/speech-to-text/models", params={"q": "x", "sort": "name", "direction": "desc"})
    ).json()
    assert (listed["total_results"], listed["result"][0]["id"]) == (1, made.json()["id"])
    assert (await operator.get(f"/custom_models/{made.json()['id']}")).status_code == 200


async def test_a_reader_looks_and_changes_nothing(live, customer):
    model = await customer.model()
    reader = live.client((await live.key(customer.id, "reader")).secret)
    member = live.client((await live.key(customer.id, "member")).secret)
    assert (await reader.get(f"/custom_models/{model['id']}")).status_code == 200
    for method, path in (("DELETE", ""), ("POST", "/run"), ("POST", "/data")):
        answer = await reader.request(method, f"/custom_models/{model['id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
    assert (await member.get("/webhooks")).status_code == 403
    assert (await member.delete(f"/custom_models/{model['id']}")).status_code == 204
