"""Quotas count what is really there, hold whoever races, and say which one it is and what to do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from worker.api.tidy import Tidying
from worker.store.api import Limits, set_quota
from worker.store.tidying import TidyStore

pytestmark = pytest.mark.usefixtures("housekeeping_by_hand")


async def limited(live: Any, customer: Any, **limits: Any) -> None:
    async with live.database.transaction() as connection:
        await set_quota(connection, customer.id, Limits(**limits))


async def counts(live: Any, customer: Any) -> dict[str, int]:
    row = await live.database.fetch_row("select * from organization_counts where organization_id = $1", customer.id)
    return dict(row)


def on_disk(live: Any) -> dict[str, int]:
    files = [path for path in live.storage.root.rglob("*") if path.is_file()]
    return {path.relative_to(live.storage.root).as_posix(): path.stat().st_size for path in files}


async def send(customer: Any, model: Any, *files: tuple[str, bytes]) -> Any:
    parts = [("f", file) for file in files]
    return await customer.http.post(f"/custom_models/{model['id']}/data", files=parts)


async def begin(customer: Any, model: Any, size: int, name: str = "long.wav") -> Any:
    return await customer.http.post(f"/custom_models/{model['id']}/uploads", json={"name": name, "bytes": size})


def refused(answer: Any, *words: str) -> None:
    assert (answer.status_code, answer.json().get("code")) == (403, "quota_exceeded"), answer.text
    for word in words:
        assert word in answer.json()["detail"], answer.json()["detail"]


async def test_a_transcript_beyond_the_quota_of_bytes_is_refused_and_stores_nothing(live, customer):
    model = await customer.model()
    await limited(live, customer, bytes=10_000)
    assert (await send(customer, model, ("a.txt", b"word " * 1_900))).status_code == 201
    refused(await send(customer, model, ("b.txt", b"word " * 1_900)), "19 kB", "stored bytes", "Delete")
    assert sum(on_disk(live).values()) == 9_500
    assert (await counts(live, customer))["arriving_bytes"] == 0


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 500000000", b""),
        ("Transfer-Encoding: chunked", b"40000\r\n" + b"x" * 0x40000 + b"\r\n"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_before_its_end(live, customer, header, body):
    model = await customer.model()
    await limited(live, customer, bytes=1_000)
    host, _, port = live.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /api/v3/custom_models/{model['id']}/data HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {customer.key.secret}\r\nContent-Type: multipart/form-data; boundary=b\r\n{header}\r\n\r\n"
    )
    begin = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\n'
    writer.write(head.encode())
    if body:
        writer.write(f"{len(begin):x}\r\n".encode() + begin + b"\r\n" + body * 8)  # 2 MiB, and no end
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"}")
    writer.close()
    assert b"quota_exceeded" in answer
    assert on_disk(live) == {}


async def test_unfinished_uploads_count_with_the_bytes_that_they_announce(live, customer, make_wav):
    model = await customer.model()
    whole = make_wav(3)
    await limited(live, customer, bytes=len(whole) + 10, uploads=2)
    first = await begin(customer, model, len(whole))
    assert first.status_code == 201
    refused(await begin(customer, model, 100), "stored bytes")
    assert (await begin(customer, model, 1, "b.wav")).status_code == 201
    refused(await begin(customer, model, 1, "c.wav"), "unfinished uploads", "2")
    address = f"/custom_models/{model['id']}/uploads/{first.json()['id']}"
    done = await customer.http.patch(address, content=whole, headers={"Upload-Offset": "0"})
    assert done.status_code == 200, done.text  # its own announced bytes do not stand in its way
    now = await counts(live, customer)
    assert (now["stored_bytes"], now["upload_bytes"], now["uploads"], now["arriving_bytes"]) == (len(whole), 1, 1, 0)


async def test_racing_uploads_never_get_beyond_the_quota(live, customer):
    model = await customer.model()
    await limited(live, customer, bytes=30_000)
    answers = await asyncio.gather(*(send(customer, model, (f"{n}.txt", b"word " * 2_000)) for n in range(8)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(201) == 3, codes
    assert sum(on_disk(live).values()) == 30_000
    starts = await asyncio.gather(*(begin(customer, model, 1, f"{n}.wav") for n in range(5)))
    assert {answer.status_code for answer in starts} == {403}


async def test_of_racing_parts_only_the_bytes_of_the_one_that_won_stay(live, customer):
    model = await customer.model()
    made = (await begin(customer, model, 100_000)).json()
    address = f"/custom_models/{model['id']}/uploads/{made['id']}"

    async def part():
        return await customer.http.patch(address, content=b"x" * 40_000, headers={"Upload-Offset": "0"})

    answers = await asyncio.gather(*(part() for _ in range(20)))
    assert sorted(answer.status_code for answer in answers)[:2] == [200, 409]
    assert list(on_disk(live).values()) == [40_000]
    assert await live.database.fetch("select * from removals") == []


async def test_files_and_manifest_names_are_limited_row_by_row(live, customer):
    model = await customer.model()
    await limited(live, customer, files=3, manifest_names=4)
    assert (await send(customer, model, ("a.txt", b"x"), ("b.txt", b"x"), ("c.txt", b"x"))).status_code == 201
    assert (await send(customer, model, ("a.txt", b"y"))).status_code == 201  # replaced, not added
    refused(await send(customer, model, ("d.txt", b"x")), "files of training data", "3")
    other = await customer.model("Other")
    await limited(live, customer, files=10, manifest_names=4)
    lines = b"".join(json.dumps({"audio_filepath": f"{n}.wav"}).encode() + b"\n" for n in range(3))
    assert (await send(customer, other, ("one.jsonl", lines))).status_code == 201
    refused(await send(customer, model, ("two.jsonl", lines)), "named in manifests", "6")
    assert (await counts(live, customer))["manifest_names"] == 3


async def test_deleting_frees_every_quota_at_once_and_reading_stays_possible(live, customer):
    model = await customer.model()
    lines = json.dumps({"audio_filepath": "1.wav"}).encode()
    made = (await send(customer, model, ("a.txt", b"x" * 1_000), ("one.jsonl", lines))).json()["result"]
    await begin(customer, model, 500)
    await limited(live, customer, bytes=10, files=0, uploads=0, manifest_names=0, hours=0.0)
    assert (await customer.http.get(f"/custom_models/{model['id']}/data")).json()["total_results"] == 2
    assert (await customer.http.delete(f"/custom_models/{model['id']}/data/{made[0]['id']}")).status_code == 204
    now = await counts(live, customer)
    assert (now["stored_files"], now["manifest_names"], now["uploads"], now["upload_bytes"]) == (1, 1, 1, 500)
    assert (await customer.http.delete(f"/custom_models/{model['id']}")).status_code == 204
    now = await counts(live, customer)
    held = ("stored_files", "manifest_names", "uploads", "upload_bytes", "stored_bytes", "stored_ms", "arriving_bytes")
    assert {name: now[name] for name in held} == dict.fromkeys(held, 0)
    assert now["leaving_bytes"] == 1_000 + len(lines)
    api = live.app.state.api
    tidying = Tidying(TidyStore(live.database), live.storage, api.webhooks, api.encryption)
    while await tidying.once():
        pass
    assert (await counts(live, customer))["leaving_bytes"] == 0
    assert on_disk(live) == {}


async def test_deleting_and_uploading_in_a_loop_keeps_no_more_than_twice_the_quota(live, customer):
    model = await customer.model()
    await limited(live, customer, bytes=10_000)
    for _ in range(3):
        answer = await send(customer, model, ("a.txt", b"x" * 9_000))
        if answer.status_code != 201:
            break
        [item] = answer.json()["result"]
        await customer.http.delete(f"/custom_models/{model['id']}/data/{item['id']}")
    refused(answer, "still lie in storage")
    assert sum(on_disk(live).values()) <= 20_000
    api = live.app.state.api
    tidying = Tidying(TidyStore(live.database), live.storage, api.webhooks, api.encryption)
    while await tidying.once():  # no hour to wait for: an address is never used twice
        pass
    assert (await send(customer, model, ("a.txt", b"x" * 9_000))).status_code == 201


async def test_a_file_sent_again_unchanged_keeps_its_bytes_and_leaves_no_second_copy(live, customer):
    model = await customer.model()
    await send(customer, model, ("a.txt", b"words"))
    before = on_disk(live)
    assert (await send(customer, model, ("a.txt", b"words"))).status_code == 201
    assert on_disk(live) == before
    assert await live.database.fetch("select * from removals") == []


async def test_a_file_whose_bytes_were_lost_is_healed_by_sending_it_again(live, customer):
    model = await customer.model()
    await send(customer, model, ("a.txt", b"words"))
    [lost] = on_disk(live)
    await live.storage.delete([lost])
    assert (await send(customer, model, ("a.txt", b"words"))).status_code == 201
    [healed] = on_disk(live)
    row = await live.database.fetch_row("select address from training_data")
    assert row["address"] == healed != lost


async def test_a_repeat_of_what_used_up_the_quota_gets_its_answer(live, customer):
    model = await customer.model()
    await limited(live, customer, bytes=5)
    once = {"Idempotency-Key": "one"}
    path, files = f"/custom_models/{model['id']}/data", [("f", ("a.txt", b"words"))]
    first = await customer.http.post(path, files=files, headers=once)
    again = await customer.http.post(path, files=files, headers=once)
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    refused(await customer.http.post(path, files=files))


async def test_a_repeated_request_leaves_nothing_of_what_it_sent_again(live, customer):
    model = await customer.model()
    for _ in range(2):
        answer = await customer.http.post(
            f"/custom_models/{model['id']}/data", files=[("f", ("a.txt", b"words"))], headers={"Idempotency-Key": "one"}
        )
        assert answer.status_code == 201
    assert len(on_disk(live)) == 1
    assert await live.database.fetch("select * from removals") == []


async def test_making_and_deleting_in_a_loop_ends_for_the_day_and_deleting_never_does(live, customer):
    await limited(live, customer, changes=5)
    models = [await customer.model(f"Model {n}") for n in range(5)]
    body = {"name": "One more", "language_id": customer.base_id, "organization_id": customer.id}
    refused(await customer.http.post("/custom_models", json=body), "changes a day", "tomorrow")
    refused(await send(customer, models[0], ("a.txt", b"x")), "changes a day")
    for model in models:
        assert (await customer.http.delete(f"/custom_models/{model['id']}")).status_code == 204
    await live.database.execute("update organization_counts set changes_on = current_date - 1")
    assert (await customer.http.post("/custom_models", json=body)).status_code == 201


async def test_kept_refusals_end_for_the_day_and_refusing_does_not(live, customer):
    """Each is a row for a day, whatever is deleted: refused requests with ever new names must not fill the table."""
    await limited(live, customer, changes=3)
    for number in range(6):
        headers = {"Idempotency-Key": f"k-{number}"}
        for method, path in (("POST", "/custom_models/77/run"), ("DELETE", "/custom_models/77/data/1")):
            answers = [await customer.http.request(method, path, headers=headers) for _ in range(2)]
            assert [(one.status_code, one.json()["code"]) for one in answers] == [(404, "not_found")] * 2
    row = await live.database.fetch_row("select count(*) as n from idempotency_keys")
    assert row["n"] == 3
    assert (await counts(live, customer))["changes"] == 3


async def test_counts_are_what_the_rows_say_after_everything_has_come_and_gone(live, customer):
    async def come_and_go(number: int) -> None:
        model = await customer.model(f"Model {number}")
        lines = b"".join(json.dumps({"audio_filepath": f"{n}.wav"}).encode() + b"\n" for n in range(number + 1))
        made = (await send(customer, model, ("m.jsonl", lines), ("a.txt", b"x" * number))).json()
        await begin(customer, model, 100 + number)
        ended = (await begin(customer, model, 7, "b.wav")).json()
        await customer.http.delete(f"/custom_models/{model['id']}/uploads/{ended['id']}")
        if number % 3 == 1:
            await customer.http.delete(f"/custom_models/{model['id']}/data/{made['result'][0]['id']}")
        if number % 3 == 2:
            await customer.http.delete(f"/custom_models/{model['id']}")

    await asyncio.gather(*(come_and_go(number) for number in range(1, 7)))
    row = await live.database.fetch_row(
        """select
            (select count(*) from training_data d join custom_models m on m.id = d.custom_model_id where m.deleted_at is null)
                as stored_files,
            (select coalesce(sum(bytes), 0) from training_data d join custom_models m on m.id = d.custom_model_id
                where m.deleted_at is null) as stored_bytes,
            (select count(*) from manifest_names n join custom_models m on m.id = n.custom_model_id where m.deleted_at is null)
                as manifest_names,
            (select count(*) from uploads u join custom_models m on m.id = u.custom_model_id where m.deleted_at is null)
                as uploads,
            (select coalesce(sum(bytes), 0) from uploads u join custom_models m on m.id = u.custom_model_id
                where m.deleted_at is null) as upload_bytes,
            (select coalesce(sum(bytes), 0) from removals where arriving) as arriving_bytes,
            (select coalesce(sum(bytes), 0) from removals where not arriving)
                + (select coalesce(sum(bytes), 0) from training_data d join custom_models m on m.id = d.custom_model_id
                    where m.deleted_at is not null) as leaving_bytes"""
    )
    now = await counts(live, customer)
    assert {name: now[name] for name in dict(row)} == dict(row)


class TestDefaults:
    @pytest.fixture
    def api_settings(self) -> dict[str, Any]:
        return {"api_quota_stored_bytes": 5_000, "api_quota_uploads": 1}

    async def test_settings_count_where_an_organization_has_no_quota(self, live, customer, stranger):
        model = await customer.model()
        refused(await begin(customer, model, 5_001))
        assert (await begin(customer, model, 10)).status_code == 201
        refused(await begin(customer, model, 10, "b.wav"))
        other = await stranger.model()
        assert (await begin(stranger, other, 10)).status_code == 201  # one customer's use is nothing to another
        assert list(Path(live.settings.api_upload_folder).glob("*")) == []


class TestWebhooks:
    @pytest.fixture
    def api_settings(self) -> dict[str, Any]:
        return {"api_webhook_private": True}

    async def test_racing_registrations_never_get_beyond_the_limit(self, live, customer):
        answers = await asyncio.gather(
            *(customer.http.post("/webhooks", json={"url": f"http://127.0.0.1:9/{n}"}) for n in range(14))
        )
        assert sorted(answer.status_code for answer in answers) == [201] * 10 + [403] * 4
        rows = await live.database.fetch("select from webhooks where disabled_at is null")
        assert len(rows) == 10
