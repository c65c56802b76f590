"""The API as a process: metrics on a port of their own, a log of JSON lines, bytes that are no request told of, spans."""

from __future__ import annotations

import asyncio
import socket
import uuid

import pytest
from structlog.testing import capture_logs

from tests.api.api_process import api_process, free_port


async def raw(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    return answer


async def test_metrics_are_on_a_port_of_their_own_and_the_log_is_one_json_object_a_line(tmp_path, database_url):
    async with api_process(tmp_path, database_url) as api:
        for number in range(40):
            await raw(api.port, b"GET / HTTP/1.1\r\nbroken header %d\r\n\r\n" % number)
            await raw(
                api.port,
                b"GET /api/v3/caller?key=stk_secret HTTP/1.1\r\nHost: a\r\nUser-Agent: x\x85\xe2\x80\xa8y\r\n"
                b"Authorization: Bearer stk_secret\r\nConnection: close\r\n\r\n",
            )
        status, page = await asyncio.to_thread(api.page, "/metrics")
        assert status == 200
        assert 'training_api_connections_ended_total{cause="malformed"} 40.0' in page
        assert (await asyncio.to_thread(api.page, "/healthz"))[0] == 200
        assert (await asyncio.to_thread(api.page, "/metrics", api.port))[0] == 404, "customers do not see them"
        refused = api.sample('training_api_refusals_total{code="unauthorized"}')
        assert refused + api.sample('training_api_refusals_total{code="rate_limited"}') == 40
        assert api.sample("training_api_loop_lag_seconds_count") >= 0
    summed = sum(line["count"] for line in api.told("requests refused"))
    ended = api.told("connection ended")
    assert {(line["cause"], line["address"]) for line in ended} == {("malformed", "127.0.0.1")}
    alone = [line for line in api.told("request") if line["status"] >= 400]
    assert len(ended) + len(alone) + summed == 40 + 40 + 1
    assert "stk_secret" not in api.log.read_text()
    assert not [line for line in api.lines() if "Invalid HTTP" in line["event"]]


async def test_a_metrics_port_that_is_taken_costs_the_metrics_and_not_the_service(tmp_path, database_url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with api_process(tmp_path, database_url, WORKER_API_METRICS_PORT=str(port)) as api:
            assert (await asyncio.to_thread(api.page, "/", api.port))[0] == 200
    assert [line["port"] for line in api.told("no metrics")] == [port]


async def test_no_metrics_are_served_where_the_port_is_0(tmp_path, database_url):
    async with api_process(tmp_path, database_url, WORKER_API_METRICS_PORT="0") as api:
        assert (await asyncio.to_thread(api.page, "/metrics", free_port()))[0] == 0
    assert not api.told("metrics")


async def test_the_pool_uploads_and_deliveries_are_shown(live, customer):
    value = live.app.state.metrics.registry.get_sample_value
    before = value("training_api_database_wait_seconds_count")
    await customer.trainable_model()
    assert value("training_api_database_wait_seconds_count") > before
    assert value("training_api_database_connections", {"state": "idle"}) >= 1
    assert value("training_api_received_bytes_total") > 61 * 16_000
    held = [await live.app.state.api.database._pool.acquire() for _ in range(8)]
    waiting = asyncio.create_task(customer.http.get("/base_languages"))
    async with asyncio.timeout(10):
        while value("training_api_database_connections", {"state": "waiting"}) != 1:
            await asyncio.sleep(0.01)
    assert value("training_api_database_connections", {"state": "used"}) == 8
    assert value("training_api_requests_in_flight") == 1
    for connection in held:
        await live.app.state.api.database._pool.release(connection)
    assert (await waiting).status_code == 200
    assert value("training_api_requests_in_flight") == 0


class TestDeliveries:
    @pytest.fixture
    def api_settings(self):
        return {"api_webhook_private": True}

    async def test_a_delivery_that_fails_is_counted(self, live, customer):
        url = f"http://127.0.0.1:{free_port()}/"
        made = await customer.http.post("/webhooks", json={"url": url})
        assert made.status_code == 201, made.text
        await customer.http.post(f"/webhooks/{made.json()['id']}/test")
        value = live.app.state.metrics.registry.get_sample_value
        async with asyncio.timeout(20):
            while value("training_api_webhook_deliveries_total", {"result": "retried"}) != 1:
                await asyncio.sleep(0.02)


async def test_a_client_that_leaves_before_its_answer_is_counted_too(live, customer):
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
        writer.write(
            b"POST /api/v3/custom_models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
            + customer.key.secret.encode()
            + b"\r\nContent-Length: 1000\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        async with asyncio.timeout(10):
            while not [line for line in logs if line["event"] == "request"]:
                await asyncio.sleep(0.01)
    [line] = [line for line in logs if line["event"] == "request"]
    assert (line["key"], line["code"]) == (customer.key.id, "malformed_request")


async def test_spans_are_named_after_the_route_whatever_path_is_sent(live, customer, tmp_path, database_url):
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from tests.tracing.collector import Collector  # noqa: PLC0415

    collector = Collector()
    try:
        async with api_process(tmp_path, database_url, WORKER_TRACES_URL=collector.url) as api:
            paths = [f"/api/v3/{uuid.uuid4().hex}", f"/{uuid.uuid4().hex}", f"/api/v3/custom_models/{uuid.uuid4().hex}"]
            for path in (*paths, "/api/v3/custom_models/17/run", "/console/x.js"):
                await asyncio.to_thread(api.page, path, api.port)
        names = {span.name for span in collector.spans}
    finally:
        collector.close()
    assert names <= {
        "GET /",
        "GET other",
        "GET /api/v3/custom_models/{id}",
        "GET /api/v3/custom_models/{id}/run",
        "GET /console/{file}",
    }
    assert {"GET other", "GET /api/v3/custom_models/{id}"} <= names
