"""What one organization waits for or sends costs the others nothing: locks, database connections, slots, room, streams."""

import asyncio
import contextlib
import itertools

import pytest

from tests.api.conftest import customer_of, wav
from tests.api.raw_http import answered, chunk, code, dribbling, head, status, talking
from tests.api.test_runs import RUNS, claim, started
from worker.api import bodies, limits, turns
from worker.api import keys as key_commands
from worker.store import api_data
from worker.store.api_data import NewItem
from worker.store.database import Database

HOLD = "select pg_advisory_xact_lock(1906, hashint8($1::bigint))"


@contextlib.asynccontextmanager
async def held(live, model_id):
    """The lock of a model's data, held as by another process."""
    database = Database(live.settings.database_url.get_secret_value(), size=1, name="holder")
    async with database.transaction() as connection:
        await connection.execute(HOLD, model_id)
        yield
    await database.close()


async def begun(live, many):
    """That so many requests are under way in the API."""
    async with asyncio.timeout(20):
        while live.app.state.api.limits.requests.taken < many:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def under_way(*requests):
    """Requests that need not end; they are given up at the end of the block."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def backends(live, condition):
    """Connections of the API's pool in a state."""
    row = await live.database.fetch_row(
        f"select count(*) as n from pg_stat_activity where application_name = 'api' and datname = current_database() and {condition}"
    )
    return row["n"]


class TestLocks:
    async def test_who_waits_for_a_models_lock_holds_no_connection(self, live, customer, stranger):
        """12 beginnings of uploads against a lock that is held elsewhere, while somebody else polls."""
        model, other = await customer.model(), await stranger.model()
        path = f"/custom_models/{model['id']}/uploads"
        async with held(live, model["id"]):
            begin = [customer.http.post(path, json={"name": f"{n}.txt", "bytes": 5}) for n in range(12)]
            async with under_way(*begin) as tasks:
                await begun(live, 12)
                for _ in range(20):
                    assert await backends(live, "wait_event_type = 'Lock'") == 0
                    assert (await stranger.http.get(f"/custom_models/{other['id']}")).status_code == 200
                    assert (await stranger.http.get("/caller")).status_code == 200
                assert not any(task.done() for task in tasks)

    async def test_waiting_requests_are_served_once_the_lock_is_free(self, live, customer):
        model = await customer.model()
        path = f"/custom_models/{model['id']}/uploads"
        begin = [customer.http.post(path, json={"name": f"{n}.txt", "bytes": 5}) for n in range(6)]
        async with under_way(*begin) as tasks:
            async with held(live, model["id"]):
                await begun(live, 6)
            answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [201] * 6

    @pytest.mark.parametrize("repeatable", [False, True])
    async def test_a_lock_that_is_held_for_long_is_a_503_and_nothing_is_done(
        self, live, customer, monkeypatch, repeatable
    ):
        monkeypatch.setattr("worker.api.once.WAIT_S", 0.3)
        model = await customer.model()
        headers = {"Idempotency-Key": "one"} if repeatable else {}
        path = f"/custom_models/{model['id']}/uploads"
        body = {"name": "a.txt", "bytes": 5}
        async with held(live, model["id"]):
            answer = await customer.http.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert (await live.database.fetch_row("select count(*) as n from uploads"))["n"] == 0
        # The refusal is no answer that is kept: the same request works later.
        assert (await customer.http.post(path, json=body, headers=headers)).status_code == 201

    async def test_the_queue_in_front_of_the_lock_is_not_waited_in_for_ever(self, live, customer, monkeypatch):
        monkeypatch.setattr(turns, "WAIT_S", 0.2)
        model = await customer.model()
        async with live.app.state.api.turns.of(model["id"]):
            answer = await customer.http.post(
                f"/custom_models/{model['id']}/uploads", json={"name": "a.txt", "bytes": 5}
            )
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert not live.app.state.api.turns._locks

    async def test_another_organizations_lock_is_not_waited_for(self, live, customer, stranger):
        """The right comes first: an answer that takes longer would tell that they are uploading."""
        model = await customer.model()
        async with held(live, model["id"]), live.app.state.api.turns.of(model["id"]), asyncio.timeout(8):
            answer = await stranger.http.delete(f"/custom_models/{model['id']}/data/1")
            missing = await stranger.http.delete("/custom_models/999999/data/1")
        assert (answer.status_code, answer.content) == (404, missing.content)

    async def test_a_wait_for_a_row_ends_as_503(self, live, customer):
        """The same for locks of rows, which are waited for with a connection, but not for long."""
        model = await customer.model()
        other = Database(live.settings.database_url.get_secret_value(), size=1)
        async with other.transaction() as connection:
            await connection.execute("select from custom_models where id = $1 for update", model["id"])
            body = {"name": "New", "language_id": customer.base_id, "organization_id": customer.id}
            answer = await customer.http.put(f"/custom_models/{model['id']}", json=body)
        await other.close()
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")
        shown = (await customer.http.get(f"/custom_models/{model['id']}")).json()
        assert shown["name"] == model["name"]

    @pytest.fixture
    def api_settings(self):
        return {"api_statement_timeout_s": 1.0}


