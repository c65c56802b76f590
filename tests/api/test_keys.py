"""Keys: hashed, rotated, revoked at once; rates, kept answers, the audit trail, quotas."""

import asyncio
import hashlib

import pytest

from worker.api import keys


async def test_only_the_digest_of_a_key_is_stored(live, customer):
    dumped = str([dict(row) for row in await live.database.fetch("select * from api_keys")])
    assert customer.key.secret not in dumped
    row = await live.database.fetch_row("select sha256 from api_keys where id = $1", customer.key.id)
    assert row["sha256"] == hashlib.sha256(customer.key.secret.encode()).digest()


async def test_a_revoked_key_stops_at_once_though_it_was_remembered(live, customer):
    assert (await customer.http.get("/caller")).status_code == 200
    await keys.revoke(live.keys, customer.key.id)
    async with asyncio.timeout(10):
        while (await customer.http.get("/caller")).status_code != 401:
            await asyncio.sleep(0.01)


async def test_rotation_gives_a_new_key_and_lets_the_old_one_go_on_for_a_while(live, customer):
    new = await keys.rotate(live.keys, customer.key.id, overlap_s=3600)
    assert (await customer.http.get("/caller")).status_code == 200
    assert (await live.client(new.secret).get("/caller")).json()["organization_id"] == customer.id
    late = await keys.rotate(live.keys, new.id, overlap_s=-1)
    assert (await live.client(new.secret).get("/caller")).status_code == 401
    assert (await live.client(late.secret).get("/caller")).status_code == 200


async def test_a_key_that_ended_cannot_be_revoked_again(live, customer):
    await keys.revoke(live.keys, customer.key.id)
    with pytest.raises(keys.NoSuchKey):
        await keys.revoke(live.keys, customer.key.id)
    with pytest.raises(ValueError, match="operator"):
        await keys.create(live.keys, customer.id, "operator", "x")


class TestRates:
    @pytest.fixture
    def api_settings(self):
        return {"api_rate_per_s": 0.001, "api_burst": 3}

    async def test_a_key_that_asks_too_often_is_told_when_to_come_back(self, live, customer, stranger):
        answers = [await customer.http.get("/caller") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert int(answers[3].headers["retry-after"]) > 0
        assert (await stranger.http.get("/caller")).status_code == 200


class TestQuotas:
    @pytest.fixture
    def api_settings(self):
        return {"api_quota_models": 2, "api_quota_stored_hours": 65 / 3600, "api_quota_waiting": 1}

    async def test_models_hours_and_waiting_runs_are_limited(self, customer):
        model = await customer.trainable_model()
        await customer.model()
        body = {"name": "x", "language_id": customer.base_id, "organization_id": customer.id}
        third = await customer.http.post("/custom_models", json=body)
        assert (third.status_code, third.json()["code"]) == (403, "quota_exceeded")
        assert (await customer.http.get("/speech-to-text/models")).json()["total_results"] == 2
        files = [("file", ("more.flac", b"")), ("file", ("more.wav", (await _wav(5))))]
        full = await customer.http.post(f"/custom_models/{model['id']}/data", files=files)
        assert (full.status_code, full.json()["code"]) == (403, "quota_exceeded")
        assert (await customer.http.get(f"/custom_models/{model['id']}/data")).json()["total_results"] == 2


async def _wav(seconds):
    from tests.api.conftest import wav  # noqa: PLC0415

    return wav(seconds)


async def test_the_same_idempotency_key_gets_the_same_answer_and_one_effect(customer):
    body = {"name": "x", "language_id": customer.base_id, "organization_id": customer.id}
    headers = {"Idempotency-Key": "k-1"}
    first = await customer.http.post("/custom_models", json=body, headers=headers)
    second = await customer.http.post("/custom_models", json=body, headers=headers)
    assert (second.status_code, second.content) == (first.status_code, first.content)
    other = await customer.http.post("/custom_models", json=body | {"name": "y"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert (await customer.http.get("/speech-to-text/models")).json()["total_results"] == 1
    model = await customer.model()
    refused = [await customer.http.post(f"/custom_models/{model['id']}/run", headers=headers) for _ in range(2)]
    assert refused[0].status_code == 422
    assert refused[0].content == refused[1].content


async def test_a_repeat_while_the_first_is_in_progress_is_409(live, customer):
    body = {"name": "x", "language_id": customer.base_id, "organization_id": customer.id}
    async with live.database.transaction() as connection:
        await connection.execute("lock table custom_models in share mode")
        first = asyncio.create_task(customer.http.post("/custom_models", json=body, headers={"Idempotency-Key": "k"}))
        waiting = "select count(*) as n from pg_locks where locktype = 'advisory' and classid = 1905"
        async with asyncio.timeout(10):
            while not (await live.database.fetch_row(waiting))["n"]:
                await asyncio.sleep(0.01)
        second = await customer.http.post("/custom_models", json=body, headers={"Idempotency-Key": "k"})
        assert (second.status_code, second.json()["code"]) == (409, "idempotency_in_progress")
    assert (await first).status_code == 201


async def test_every_write_is_in_the_audit_trail(customer):
    model = await customer.trainable_model()
    await customer.http.post(f"/custom_models/{model['id']}/run")
    await customer.http.delete(f"/custom_models/{model['id']}")
    trail = (await customer.http.get("/audit_log")).json()["result"]
    assert [entry["action"] for entry in trail] == ["delete_model", "start_run", "upload", "create_model", "create_key"]
    assert {entry["api_key_id"] for entry in trail[:-1]} == {customer.key.id}
