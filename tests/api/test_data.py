"""Training data: uploaded several at once or in parts, paired in any order, removed when nobody uses it."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest

from worker.api.tidy import Tidying
from worker.store.tidying import TidyStore

pytestmark = pytest.mark.usefixtures("housekeeping_by_hand")


async def items(customer, model):
    answer = (await customer.http.get(f"/custom_models/{model['id']}/data")).json()
    return {item["name"]: item for item in answer["result"]}


def stored(live):
    return sorted(str(p.relative_to(live.storage.root)) for p in live.storage.root.rglob("*") if p.is_file())


async def test_every_file_is_answered_with_its_verdict(customer, make_wav):
    model = await customer.model()
    files = [
        ("file", ("a.wav", make_wav(2))),
        ("file", ("a.txt", b"words")),
        ("file", ("lone.wav", make_wav(1))),
        ("file", ("bad.flac", b"not audio at all")),
        ("file", ("empty.txt", b"  \n")),
        ("file", ("tool.exe", b"MZ")),
    ]
    answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=files, data={"split": ""})
    assert answer.status_code == 201
    body = answer.json()
    assert {item["name"]: item["verdict"] for item in body["result"]} == {
        "a.wav": "waiting_for_run",
        "a.txt": "waiting_for_run",
        "lone.wav": "waiting_for_pair",
    }
    assert {one["name"]: one["reason_code"] for one in body["refused"]} == {
        "bad.flac": "unreadable_audio",
        "empty.txt": "empty_transcript",
        "tool.exe": "unsupported_media",
    }
    assert [item["duration_s"] for item in body["result"] if item["kind"] == "audio"] == [2.0, 1.0]
    assert set(body["result"][0]) == {
        "id", "name", "kind", "bytes", "duration_s", "split", "verdict", "reason_code", "reason", "created",
    }  # fmt: skip


async def test_halves_pair_in_any_order_and_part_when_one_goes(customer, make_wav):
    model = await customer.model()
    path = f"/custom_models/{model['id']}/data"
    await customer.http.post(path, files=[("f", ("a.txt", b"words"))])
    await asyncio.gather(
        customer.http.post(path, files=[("f", ("a.wav", make_wav(61)))]),
        customer.http.post(path, files=[("f", ("b.wav", make_wav(3)))]),
        customer.http.post(path, files=[("f", ("b.vtt", b"WEBVTT\n\n00:00.000 --> 00:02.000\nhello\n"))]),
    )
    now = await items(customer, model)
    assert {item["verdict"] for item in now.values()} == {"waiting_for_run"}
    assert (await customer.http.get(f"/custom_models/{model['id']}")).json()["is_trainable"] is True
    assert (await customer.http.delete(f"{path}/{now['a.txt']['id']}")).status_code == 204
    assert (await items(customer, model))["a.wav"]["verdict"] == "waiting_for_pair"
    assert (await customer.http.get(f"/custom_models/{model['id']}")).json()["is_trainable"] is False
    assert (await customer.http.delete(f"{path}/{now['a.txt']['id']}")).status_code == 404


async def test_a_manifest_pairs_the_audio_it_names(customer, make_wav):
    model = await customer.model()
    path = f"/custom_models/{model['id']}/data"
    await customer.http.post(path, files=[("f", ("one.wav", make_wav(40)))])
    lines = b'{"audio_filepath": "audio/one.wav", "text": "a"}\nnot json\n{"audio_filepath": "two.wav", "text": "b"}\n'
    answer = await customer.http.post(path, files=[("f", ("list.jsonl", lines))])
    assert answer.json()["result"][0]["kind"] == "manifest"
    await customer.http.post(path, files=[("f", ("two.wav", make_wav(40)))])
    assert {name: item["verdict"] for name, item in (await items(customer, model)).items()} == {
        "one.wav": "waiting_for_run", "two.wav": "waiting_for_run", "list.jsonl": "waiting_for_run",
    }  # fmt: skip
    manifest = (await items(customer, model))["list.jsonl"]["id"]
    await customer.http.delete(f"{path}/{manifest}")
    assert {item["verdict"] for item in (await items(customer, model)).values()} == {"waiting_for_pair"}


async def test_the_same_name_again_replaces_the_file(live, customer, make_wav):
    model = await customer.trainable_model()
    before = await items(customer, model)
    await customer.feed(model["id"], seconds=62)
    after = await items(customer, model)
    assert len(after) == 2
    assert after["speech.wav"]["duration_s"] == 62
    assert after["speech.wav"]["id"] == before["speech.wav"]["id"]
    counts = await live.database.fetch_row("select data_items, usable_ms, data_bytes from custom_models")
    assert counts["usable_ms"] == 62_000
    assert counts["data_bytes"] == sum(item["bytes"] for item in after.values())


async def test_data_that_an_active_run_uses_stays(live, customer, make_wav):
    model = await customer.trainable_model()
    path = f"/custom_models/{model['id']}/data"
    used = await items(customer, model)
    await customer.http.post(f"/custom_models/{model['id']}/run")
    refused = await customer.http.delete(f"{path}/{used['speech.wav']['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "run_active")
    replaced = await customer.http.post(path, files=[("f", ("speech.txt", b"other words"))])
    assert (replaced.status_code, replaced.json()["code"]) == (409, "run_active")
    assert (await customer.http.post(path, files=[("f", ("more.txt", b"words"))])).status_code == 201


async def test_a_large_file_comes_in_parts_and_goes_on_after_a_break(live, customer, make_wav):
    model = await customer.model()
    whole = make_wav(90)
    made = await customer.http.post(
        f"/custom_models/{model['id']}/uploads", json={"name": "long.wav", "bytes": len(whole)}
    )
    assert made.status_code == 201
    address = f"/custom_models/{model['id']}/uploads/{made.json()['id']}"
    third = len(whole) // 3

    async def send(offset, data):
        return await customer.http.patch(address, content=data, headers={"Upload-Offset": str(offset)})

    assert (await send(0, whole[:third])).json()["received"] == third
    wrong = await send(0, whole[:third])
    assert (wrong.status_code, wrong.json()["code"]) == (409, "wrong_offset")
    at = (await customer.http.get(address)).json()["received"]
    assert (await send(at, whole[at : 2 * third])).json()["item"] is None
    over = await send(2 * third, whole[2 * third :] + b"x")
    assert (over.status_code, over.json()["code"]) == (413, "too_large")
    done = await send(2 * third, whole[2 * third :])
    assert (done.status_code, done.json()["item"]["duration_s"]) == (200, 90.0)
    assert (await customer.http.get(address)).status_code == 404
    row = await live.database.fetch_row("select address, sha256 from training_data")
    assert await live.storage.get_bytes(row["address"], 10**8) == whole


async def test_a_part_that_breaks_off_is_not_counted(live, customer, make_wav):
    model = await customer.model()
    made = await customer.http.post(
        f"/custom_models/{model['id']}/uploads", json={"name": "long.wav", "bytes": 1_000_000}
    )
    address = f"/api/v3/custom_models/{model['id']}/uploads/{made.json()['id']}"
    host, _, port = live.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"PATCH {address} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {customer.key.secret}\r\n"
    head += "Upload-Offset: 0\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + b"x" * 300_000)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await customer.http.get(address.removeprefix("/api/v3"))).json()["received"] == 0


async def test_a_refused_upload_stores_nothing(live, customer, make_wav):
    model = await customer.model()
    before = stored(live)
    hours = (8_000 << 44) | (15 << 36) | 7 * 3_600 * 8_000  # rate, 16 bits, samples: silence takes few bytes
    too_long = b"fLaC\x80\0\0\x22" + b"\xff" * 4 + bytes(6) + hours.to_bytes(8, "big") + bytes(16 + 40_000)
    for name, content, expected in (
        ("../../etc/passwd.txt", b"x", (422, "bad_file_name")),
        ("a/../b.txt", b"x", (422, "bad_file_name")),
        ("..\\x.txt", b"x", (422, "bad_file_name")),
        ("tool.exe", b"x", (415, "unsupported_media")),
        ("x.wav", b"RIFF", (422, "unreadable_audio")),
        ("x.flac", os.urandom(3_000), (422, "unreadable_audio")),
        ("x.txt", b"\xff\xfe\x00", (422, "unreadable_transcript")),
        ("x.srt", b"no cues", (422, "unreadable_transcript")),
        ("x.jsonl", b"[]\n", (422, "unreadable_manifest")),
        ("x.txt", b"", (422, "empty_transcript")),
        ("long.flac", too_long, (413, "too_long")),
    ):
        answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=[("f", (name, content))])
        assert (name, answer.status_code, answer.json()["code"]) == (name, *expected), answer.text
    assert stored(live) == before
    assert list(Path(live.settings.api_upload_folder).iterdir()) == []
    assert (await customer.http.get(f"/custom_models/{model['id']}/data")).json()["total_results"] == 0


class TestLimits:
    @pytest.fixture
    def api_settings(self):
        return {"api_largest_file_bytes": 100_000, "api_largest_request_bytes": 200_000, "api_most_files": 3}

    async def test_sizes_and_counts_are_limited_while_they_arrive(self, live, customer, make_wav):
        model = await customer.model()
        path = f"/custom_models/{model['id']}/data"
        big = await customer.http.post(path, files=[("f", ("a.wav", make_wav(8)))])
        assert (big.status_code, big.json()["code"]) == (413, "too_large")
        many = await customer.http.post(path, files=[("f", (f"{n}.txt", b"x")) for n in range(4)])
        assert (many.status_code, many.json()["code"]) == (413, "too_many_files")

        async def endless():
            yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.wav"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 10_000

        answer = await customer.http.post(
            path, content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert stored(live) == []


async def test_bytes_without_an_owner_are_removed_and_a_deleted_model_leaves_nothing(live, customer):
    model = await customer.trainable_model()
    await live.storage.put_bytes("runs/00000000-0000-4000-8000-000000000000/manifest.jsonl", b"x")
    api = live.app.state.api
    tidying = Tidying(TidyStore(api.database), live.storage, api.webhooks, api.encryption)
    await customer.feed(model["id"], seconds=62)
    assert len(stored(live)) == 4
    await live.database.execute("update removals set created_at = now() - interval '2 hours'")
    await tidying.once()
    assert len(stored(live)) == 3
    await customer.http.post(f"/custom_models/{model['id']}/run")
    [run] = (await customer.http.get(f"/custom_models/{model['id']}/runs")).json()["result"]
    for key in (f"runs/{run['id']}/1/train/model", f"steps/{run['id']}/1-train-1/log"):
        await live.storage.put_bytes(key, b"x")
    await customer.http.delete(f"/custom_models/{model['id']}")
    while await tidying.once():
        pass
    assert [name for name in stored(live) if "models" in name or run["id"] in name] == []


async def test_a_missing_boundary_and_other_media_are_refused(customer):
    model = await customer.model()
    path = f"/custom_models/{model['id']}/data"
    for kind, body, expected in (
        ("multipart/form-data", b"x", (400, "malformed_multipart")),
        ("multipart/form-data; boundary=b", b"nonsense", (400, "malformed_multipart")),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data", (400, "malformed_multipart")),
        ("multipart/form-data; boundary=b", b"--b--\r\n", (422, "no_files")),
        ("application/json", b"{}", (415, "unsupported_media")),
        ("", b"", (415, "unsupported_media")),
    ):
        answer = await customer.http.post(path, content=body, headers={"Content-Type": kind})
        assert (kind, body, answer.status_code, answer.json()["code"]) == (kind, body, *expected)


async def test_an_upload_of_a_key_that_lost_its_connection_leaves_no_spool(live, customer):
    model = await customer.model()

    async def broken():
        yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.wav"\r\n\r\n'
        yield b"x" * 100_000
        raise ConnectionError

    with pytest.raises((ConnectionError, httpx.HTTPError)):
        await customer.http.post(
            f"/custom_models/{model['id']}/data",
            content=broken(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
    async with asyncio.timeout(10):
        while Path(live.settings.api_upload_folder).exists() and list(Path(live.settings.api_upload_folder).iterdir()):
            await asyncio.sleep(0.01)


async def test_uploads_and_removals_at_once_never_block_each_other(customer, make_wav):
    model = await customer.model()
    path = f"/custom_models/{model['id']}/data"

    async def come_and_go(number):
        files = [("f", (f"{number}.wav", make_wav(1))), ("f", (f"{number}.txt", b"words"))]
        for _ in range(3):
            made = await customer.http.post(path, files=files)
            assert made.status_code == 201, made.text
            gone = await customer.http.delete(f"{path}/{made.json()['result'][0]['id']}")
            assert gone.status_code == 204, gone.text

    await asyncio.gather(*(come_and_go(number) for number in range(6)))
    left = await items(customer, model)
    assert {item["verdict"] for item in left.values()} == {"waiting_for_pair"}
    assert len(left) == 6