class TestStatements:
    @pytest.fixture
    def api_settings(self):
        return {"api_statement_timeout_s": 0.3, "api_database_connections": 8}

    async def test_one_that_takes_long_is_ended(self, live):
        from worker.errors import DatabaseAway  # noqa: PLC0415

        with pytest.raises(DatabaseAway, match="statement timeout"):
            await live.app.state.api.database.fetch("select pg_sleep(30)")

    async def test_an_organization_that_floods_leaves_connections_for_others(self, live, customer, stranger):
        """Each of the flood's requests waits for a row, with a connection; others' writes get through meanwhile."""
        model, other = await customer.model(), await stranger.model()
        database = live.app.state.api.limits.database
        blocker = Database(live.settings.database_url.get_secret_value(), size=1)
        body = {"name": "New", "language_id": customer.base_id, "organization_id": customer.id}
        async with blocker.transaction() as connection:
            await connection.execute("select from custom_models where id = $1 for update", model["id"])
            flood = [customer.http.put(f"/custom_models/{model['id']}", json=body) for _ in range(30)]
            async with under_way(*flood):
                async with asyncio.timeout(30):
                    while database.held(customer.id) < database.most:
                        await asyncio.sleep(0.005)
                mine = {"name": "Mine", "language_id": customer.base_id, "organization_id": stranger.id}
                answer = await stranger.http.put(f"/custom_models/{other['id']}", json=mine)
                assert answer.status_code == 200
                assert database.held(customer.id) <= database.most < live.settings.api_database_connections
        await blocker.close()


class TestPairing:
    """A manifest's names are compared by index: the cost is the sum of files and names, not their product."""

    async def test_pages_touched_grow_with_files_and_not_with_files_times_names(self, live, customer):
        touched = {}
        for files, names in ((200, 500), (200, 8_000), (1_600, 8_000)):
            model = await customer.model()
            await live.database.execute(
                """insert into training_data (custom_model_id, organization_id, name, stem, kind, bytes, sha256, address, verdict)
                select $1, $2, 'f' || n || '.wav', 'f' || n, 'audio', 1, repeat('a', 64), 'x', 'waiting_for_pair'
                from generate_series(1, $3::int) n""",
                model["id"], customer.id, files,
            )  # fmt: skip
            named = tuple(f"f{n}.wav" for n in range(names))
            item = NewItem("m.jsonl", "manifest", 1, "b" * 64, "y", None, None, named)
            async with live.database.transaction() as connection:
                await api_data.add(connection, model["id"], customer.id, [item])
                rows = await connection.fetch(
                    "explain (analyze, buffers, costs off, timing off) " + api_data._Q["recheck_audio"],
                    model["id"], 0, 5_000,
                )  # fmt: skip
            text = "\n".join(row[0] for row in rows)
            assert "Rows Removed by Join Filter" not in text
            touched[files, names] = int(text.split("shared hit=")[1].split()[0])
            paired = await live.database.fetch_row(
                "select count(*) as n from training_data where custom_model_id = $1 and verdict = 'waiting_for_run' and kind = 'audio'",
                model["id"],
            )
            assert paired["n"] == min(files, names - 1)
        assert touched[200, 8_000] < 2 * touched[200, 500]
        assert touched[1_600, 8_000] < 16 * touched[200, 8_000]

    async def test_a_manifest_that_names_less_or_goes_leaves_recordings_without_their_half(self, live, customer):
        model = await customer.model()
        path = f"/custom_models/{model['id']}/data"

        async def manifest(*names):
            lines = b"".join(b'{"audio_filepath": "%s", "text": "a"}\n' % name for name in names)
            sent = await customer.http.post(path, files=[("f", ("m.jsonl", lines))])
            return sent.json()["result"][0]["id"]

        async def verdicts():
            listed = (await customer.http.get(path)).json()["result"]
            return [one["verdict"] for one in listed if one["kind"] == "audio"]

        await customer.http.post(path, files=[("f", ("x/a.wav", wav(1))), ("f", ("y/b.wav", wav(1)))])
        assert await verdicts() == ["waiting_for_pair"] * 2
        await manifest(b"a.wav", b"b.wav")
        assert await verdicts() == ["waiting_for_run"] * 2
        last = await manifest(b"b.wav")
        assert await verdicts() == ["waiting_for_pair", "waiting_for_run"]
        assert (await customer.http.delete(f"{path}/{last}")).status_code == 204
        assert await verdicts() == ["waiting_for_pair"] * 2


PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a%d.wav"\r\n\r\n'
MULTIPART = "Content-Type: multipart/form-data; boundary=x"


@contextlib.asynccontextmanager
async def unfinished(live, customer, method, path, *headers, body, many=1):
    """Requests whose bodies have begun and do not go on; their readers."""
    async with contextlib.AsyncExitStack() as stack:
        pieces = head(method, path, customer.key.secret, *headers), chunk(body)
        yield [(await stack.enter_async_context(talking(live, *pieces)))[0] for _ in range(many)]


async def first_answers(readers, many):
    """The first that come, of requests that are not all answered."""
    async with under_way(*(answered(reader) for reader in readers)) as tasks:
        return [await answer for answer in itertools.islice(asyncio.as_completed(tasks), many)]


async def freed(shares):
    """That nobody holds any of the places."""
    async with asyncio.timeout(30):
        while shares.taken:
            await asyncio.sleep(0.01)


async def reached(shares, holder, amount):
    """That somebody holds so many places."""
    async with asyncio.timeout(60):
        while shares.held(holder) < amount:
            await asyncio.sleep(0.01)


class TestUploads:
    @pytest.fixture
    def api_settings(self):
        return {"api_uploads_at_once": 8, "api_upload_bytes": 3 << 20}

    async def test_two_organizations_together_leave_a_slot_for_a_third(self, live, customer, stranger):
        slots = live.app.state.api.limits.slots
        third = await customer_of(live, "Third")
        paths = [f"/custom_models/{(await one.model())['id']}/data" for one in (customer, stranger)]
        async with (
            unfinished(live, customer, "POST", paths[0], MULTIPART, body=PART % 1, many=8) as ones,
            unfinished(live, stranger, "POST", paths[1], MULTIPART, body=PART % 1, many=8) as others,
        ):
            await reached(slots, customer.id, 4)
            await reached(slots, stranger.id, 2)
            refused = await first_answers((*ones, *others), 10)
            assert {(status(answer), code(answer)) for answer in refused} == {(503, "unavailable")}
            assert all(b"retry-after: 5" in answer for answer in refused)
            path = f"/custom_models/{(await third.model())['id']}/data"
            assert (await third.http.post(path, files=[("f", ("a.txt", b"words"))])).status_code == 201
        await freed(slots)

    async def test_a_part_of_a_large_file_takes_a_slot(self, live, customer):
        slots = live.app.state.api.limits.slots
        path = f"/custom_models/{(await customer.model())['id']}/uploads"
        upload = (await customer.http.post(path, json={"name": "a.txt", "bytes": 50})).json()
        part = f"{path}/{upload['id']}"
        async with unfinished(live, customer, "PATCH", part, "Upload-Offset: 0", body=b"w", many=12) as readers:
            await reached(slots, customer.id, 4)
            assert {status(answer) for answer in await first_answers(readers, 8)} == {503}
            assert slots.held(customer.id) == 4
        await freed(slots)

    @pytest.mark.parametrize("way", ["form", "part"])
    async def test_a_sender_below_the_least_rate_loses_the_slot(self, live, customer, monkeypatch, way):
        """A byte now and then is no sign of life that counts."""
        monkeypatch.setattr(bodies, "PATIENCE_S", 0.4)
        path = f"/custom_models/{(await customer.model())['id']}"
        if way == "form":
            request = head("POST", f"{path}/data", customer.key.secret, MULTIPART), chunk(PART % 1)
        else:
            upload = (await customer.http.post(f"{path}/uploads", json={"name": "a.txt", "bytes": 5_000})).json()
            part = f"{path}/uploads/{upload['id']}"
            request = head("PATCH", part, customer.key.secret, "Upload-Offset: 0"), chunk(b"w")
        async with talking(live, *request) as (reader, writer), dribbling(writer, chunk(b"x")):
            answer = await answered(reader)
        assert (status(answer), code(answer)) == (408, "too_slow")
        assert live.app.state.api.limits.slots.taken == 0
        assert live.app.state.api.limits.upload_bytes.taken == 0
        assert way == "part" or not list(live.settings.api_upload_folder.iterdir())

    async def test_a_steady_sender_above_it_may_take_longer_than_that(self, live, customer, monkeypatch):
        monkeypatch.setattr(bodies, "PATIENCE_S", 0.2)
        path = f"/custom_models/{(await customer.model())['id']}/data"
        text = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\n'
        async with talking(live, head("POST", path, customer.key.secret, MULTIPART), chunk(text)) as (reader, writer):
            for _ in range(20):
                writer.write(chunk(b"words " * 500))
                await asyncio.sleep(0.05)
            writer.write(chunk(b"\r\n--x--\r\n") + b"0\r\n\r\n")
            assert status(await answered(reader)) == 201

    async def test_a_small_body_has_a_time_for_all_of_it(self, live, customer, monkeypatch):
        monkeypatch.setattr(bodies, "PATIENCE_S", 0.4)
        request = head("POST", "/custom_models", customer.key.secret)
        async with talking(live, request) as (reader, writer), dribbling(writer, chunk(b" ")):
            answer = await answered(reader)
        assert (status(answer), code(answer)) == (408, "too_slow")

    async def test_one_organization_cannot_fill_the_folder_for_uploads(self, live, customer, stranger):
        """3 MiB in all, so 1 MiB for each: the second half of the first organization's bytes is refused."""
        room = live.app.state.api.limits.upload_bytes
        path = f"/custom_models/{(await customer.model())['id']}/data"
        other = f"/custom_models/{(await stranger.model())['id']}/data"
        body = PART % 1 + b"x" * (900 << 10)
        async with unfinished(live, customer, "POST", path, MULTIPART, body=body):
            await reached(room, customer.id, 900 << 10)
            answer = await customer.http.post(path, files=[("f", ("b.wav", b"x" * (200 << 10)))])
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            answer = await stranger.http.post(other, files=[("f", ("c.txt", b"words " * 10_000))])
            assert answer.status_code == 201
        await freed(room)

    async def test_a_file_that_its_owner_never_could_assemble_is_refused_at_once(self, customer):
        model = await customer.model()
        answer = await customer.http.post(
            f"/custom_models/{model['id']}/uploads", json={"name": "a.wav", "bytes": 2 << 20}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    async def test_a_disk_that_others_filled_is_a_503_before_the_body(self, customer, monkeypatch):
        monkeypatch.setattr(limits, "LEAST_FREE_BYTES", 1 << 62)
        model = await customer.model()
        answer = await customer.http.post(f"/custom_models/{model['id']}/data", files=[("f", ("a.txt", b"words"))])
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")

    async def test_a_form_of_endless_fields_is_refused(self, live, customer):
        model = await customer.model()
        field = b'--x\r\nContent-Disposition: form-data; name="split"\r\n\r\ntrain\r\n'
        count = 2 * live.settings.api_most_files + 100
        answer = await customer.http.post(
            f"/custom_models/{model['id']}/data",
            content=field * count + b"--x--\r\n",
            headers=dict([MULTIPART.split(": ")]),
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_files")


class TestStreams:
    async def opened(self, stack, http, model_id):
        answer = await stack.enter_async_context(http.stream("GET", f"/custom_models/{model_id}/changes"))
        lines = answer.aiter_lines()
        if answer.status_code == 200:
            assert await anext(lines) == "event: changed"
        return answer, lines

    async def test_one_ends_when_its_key_is_revoked(self, live, customer):
        model = await customer.model()
        second = await live.key(customer.id, "reader")
        async with contextlib.AsyncExitStack() as stack:
            _, mine = await self.opened(stack, live.client(second.secret), model["id"])
            _, others = await self.opened(stack, customer.http, model["id"])
            await live.keys.revoke(second.id)
            async with asyncio.timeout(30):
                assert "event: gone" not in [line async for line in mine]
            # Another key's stream goes on.
            body = {"name": "Renamed", "language_id": customer.base_id, "organization_id": customer.id}
            await customer.http.put(f"/custom_models/{model['id']}", json=body)
            async with asyncio.timeout(30):
                while await anext(others) != "event: changed":
                    pass

    async def test_one_ends_when_its_key_expires(self, live, customer, monkeypatch):
        monkeypatch.setattr("worker.api.watch._ALIVE_S", 0.2)
        model = await customer.model()
        brief = await key_commands.create(live.keys, customer.id, "reader", "brief", valid_days=2 / 86_400)
        async with contextlib.AsyncExitStack() as stack:
            _, lines = await self.opened(stack, live.client(brief.secret), model["id"])
            async with asyncio.timeout(30):
                assert [line async for line in lines]

    async def test_their_places_are_given_back(self, live, customer):
        model = await customer.model()
        watchers = live.app.state.api.limits.watchers
        async with contextlib.AsyncExitStack() as stack:
            await self.opened(stack, customer.http, model["id"])
            assert watchers.taken == 1
        async with asyncio.timeout(30):
            while watchers.taken:
                await asyncio.sleep(0.02)

    async def test_many_at_once_get_no_more_places_than_there_are(self, live, customer):
        """All ask before the first is counted: the place is taken where the count is looked at."""
        model = await customer.model()
        shares = live.app.state.api.limits
        shares.watchers_of_key.most = 3
        async with contextlib.AsyncExitStack() as stack:
            opened = await asyncio.gather(*(self.opened(stack, customer.http, model["id"]) for _ in range(12)))
            statuses = sorted(answer.status_code for answer, _ in opened)
        assert statuses == [200] * 3 + [503] * 9


class TestDownloads:
    async def test_slow_readers_of_logs_leave_places_for_others_and_give_theirs_back(self, live, customer, stranger):
        """Each would hold an open file and a piece of it; a thousand of them all that the process may open."""
        places = live.app.state.api.limits.downloads
        places.most = 2
        paths = [await logged(live, one, b"line\n" * 2_000_000) for one in (customer, stranger)]
        path = f"/api/v3{paths[0]}/log"
        ask = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {customer.key.secret}\r\n\r\n".encode()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                _, writer = await stack.enter_async_context(talking(live, ask))
                writer.transport.pause_reading()
            async with asyncio.timeout(20):
                while places.taken < 2:
                    await asyncio.sleep(0.01)
            for kind in ("", "?tail=5"):
                refused = await customer.http.get(f"{paths[0]}/log{kind}")
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert (await stranger.http.get(f"{paths[1]}/log")).status_code == 200
        async with asyncio.timeout(20):
            while places.taken:
                await asyncio.sleep(0.01)
        assert (await customer.http.get(f"{paths[0]}/log?tail=5")).text == "line\n" * 5


async def logged(live, customer, text):
    """A run under way that has a log; its path."""
    _, path = await started(customer)
    run = await claim(live)
    await live.storage.put_bytes(address := f"runs/{run['id']}/1/log.txt", text)
    await live.database.fetch(RUNS["record_log"], run["id"], 1, address)
    return path


class TestRequestsAtOnce:
    async def test_one_organization_has_a_share_of_them(self, live, customer, stranger):
        requests = live.app.state.api.limits.requests
        requests.most = 4
        async with unfinished(live, customer, "POST", "/custom_models", body=b"{", many=4):
            await reached(requests, customer.id, 4)
            refused = await customer.http.get("/caller")
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert refused.headers["retry-after"] == "1"
            assert (await stranger.http.get("/caller")).status_code == 200
        await freed(requests)
