"""The seven endpoints, exactly as the contract has them."""

import time
from datetime import datetime

from worker.api import present

MODEL_FIELDS = {
    "id": int,
    "key": str,
    "name": str,
    "last_modified": str,
    "organization_id": int,
    "language_data": type(None),
    "is_trainable": bool,
    "type": int,
    "base_language_id": int,
    "base_language_key": str,
}


def assert_model(model, *, status=None):
    fields = dict(model)
    log = fields.pop("training_log", None)
    assert {name: type(value) for name, value in fields.items()} == MODEL_FIELDS
    assert datetime.fromisoformat(model["last_modified"]).utcoffset() is not None
    assert model["type"] == 1
    if status is None:
        assert "training_log" not in model
    else:
        assert log == {"language_id": model["id"], "training_status": status, "log_name": None}


async def test_create_answers_201_with_exactly_the_fields_of_a_model(customer):
    answer = await customer.http.post(
        "/custom_models",
        json={"name": "Kardiologie Süd", "language_id": customer.base_id, "organization_id": customer.id},
    )
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert_model(answer.json())
    assert answer.json()["base_language_key"] == "en"
    assert answer.json()["is_trainable"] is False


async def test_a_model_with_data_can_be_trained_and_then_is_busy(customer):
    model = await customer.trainable_model()
    assert (await customer.http.get(f"/custom_models/{model['id']}")).json()["is_trainable"] is True
    started = await customer.http.post(f"/custom_models/{model['id']}/run")
    assert started.status_code == 202
    assert_model(started.json(), status=2)
    assert started.json()["is_trainable"] is False
    again = await customer.http.post(f"/custom_models/{model['id']}/run", json={})
    assert (again.status_code, again.json()["code"]) == (409, "run_active")


async def test_an_accepted_start_is_row_transition_and_outbox_in_one(live, customer):
    model = await customer.trainable_model()
    await customer.http.post(f"/custom_models/{model['id']}/run", content=b"", headers={"Content-Type": "text/plain"})
    row = await live.database.fetch_row(
        """select r.id, (select count(*) from run_transitions t where t.run_id = r.id) as moves,
            (select array_agg(o.kind order by o.id) from outbox o where o.run_id = r.id) as told from training_runs r"""
    )
    assert (row["moves"], row["told"]) == (1, ["request", "event"])


async def test_a_run_without_data_is_refused_with_no_training_data(customer):
    model = await customer.model()
    answer = await customer.http.post(f"/custom_models/{model['id']}/run")
    assert (answer.status_code, answer.json()["code"]) == (422, "no_training_data")


async def test_update_changes_the_metadata_and_moves_last_modified(customer):
    model = await customer.model()
    body = {"name": "Renamed", "language_id": customer.base_id, "organization_id": customer.id}
    answer = await customer.http.put(f"/custom_models/{model['id']}", json=body)
    assert answer.status_code == 200
    assert_model(answer.json())
    assert answer.json()["name"] == "Renamed"
    assert answer.json()["key"] == model["key"]
    assert answer.json()["last_modified"] > model["last_modified"]


async def test_another_base_language_is_refused_while_a_run_is_active(live, customer):
    from worker.store.models import ModelStore  # noqa: PLC0415

    other = await ModelStore(live.database).create_base_language("de", "Deutsch", "weights/de")
    model = await customer.trainable_model()
    body = {"name": "x", "language_id": other, "organization_id": customer.id}
    await customer.http.post(f"/custom_models/{model['id']}/run")
    busy = await customer.http.put(f"/custom_models/{model['id']}", json=body)
    assert (busy.status_code, busy.json()["code"]) == (409, "run_active")
    runs = (await customer.http.get(f"/custom_models/{model['id']}/runs")).json()
    await customer.http.post(f"/custom_models/{model['id']}/runs/{runs['result'][0]['id']}/cancel")
    changed = await customer.http.put(f"/custom_models/{model['id']}", json=body)
    assert changed.json()["base_language_key"] == "de"
    assert_model(changed.json(), status=1)


