"""Whoever has no key cannot stop the API: heads, connections, descriptors and answers are bounded without a proxy."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.api.raw_http import answered, code, dribbling, everything, status, talking
from tests.api.test_runs import RUNS, claim, started
from worker.api import connections, limits
from worker.api.addresses import UNKNOWN, Proxies, client_network
from worker.api.connections import (
    LARGEST_ADDRESS_BYTES,
    LARGEST_HEAD_BYTES,
    MOST_HEADERS,
    MOST_PIPELINED,
    Connections,
    Patience,
)
from worker.api.networks import parse_networks
from worker.api.settings import ApiSettings

ROOT = Path(__file__).parents[2]
GET = b"GET /api/v3/caller HTTP/1.1\r\nHost: a\r\n"
HALF = GET + b"X-Half: "


async def until(fact, seconds=20):
    async with asyncio.timeout(seconds):
        while not fact():
            await asyncio.sleep(0.02)


class TestHeads:
    async def test_one_above_64_kib_is_refused_and_no_more_of_it_is_read(self, live):
        async with talking(live, HALF) as (reader, writer):
            sent = 0
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof() and sent < 64 << 20:
                    writer.write(b"x" * 65_536)
                    sent += 65_536
                    await writer.drain()
                    await asyncio.sleep(0)
            assert sent < 16 << 20  # the rest are the kernel's buffers, not ours
            answer = await everything(reader)
        if answer:  # what was still being sent may have cut it off
            assert (status(answer), code(answer)) == (431, "head_too_large")
        assert not live.app.state.connections._all

    @pytest.mark.parametrize(
        "head",
        [
            b"GET /" + b"a" * (LARGEST_HEAD_BYTES + 100) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            GET + b"X: " + b"a" * LARGEST_HEAD_BYTES + b"\r\n\r\n",
            GET + b"a: b\r\n" * (LARGEST_HEAD_BYTES // 6 + 100) + b"\r\n",
            GET + b"a: b\r\n" * MOST_HEADERS + b"\r\n",
            b"GET /api/v3/caller?" + b"a&" * (LARGEST_ADDRESS_BYTES // 2) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        ids=["address", "one header", "many headers", "more headers than a few", "more fields than a query needs"],
    )
    async def test_a_whole_one_that_is_too_large_is_refused_as_well(self, live, head):
        async with talking(live, head) as (reader, _):
            answer = await everything(reader)
        assert (status(answer), code(answer)) == (431, "head_too_large")

    async def test_the_description_that_needs_no_key_is_made_once(self, live, monkeypatch):
        await live.client(None).get("/openapi.json")
        monkeypatch.delattr("worker.api.app.document")
        assert (await live.client(None).get("/openapi.json")).status_code == 200

    async def test_one_of_nearly_64_kib_is_answered(self, live):
        head = GET + b"X: " + b"a" * (LARGEST_HEAD_BYTES - 500) + b"\r\nConnection: close\r\n\r\n"
        async with talking(live, head) as (reader, _):
            assert status(await everything(reader)) == 401

    @pytest.mark.parametrize("ending", [b"0\r\nX: ", b"5;"], ids=["trailers", "extensions"])
    async def test_a_chunked_body_brings_no_endless_header_either(self, live, ending):
        head = b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with talking(live, head, b"1\r\na\r\n", ending + b"y" * (3 * LARGEST_HEAD_BYTES)) as (reader, _):
            await everything(reader)
        assert not live.app.state.connections._all

    async def test_a_large_body_behind_a_small_head_in_one_piece_is_no_large_head(self, live, customer):
        body = b" " * 60_000 + b"{}"
        head = (
            b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Authorization: Bearer %s\r\nX: %s\r\nContent-Length: %d\r\n\r\n"
            % (customer.key.secret.encode(), b"y" * 20_000, len(body))
        )
        async with talking(live, head + body) as (reader, _):
            assert status(await everything(reader)) == 422

    async def test_more_requests_than_a_few_before_the_first_answer_are_refused(self, live):
        async with talking(live, (GET + b"\r\n") * 5_000) as (reader, _):
            answers = await everything(reader)
        assert answers.count(b"HTTP/1.1") <= MOST_PIPELINED + 2
        assert not live.app.state.connections._all

    async def test_a_few_requests_before_the_first_answer_are_all_answered(self, live):
        last = GET + b"Connection: close\r\n\r\n"
        async with talking(live, (GET + b"\r\n") * 5 + last) as (reader, _):
            assert (await everything(reader)).count(b"HTTP/1.1 401") == 6

    @pytest.mark.parametrize("kind", [b"h2c", b"websocket"])
    async def test_one_that_wants_another_protocol_is_answered_and_leaves_no_line_of_the_servers(
        self, live, customer, caplog, kind
    ):
        ask = GET + b"Authorization: Bearer %s\r\n" % customer.key.secret.encode()
        upgrade = ask + b"Connection: Upgrade\r\nUpgrade: %s\r\n\r\n" % kind
        async with talking(live, upgrade) as (reader, writer):
            assert status(await answered(reader)) == 200
            writer.write(ask + b"\r\n")  # and goes on without
            assert status(await answered(reader)) == 200
        assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


class TestPatience:
    @pytest.fixture
    def patience(self, monkeypatch):
        monkeypatch.setattr(connections, "_LOOK_S", 0.05)
        return Patience(head_s=0.3, idle_s=0.5, leftover_s=0.3, stalled_s=0.4, closing_s=0.2)

    @pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "line ends"])
    async def test_who_sends_nothing_is_let_go(self, live, sent):
        async with talking(live, sent) as (reader, _):
            await everything(reader)
        assert live.app.state.connections.closed["head"] == 1

    async def test_who_sends_half_a_head_is_told_408(self, live):
        async with talking(live, HALF) as (reader, writer), dribbling(writer, b"x"):
            answer = await everything(reader)
        assert (status(answer), code(answer)) == (408, "too_slow")

    async def test_who_sends_nothing_more_after_an_answer_is_let_go(self, live):
        async with talking(live, GET + b"\r\n") as (reader, writer):
            assert await reader.readuntil(b"\r\n\r\n")
            async with dribbling(writer, b"\r\n"):
                await everything(reader)
        assert live.app.state.connections.closed["idle"] == 1

    async def test_a_further_request_gets_as_long_for_its_head_as_the_first(self, live):
        async with talking(live, GET + b"\r\n", HALF) as (reader, writer), dribbling(writer, b"x"):
            answer = await everything(reader)
        assert answer.count(b"HTTP/1.1 401") == 1
        assert answer.count(b"HTTP/1.1 408") == 1

    async def test_a_body_that_nobody_asked_for_does_not_hold_the_connection(self, live):
        head = b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"
        async with talking(live, head) as (reader, writer), dribbling(writer, b"x"):
            assert status(await everything(reader)) == 401
        assert live.app.state.connections.closed["leftover"] == 1

    async def test_who_never_reads_answers_is_let_go(self, live, monkeypatch):
        """Answers pile up until the kernel takes no more of them; then nothing more is made for this client."""
        monkeypatch.setattr(connections, "MOST_PIPELINED", 1_000)
        book = live.app.state.connections
        async with talking(live) as (_, writer):
            writer.transport.pause_reading()
            writer.write(b"GET /api/v3/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 200)  # answered with 22 MB
            await until(lambda: book.closed)
        assert book.closed == {"stalled": 1}

    async def test_who_reads_slowly_but_steadily_gets_everything(self, live, monkeypatch):
        """Much longer than any single patience, on a connection that is to be closed after it."""
        monkeypatch.setattr(connections, "MOST_PIPELINED", 1_000)
        ask = b"GET /api/v3/openapi.json HTTP/1.1\r\nHost: a\r\n"
        async with talking(live, (ask + b"\r\n") * 99 + ask + b"Connection: close\r\n\r\n") as (reader, _writer):
            got, began = 0, asyncio.get_running_loop().time()
            while piece := await reader.read(1 << 16):
                got += len(piece)
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - began > 2 * live.app.state.connections.patience.stalled_s
        length = len((await live.client(None).get("/openapi.json")).content)
        assert got > 100 * length
        assert not live.app.state.connections.closed["stalled"]


class TestCounts:
    @pytest.fixture
    def api_settings(self):
        return {"api_connections": 24, "api_connections_per_address": 12}

    async def test_silent_strangers_of_one_address_do_not_keep_an_honest_caller_of_it_out(self, live, customer):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(40):
                await stack.enter_async_context(talking(live, HALF))
            async with httpx.AsyncClient(trust_env=False) as fresh:
                headers = {"Authorization": f"Bearer {customer.key.secret}"}
                assert (await fresh.get(f"{live.url}/api/v3/caller", headers=headers)).status_code == 200
            assert len(live.app.state.connections) <= 12

    async def test_idle_connections_give_way_but_requests_under_way_do_not(self, live, customer):
        model = await customer.model()
        path = f"/custom_models/{model['id']}/changes"
        async with customer.http.stream("GET", path) as watched:
            lines = watched.aiter_lines()
            assert await anext(lines) == "event: changed"
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(40):
                    reader, _ = await stack.enter_async_context(talking(live, GET + b"\r\n"))
                    await reader.readuntil(b"\r\n\r\n")
            body = {"name": "Renamed", "language_id": customer.base_id, "organization_id": customer.id}
            await customer.http.put(f"/custom_models/{model['id']}", json=body)
            async with asyncio.timeout(10):
                while await anext(lines) != "event: changed":
                    pass

    async def test_a_crowd_of_idle_ones_does_not_leave_those_who_come_a_single_place(self, live):
        """Else whoever comes would push out the one before, faster than an honest head can cross a network."""
        book = live.app.state.connections
        book._per_address = 1_000
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(24):
                reader, _ = await stack.enter_async_context(talking(live, GET + b"\r\n"))
                await reader.readuntil(b"\r\n\r\n")
            reader, writer = await stack.enter_async_context(talking(live, HALF))
            for _ in range(8):
                await stack.enter_async_context(talking(live))
            await until(lambda: book.closed["full"] == 9)
            writer.write(b"late\r\n\r\n")
            assert b"HTTP/1.1 401" in await reader.readuntil(b"\r\n\r\n")

    async def test_strangers_who_take_no_answers_give_way_and_customers_who_read_slowly_do_not(
        self, live, customer, monkeypatch
    ):
        monkeypatch.setattr(connections, "MOST_PIPELINED", 1_000)
        book = live.app.state.connections
        book._per_address = 1_000
        _, path = await started(customer)
        run = await claim(live)
        await live.storage.put_bytes(log := f"runs/{run['id']}/1/log.txt", b"line\n" * 2_000_000)
        await live.database.fetch(RUNS["record_log"], run["id"], 1, log)
        ask = b"GET /api/v3%s/log HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n"
        await customer.http.aclose()
        await until(lambda: not book._all)
        async with contextlib.AsyncExitStack() as stack:
            reading, _ = await stack.enter_async_context(
                talking(live, ask % (path.encode(), customer.key.secret.encode()))
            )
            for _ in range(23):
                _, writer = await stack.enter_async_context(talking(live))
                writer.transport.pause_reading()
                writer.write(b"GET /api/v3/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
            await until(lambda: len(book) == 24 and all(one.flow.write_paused for one in book._all))
            for _ in range(30):
                async with talking(live, GET + b"Connection: close\r\n\r\n") as (reader, _):
                    assert status(await everything(reader)) == 401
            assert (await everything(reading)).endswith(b"line\n" * 2_000_000)
        assert book.closed["refused"] == 0

    async def test_answers_that_nobody_takes_hold_a_bounded_part_of_memory(self, live, monkeypatch):
        monkeypatch.setattr(connections, "MOST_PIPELINED", 1_000)
        monkeypatch.setattr(connections, "MOST_UNREAD_BYTES", most := 500_000)
        monkeypatch.setattr(connections, "_LOOK_S", 0.05)
        book = live.app.state.connections
        book._per_address = 1_000
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                _, writer = await stack.enter_async_context(talking(live))
                writer.transport.pause_reading()
                writer.write(b"GET /api/v3/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
            await until(lambda: book.closed["stalled"] and all(one.flow.write_paused for one in book._all))
            assert sum(one.unread for one in book._all) <= most

    async def test_when_all_have_a_request_under_way_a_new_one_is_told_503(self, live, customer):
        model = await customer.model()
        for places in (live.app.state.api.limits.watchers, live.app.state.api.limits.watchers_of_key):
            places.total = places.most = 100
        live.app.state.api.limits.requests.most = 100
        ask = b"GET /api/v3/custom_models/%d/changes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n"
        await customer.http.aclose()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(12):
                pieces = ask % (model["id"], customer.key.secret.encode())
                reader, _ = await stack.enter_async_context(talking(live, pieces))
                await reader.readuntil(b"changed")
            async with talking(live, GET + b"\r\n") as (reader, _):
                answer = await everything(reader)
        assert (status(answer), code(answer)) == (503, "unavailable")
        assert b"retry-after: 5" in answer.lower()


class TestProxies:
    @pytest.fixture
    def api_settings(self):
        return {
            "api_connections": 40,
            "api_connections_per_address": 2,
            "api_trusted_proxies": "127.0.0.0/8, ::1",
        }

    async def test_a_trusted_proxys_connections_are_not_one_clients(self, live, customer):
        async with contextlib.AsyncExitStack() as stack:
            readers = [(await stack.enter_async_context(talking(live, GET + b"\r\n")))[0] for _ in range(20)]
            for reader in readers:
                assert b"401" in await reader.readuntil(b"\r\n\r\n")
        assert not live.app.state.connections.closed

    async def test_a_trusted_proxy_is_known_in_the_dress_of_a_listener_on_both_families(self):
        book = Connections(10, 1, Proxies(parse_networks("10.0.0.0/8")))

        class Connection:
            client = ("::ffff:10.0.0.1", 4711)
            address = client_network(client[0])
            loop = asyncio.get_running_loop()

        assert [book.admit(Connection()) for _ in range(3)] == [True] * 3
        assert not book.closed

    async def test_behind_it_requests_of_one_client_count(self, live, customer):
        model = await customer.model()
        live.app.state.api.limits.watchers_of_key.most = 10
        live.app.state.api.limits.watchers.most = 10
        path = f"/custom_models/{model['id']}/changes"
        one, other = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                watched = await stack.enter_async_context(customer.http.stream("GET", path, headers=one))
                assert watched.status_code == 200
            refused = await customer.http.get("/caller", headers=one)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert (await customer.http.get("/caller", headers=other)).status_code == 200

    def test_a_trusted_proxy_is_one_on_a_port_for_both_families_too(self):
        """There an IPv4 address is shown as IPv6."""
        book = connections.Connections(40, 2, Proxies(parse_networks("192.0.2.7")))
        clients = [("::ffff:192.0.2.7", 1), ("192.0.2.7", 1), ("192.0.2.8", 1), None]
        assert [book._is_trusted(SimpleNamespace(client=client)) for client in clients] == [True, True, False, True]

    @pytest.mark.parametrize("wrong", ["*", "proxy.example", "10.0.0.1/8", "127.0.0.1;::1"])
    def test_what_is_no_network_is_refused_at_the_start(self, wrong):
        with pytest.raises(ValueError, match="api_trusted_proxies"):
            ApiSettings(api_trusted_proxies=wrong)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", UNKNOWN),
        ("a:b", UNKNOWN),
    ],
)
def test_all_addresses_of_one_ipv6_network_are_one_client(address, client):
    assert client_network(address) == client


class TestDescriptors:
    @pytest.mark.parametrize("open_files", [64, 200, 1_024, 65_536, 1_048_576])
    def test_connections_leave_files_for_everything_else(self, open_files):
        settings = ApiSettings()
        room = limits.connections_for(open_files, settings)
        assert 16 <= room <= open_files - min(open_files // 2, limits.OTHER_DESCRIPTORS)

    def test_the_soft_limit_is_raised_as_far_as_needed(self):
        script = (
            "import resource as r; from worker.api import limits; from worker.api.settings import ApiSettings\n"
            "r.setrlimit(r.RLIMIT_NOFILE, (200, 700)); limits.raise_open_files(ApiSettings())\n"
            "print(r.getrlimit(r.RLIMIT_NOFILE))"
        )
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
        assert told.stdout.strip() == "(700, 700)"

    async def test_more_silent_connections_than_descriptors_do_not_make_the_api_unreachable(
        self, live, customer, tmp_path
    ):
        """The command itself, with 200 descriptors, and 260 strangers who say nothing."""
        environment = os.environ | {
            "WORKER_DATABASE_URL": live.settings.database_url.get_secret_value(),
            "WORKER_STORAGE_URL": (tmp_path / "storage").as_uri(),
            "WORKER_API_PORT": str(port := free_port()),
            "WORKER_API_UPLOAD_FOLDER": str(tmp_path / "uploads"),
        }
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "api"],
                env=environment, cwd=ROOT, stdout=log, stderr=log,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),  # noqa: PLW1509 - no threads yet
            )  # fmt: skip
        try:
            headers = {"Authorization": f"Bearer {customer.key.secret}"}
            ask = f"http://127.0.0.1:{port}/api/v3/caller"
            await answering(ask, headers, 30)
            silent = []
            for _ in range(260):
                with contextlib.suppress(OSError):
                    silent.append((await asyncio.open_connection("127.0.0.1", port))[1])
            assert await answering(ask, headers, 5) == 200
            # Whoever is on call reads that strangers made room, and what counts.
            await until(lambda: "connection ended" in (tmp_path / "log").read_text())
            for writer in silent:
                writer.transport.abort()
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 40)
        log = (tmp_path / "log").read_text()
        assert "Too many open files" not in log
        assert "WORKER_API_CONNECTIONS" in log


def free_port():
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


async def answering(url, headers, seconds):
    """The status, once there is an answer; each try on a connection of its own."""
    async with asyncio.timeout(seconds):
        while True:
            async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get(url, headers=headers)).status_code
            await asyncio.sleep(0.1)
