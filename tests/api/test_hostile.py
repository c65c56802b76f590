"""One caller's malice or bad luck stays his own: other organizations are served, and whoever is on call can see why."""

import asyncio
import contextlib
import json
import time

import pytest
import structlog
from python_multipart.multipart import MultipartParser

from worker.api import contents, incoming, outward
from worker.data.text_reader import ReadingLimits
from worker.errors import DatabaseAway, StorageAway


class Answering:
    """A receiver of webhooks that answers with these bytes."""

    def __init__(self, answer):
        self.answer = answer
        self.heard = 0
        self.over = asyncio.Event()
        self.talks = set()

    async def __call__(self, reader, writer):
        self.talks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            self.heard += 1
            if self.answer is None:
                await self.over.wait()
            writer.write(self.answer or b"")
            await writer.drain()


@contextlib.asynccontextmanager
async def answering(answer):
    made = Answering(answer)
    server = await asyncio.start_server(made, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        yield made
    finally:
        server.close()
        made.over.set()
        await asyncio.gather(*made.talks)


async def newest_delivery(customer, hook, wanted):
    async with asyncio.timeout(20):
        while True:
            newest = (await customer.http.get(f"/webhooks/{hook['id']}/deliveries")).json()["result"][0]
            if wanted(newest):
                return newest
            await asyncio.sleep(0.05)


class TestReceivers:
    @pytest.fixture
    def api_settings(self):
        return {"api_webhook_private": True}

    @pytest.mark.parametrize("status", [b"99999999999", b"000", b"1234", b"20"])
    async def test_a_status_that_is_none_is_a_failed_try_like_any_other(self, customer, status):
        async with answering(b"HTTP/1.1 " + status + b" X\r\n\r\n") as receiver:
            hook = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
            await customer.http.post(f"/webhooks/{hook['id']}/test")
            told = await newest_delivery(customer, hook, lambda one: one["error"])
        assert (told["status"], told["answer_status"], told["error"]) == ("waiting", None, "no answer: ValueError")

    async def test_a_fault_in_one_delivery_cancels_no_other(self, customer, stranger, monkeypatch):
        """Both are in the same handful; what was sent must be written down, or it is sent again."""
        honest = outward.Outward.post

        async def post(way, target, *args, **kwargs):
            if target.host == "localhost":
                raise RuntimeError("a fault of ours")
            await asyncio.sleep(0.2)
            return await honest(way, target, *args, **kwargs)

        monkeypatch.setattr(outward.Outward, "post", post)
        async with answering(b"HTTP/1.1 204 X\r\n\r\n") as receiver:
            bad = (await stranger.http.post("/webhooks", json={"url": "http://localhost:1/"})).json()
            good = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
            for _ in range(3):
                await stranger.http.post(f"/webhooks/{bad['id']}/test")
                await customer.http.post(f"/webhooks/{good['id']}/test")
            async with asyncio.timeout(15):
                while True:
                    log = (await customer.http.get(f"/webhooks/{good['id']}/deliveries")).json()["result"]
                    if all(one["status"] == "delivered" for one in log):
                        break
                    await asyncio.sleep(0.05)
        assert receiver.heard == 3
        failed = await newest_delivery(stranger, bad, lambda one: one["error"])
        assert failed["error"] == "a fault of ours; it is logged"

    async def test_a_receiver_that_never_answers_holds_nobody_else_up(self, live, customer, stranger):
        async with answering(None) as silent, answering(b"HTTP/1.1 204 X\r\n\r\n") as receiver:
            for _ in range(3):
                hook = (await stranger.http.post("/webhooks", json={"url": silent.url})).json()
                for _ in range(6):
                    await stranger.http.post(f"/webhooks/{hook['id']}/test")
            # As after a first try that failed: retries keep no order, so all of them are due.
            await live.database.execute("update webhook_deliveries set attempts = 1, due_at = now()")
            async with asyncio.timeout(10):
                while not silent.heard:
                    await asyncio.sleep(0.02)
            good = (await customer.http.post("/webhooks", json={"url": receiver.url})).json()
            await customer.http.post(f"/webhooks/{good['id']}/test")
            async with asyncio.timeout(6):
                while not receiver.heard:
                    await asyncio.sleep(0.05)


class TestRepeats:
    """The same answer for a day, although what it names is gone since."""

    async def test_of_a_webhooks_removal(self, customer, monkeypatch):
        async def outside(*_args, **_kwargs):
            return "93.184.216.34"

        monkeypatch.setattr(outward.Outward, "resolve", outside)
        hook = (await customer.http.post("/webhooks", json={"url": "https://customer.example/"})).json()
        for _ in range(2):
            answer = await customer.http.delete(f"/webhooks/{hook['id']}", headers={"Idempotency-Key": "gone"})
            assert answer.status_code == 204
        assert (await customer.http.delete(f"/webhooks/{hook['id']}")).status_code == 404

    async def test_of_an_uploads_end(self, customer):
        model = await customer.model()
        path = f"/custom_models/{model['id']}/uploads"
        upload = (await customer.http.post(path, json={"name": "a.txt", "bytes": 5})).json()
        for _ in range(2):
            answer = await customer.http.delete(f"{path}/{upload['id']}", headers={"Idempotency-Key": "gone"})
            assert answer.status_code == 204

    async def test_of_an_uploads_last_part(self, customer):
        model = await customer.model()
        path = f"/custom_models/{model['id']}/uploads"
        upload = (await customer.http.post(path, json={"name": "a.txt", "bytes": 5})).json()
        headers = {"Idempotency-Key": "last", "Upload-Offset": "0"}
        answers = [
            await customer.http.patch(f"{path}/{upload['id']}", content=b"words", headers=headers) for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content


async def test_storage_that_is_away_in_an_upload_is_a_503_and_not_a_fault(live, customer, monkeypatch):
    async def away(*_args, **_kwargs):
        raise StorageAway("no answer")

    monkeypatch.setattr(live.storage, "put_file", away)
    model = await customer.model()
    answer = await customer.http.post(
        f"/custom_models/{model['id']}/data", files=[("f", ("a.txt", b"words")), ("f", ("b.txt", b"words"))]
    )
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")


async def test_a_spool_disk_without_room_is_a_503_and_not_a_fault(customer, live):
    live.settings.api_upload_folder.parent.joinpath("uploads").write_bytes(b"a file where the folder should be")
    model = await customer.model()
    answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=[("f", ("a.txt", b"words"))])
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_database_that_is_away_is_logged_when_it_cannot_tell_who_calls(live, monkeypatch):
    key = await live.key(await live.organization("New"))

    async def away(*_args, **_kwargs):
        raise DatabaseAway("no answer")

    monkeypatch.setattr("worker.store.api_keys.KeyStore.by_digest", away)
    with structlog.testing.capture_logs() as logged:
        answer = await live.client(key.secret).get("/custom_models/1")
    assert answer.status_code == 503
    assert [line for line in logged if line["event"] == "away" and line["path"] == "/api/v3/custom_models/1"]


class TestUploadSlots:
    @pytest.fixture
    def api_settings(self):
        return {"api_uploads_at_once": 4}

    async def test_one_organization_cannot_hold_them_all(self, live, customer, stranger):
        """Slow senders are honest on bad lines; they may not keep everybody else out."""
        model, other = await customer.model(), await stranger.model()
        asked = asyncio.Event()

        async def slowly():
            yield b"--x\r\n"
            asked.set()
            await asyncio.sleep(30)

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        path = f"/custom_models/{model['id']}/data"
        slow = [asyncio.create_task(customer.http.post(path, content=slowly(), headers=headers)) for _ in range(8)]
        await asked.wait()
        await asyncio.sleep(0.5)
        answer = await stranger.http.post(f"/custom_models/{other['id']}/data", files=[("f", ("a.txt", b"words"))])
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert answer.status_code == 201


async def test_one_organization_cannot_be_everybody_who_watches(live, customer, stranger):
    places = live.app.state.api.limits.watchers
    places.total, places.most = 8, 2
    model, other = await customer.model(), await stranger.model()
    lines = []  # a reader that is let go ends its request
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            answer = await stack.enter_async_context(
                customer.http.stream("GET", f"/custom_models/{model['id']}/changes")
            )
            if answer.status_code == 200:
                lines.append(answer.aiter_lines())
                assert await anext(lines[-1])
        async with stranger.http.stream("GET", f"/custom_models/{other['id']}/changes") as mine:
            assert mine.status_code == 200


async def test_manifests_of_one_request_name_no_more_audio_together_than_one_may(customer, monkeypatch):
    monkeypatch.setattr(contents, "MOST_NAMES", 5)
    model = await customer.model()
    lines = b"".join(b'{"audio_filepath": "%d.wav", "text": "a"}\n' % n for n in range(4))
    answer = await customer.http.post(
        f"/custom_models/{model['id']}/data", files=[("f", ("a.jsonl", lines)), ("f", ("b.jsonl", lines))]
    )
    assert answer.status_code == 201
    assert [(one["name"], one["reason_code"]) for one in answer.json()["refused"]] == [("b.jsonl", "too_large")]


@pytest.mark.parametrize("url", ["https://[fec0::1]/", "https://[::7f00:1]/", "https://[64:ff9b:1::a00:1]/"])
async def test_old_internal_addresses_are_refused_too(customer, url):
    answer = await customer.http.post("/webhooks", json={"url": url})
    assert (answer.status_code, answer.json()["code"]) == (422, "address_refused")


class TestTexts:
    """Uploaded texts are read beside the process that answers everybody."""

    @staticmethod
    def line(size: int) -> bytes:
        return json.dumps(
            {"audio_filepath": "\u0316\u0301" * (size // 4), "text": "hello"}, ensure_ascii=False
        ).encode()

    async def test_a_manifest_costs_the_api_no_more_than_its_length(self, customer):
        """Quadratic, four times the bytes are sixteen times the processor time."""
        model = await customer.model()
        seconds = []
        for size in (32 << 10, 128 << 10):
            began = time.process_time()
            answer = await customer.http.post(
                f"/custom_models/{model['id']}/data", files=[("f", ("m.jsonl", self.line(size)))]
            )
            seconds.append(time.process_time() - began)
        assert seconds[1] < 8 * max(seconds[0], 0.05)
        assert (answer.status_code, answer.json()["code"]) == (422, "unreadable_manifest")

    async def test_file_names_cost_the_api_no_more_than_their_length(self, customer):
        model = await customer.model()
        seconds = []
        for marks in (250, 1_000):
            files = [("f", ("\u0316\u0301" * (marks // 2) + f"{number}.txt", b"words")) for number in range(100)]
            began = time.process_time()
            answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=files)
            seconds.append(time.process_time() - began)
        assert seconds[1] < 8 * max(seconds[0], 0.02)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_file_name")

    async def test_a_text_that_is_too_much_is_turned_away_and_the_others_are_kept(self, live, customer):
        for reader in live.app.state.api.readers._all:
            reader._limits = ReadingLimits(memory_bytes=36 << 20)
        model = await customer.model()
        files = [
            ("f", ("a.txt", b"words")),
            ("f", ("m.jsonl", b'{"a":[' + b"[]," * 300_000 + b"1]}")),
            ("f", ("b.jsonl", b'{"audio_filepath": "x.wav", "text": "hello"}\n')),
        ]
        answer = (await customer.http.post(f"/custom_models/{model['id']}/data", files=files)).json()
        assert [item["name"] for item in answer["result"]] == ["a.txt", "b.jsonl"]
        [refused] = answer["refused"]
        assert (refused["name"], refused["reason_code"]) == ("m.jsonl", "unreadable_manifest")
        assert "MB of memory" in refused["reason"]

    @pytest.mark.parametrize(("name", "most_mib"), [("a.txt", 1), ("a.vtt", 8), ("a.SRT", 8), ("a.jsonl", 16)])
    async def test_a_text_has_a_size_that_fits_what_it_is(self, customer, name, most_mib):
        model = await customer.model()
        files = [("f", (name, b"x" * ((most_mib << 20) + 1)))]
        answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=files)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert f"{name[1:].lower()} file has at most {most_mib} MiB" in answer.json()["detail"]
        begun = {"name": name, "bytes": (most_mib << 20) + 1}
        answer = await customer.http.post(f"/custom_models/{model['id']}/uploads", json=begun)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        answer = await customer.http.post(
            f"/custom_models/{model['id']}/uploads", json=begun | {"bytes": most_mib << 20}
        )
        assert answer.status_code == 201

    async def test_a_content_type_of_thousands_of_parameters_is_refused_unread(self, customer):
        model = await customer.model()
        headers = {"Content-Type": "multipart/form-data; " + ";" * 5_000 + "boundary=x"}
        answer = await customer.http.post(f"/custom_models/{model['id']}/data", content=b"--x--", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_multipart")

    async def test_a_host_without_a_process_to_spare_is_a_503_and_not_a_fault(self, customer, monkeypatch):
        def none_left(*_args, **_kwargs):
            raise BlockingIOError(11, "Resource temporarily unavailable")

        model = await customer.model()
        monkeypatch.setattr("worker.data.text_reader.subprocess.Popen", none_left)
        answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=[("f", ("a.txt", b"words"))])
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_tiny_files_of_a_form_are_not_made_on_the_event_loop(live, tmp_path):
    """A thousand of them, and then a refusal, cost the others nothing: no file was made."""
    (folder := tmp_path / "spool").mkdir()
    spool = incoming._Spool(folder, live.settings, incoming.Incoming())
    parser = MultipartParser(b"m", spool.callbacks())
    parts = "".join(
        f'--m\r\nContent-Disposition: form-data; name="f"; filename="n{n}.txt"\r\n\r\nw\r\n' for n in range(990)
    )
    await incoming._parse(parser, (parts + "--m--\r\n").encode())
    assert [len(spool._into.arrived), list(folder.iterdir())] == [990, []]
    incoming._write_held(spool._into.arrived)
    assert {path.read_bytes() for path in folder.iterdir()} == {b"w"}


@pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 4_097, 200_000])
async def test_a_file_of_any_size_arrives_as_it_was_sent(customer, size):
    model = await customer.model()
    sent = b"word " * (size // 5) + b"w" * (size % 5)
    files = [("f", ("a.txt", sent)), ("f", ("b.txt", b"another file"))]
    answer = (await customer.http.post(f"/custom_models/{model['id']}/data", files=files)).json()
    taken = {item["name"]: item["bytes"] for item in answer["result"]}
    assert taken == ({"b.txt": 12} if size == 0 else {"a.txt": size, "b.txt": 12})
    assert [one["reason_code"] for one in answer["refused"]] == (["empty_transcript"] if size == 0 else [])