async def test_delete_hides_the_model_at_once_and_its_queued_run_is_cancelled(live, customer):
    model = await customer.trainable_model()
    await customer.http.post(f"/custom_models/{model['id']}/run")
    assert (await customer.http.delete(f"/custom_models/{model['id']}")).status_code == 204
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/data"), ("POST", "/run")):
        body = (
            {"name": "x", "language_id": customer.base_id, "organization_id": customer.id} if method == "PUT" else None
        )
        answer = await customer.http.request(method, f"/custom_models/{model['id']}{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert (await live.database.fetch_row("select status from training_runs"))["status"] == 1
    assert (await customer.http.get("/speech-to-text/models")).json() == {"count": 0, "total_results": 0, "result": []}


async def test_every_field_at_fault_is_named(customer):
    for body in (
        {},
        {"name": "", "language_id": 0, "organization_id": -1},
        {"name": 7, "language_id": "1", "organization_id": True},
        {"name": "a\x00b", "language_id": 1.5, "organization_id": None},
        {"name": "   ", "language_id": 2**63, "organization_id": 10**30},
    ):
        answer = await customer.http.post("/custom_models", json=body)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert {error["field"] for error in answer.json()["errors"]} == {"name", "language_id", "organization_id"}


async def test_an_unknown_language_is_a_422_on_its_field(customer):
    body = {"name": "x", "language_id": 999_999, "organization_id": customer.id}
    answer = await customer.http.post("/custom_models", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["language_id"]


async def test_another_organizations_id_in_a_body_is_403_whether_it_exists_or_not(customer, stranger):
    answers = [
        await customer.http.post(
            "/custom_models", json={"name": "x", "language_id": customer.base_id, "organization_id": other}
        )
        for other in (stranger.id, 999_999)
    ]
    assert [(a.status_code, a.json()["code"]) for a in answers] == [(403, "organization_mismatch")] * 2
    assert answers[0].content == answers[1].content


async def test_a_path_id_that_is_no_positive_64_bit_integer_is_404(customer):
    for bad in ("0", "-1", "abc", "1.5", str(2**63), "9" * 30, "%00", "1e3", "+1", "01"):
        answer = await customer.http.get(f"/custom_models/{bad}")
        assert (bad, answer.status_code, answer.json()["code"]) == (bad, 404, "not_found")


async def test_malformed_json_is_400(customer):
    for body in (b"{", b"", b"nope", b'{"name": NaN}', b"[" * 60_000, b"\xff\xfe"):
        answer = await customer.http.post("/custom_models", content=body, headers={"Content-Type": "application/json"})
        assert (body[:9], answer.status_code, answer.json()["code"]) == (body[:9], 400, "malformed_json")


async def test_a_trailing_slash_works_without_a_redirect(customer):
    model = await customer.model()
    answer = await customer.http.get(f"/custom_models/{model['id']}/", follow_redirects=False)
    assert (answer.status_code, answer.json()["id"]) == (200, model["id"])
    body = {"name": "x", "language_id": customer.base_id, "organization_id": customer.id}
    assert (await customer.http.post("/custom_models/", json=body, follow_redirects=False)).status_code == 201


async def test_a_poll_is_answered_with_304_until_something_changes(customer):
    model = await customer.model()
    first = await customer.http.get(f"/custom_models/{model['id']}")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    assert first.headers["vary"] == "Authorization"
    again = await customer.http.get(f"/custom_models/{model['id']}", headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    listed = (await customer.http.get("/speech-to-text/models")).headers["etag"]
    same = await customer.http.get("/speech-to-text/models", headers={"If-None-Match": f'"x", W/{listed}'})
    assert same.status_code == 304
    await customer.feed(model["id"])
    now = await customer.http.get(f"/custom_models/{model['id']}", headers={"If-None-Match": tag})
    assert (now.status_code, now.json()["is_trainable"]) == (200, True)
    changed = await customer.http.get("/speech-to-text/models", headers={"If-None-Match": listed})
    assert changed.status_code == 200


async def test_the_list_pages_sorts_and_searches_literally(live, customer):
    names = ["b", "A", "a", "ä50%", "x_y", "xzy", "Ärzte", "b"]
    for name in names:
        await customer.model(name)
    everything = (await customer.http.get("/speech-to-text/models")).json()
    assert (everything["count"], everything["total_results"]) == (8, 8)

    async def listed(**query):
        return [m["name"] for m in (await customer.http.get("/speech-to-text/models", params=query)).json()["result"]]

    for sort in ("id", "name", "key", "last_modified", "base_language_key"):
        for direction in ("asc", "desc"):
            got = (
                await customer.http.get("/speech-to-text/models", params={"sort": sort, "direction": direction})
            ).json()
            expected = sorted(
                sorted(everything["result"], key=lambda m: m["id"]), key=lambda m: m[sort], reverse=direction == "desc"
            )
            assert [m["id"] for m in got["result"]] == [m["id"] for m in expected], (sort, direction)
    assert await listed(q="50%") == ["ä50%"]
    assert await listed(q="x_y") == ["x_y"]
    assert await listed(q="ÄR") == ["Ärzte"]
    assert await listed(q="%") == ["ä50%"]
    assert await listed(sort="name", offset=2, limit=3) == ["b", "b", "x_y"]
    page = (await customer.http.get("/speech-to-text/models", params={"q": "b", "limit": 1, "sort": "name"})).json()
    assert page["count"] == 1
    beyond = (await customer.http.get("/speech-to-text/models", params={"offset": 100})).json()
    assert beyond == {"count": 0, "total_results": 8, "result": []}


async def test_models_without_a_run_are_last_in_both_directions(customer):
    models = [await customer.trainable_model() for _ in range(3)]
    await customer.http.post(f"/custom_models/{models[1]['id']}/run")
    for direction in ("asc", "desc"):
        page = (
            await customer.http.get(
                "/speech-to-text/models", params={"sort": "training_status", "direction": direction}
            )
        ).json()
        assert [m["id"] for m in page["result"]] == [models[1]["id"], models[0]["id"], models[2]["id"]]


async def test_a_bad_query_is_a_422_that_names_the_field(customer):
    for query, field in (
        ({"sort": "nope"}, "sort"),
        ({"direction": "up"}, "direction"),
        ({"limit": "101"}, "limit"),
        ({"limit": "0"}, "limit"),
        ({"offset": "-1"}, "offset"),
        ({"offset": "x"}, "offset"),
        ({"q": "x" * 201}, "q"),
    ):
        answer = await customer.http.get("/speech-to-text/models", params=query)
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_missing_or_wrong_credentials_are_401(live):
    for authorization in (None, "", "Bearer", "Bearer wrong", "Basic dTpw", "Bearer " + "x" * 500):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = await live.client(None).get("/speech-to-text/models", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_long_list_of_tags_costs_no_more_than_a_short_one():
    def cost(characters):
        tags = "," * characters
        began = time.process_time()
        for _ in range(500):
            present.matches(tags, '"abc"')
        return time.process_time() - began

    assert cost(60_000) < 5 * cost(900)
    assert present.matches('"x", W/"abc" ', '"abc"')
