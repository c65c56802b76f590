"""Every request leaves a line or a count; a flood of them leaves a bounded number of lines; no line holds what it must not."""

import asyncio
import json
import re

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from worker.api.metrics import ApiMetrics
from worker.api.request_log import RequestLog, RequestRecord, shown
from worker.api.routes import OTHER, ROUTES, route_of

NOBODY = 4_000_000_000


def lines_of(logs, event="request"):
    return [line for line in logs if line["event"] == event]


def counted(live, name, **labels):
    return live.app.state.metrics.registry.get_sample_value(name, labels) or 0.0


async def attack(live, customer, stranger):
    """60 wrong keys, 40 reads of another organization's models, 20 deletes of one's own with a reader's key."""
    model = (await stranger.model())["id"]
    own = (await customer.model())["id"]
    reader = live.client((await live.key(customer.id, "reader")).secret)
    wrong = [await live.client(f"stk_wrong_{number}").get("/caller") for number in range(60)]
    theirs = [await customer.http.get(f"/custom_models/{model}") for _ in range(40)]
    deletes = [await reader.delete(f"/custom_models/{own}") for _ in range(20)]
    return wrong, theirs, deletes


async def test_wrong_keys_reads_of_anothers_models_and_forbidden_deletes_leave_lines_counts_and_entries(
    live, customer, stranger
):
    with capture_logs() as logs:
        wrong, theirs, deletes = await attack(live, customer, stranger)
        live.app.state.log.flush()
    assert {answer.status_code for answer in wrong} == {401, 429}
    assert {answer.status_code for answer in theirs} == {404}
    assert {answer.status_code for answer in deletes} == {403}
    told = lines_of(logs)
    summed = lines_of(logs, "requests refused")
    refused = [line for line in told if line["status"] >= 400]
    assert len(refused) + sum(line["count"] for line in summed) == 120, "each is in a line of its own or in a sum"
    assert {line["code"] for line in refused + summed} == {"unauthorized", "rate_limited", "not_found", "not_allowed"}
    assert counted(live, "training_api_refusals_total", code="not_found") == 40
    assert counted(live, "training_api_refusals_total", code="not_allowed") == 20
    model = "/api/v3/custom_models/{id}"
    assert counted(live, "training_api_requests_total", method="DELETE", route=model, status="403") == 20
    unauthorized = counted(live, "training_api_refusals_total", code="unauthorized")
    assert unauthorized + counted(live, "training_api_refusals_total", code="rate_limited") == 60

    await live.app.state.api.trail.flush()
    rows = await live.database.fetch("select * from audit_log where action = 'refused' order by api_key_id nulls first")
    by_key = {row["api_key_id"]: row for row in rows}
    assert len(rows) == 3, "one entry for each key, and one for all without a key"
    assert by_key[None]["detail"]["count"] == 60
    entry = by_key[customer.key.id]
    assert (entry["organization_id"], entry["address"], entry["detail"]["count"]) == (customer.id, "127.0.0.1", 40)
    assert entry["request_id"]


async def test_a_line_says_who_what_and_how_it_went(live, customer):
    with capture_logs() as logs:
        answer = await customer.http.post(
            "/custom_models",
            json={"name": "x", "language_id": live.base_id, "organization_id": customer.id},
            headers={"User-Agent": "clinic/1.0"},
        )
    [line] = lines_of(logs)
    assert line["request"] == answer.headers["x-request-id"]
    expected = {
        "key": customer.key.id,
        "organization": customer.id,
        "role": "owner",
        "method": "POST",
        "route": "/api/v3/custom_models",
        "path": "/api/v3/custom_models",
        "status": 201,
        "code": None,
        "address": "127.0.0.1",
        "proxy": None,
        "agent": "clinic/1.0",
        "bytes_out": len(answer.content),
    }
    assert {name: line[name] for name in expected} == expected
    assert line["bytes_in"] > 0
    assert line["ms"] > 0


async def test_polls_leave_no_line_and_are_counted(live, customer):
    model = await customer.model()
    path = f"/custom_models/{model['id']}"
    tag = (await customer.http.get(path)).headers["etag"]
    with capture_logs() as logs:
        answers = [await customer.http.get(path, headers={"If-None-Match": tag}) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {304}
    assert not logs
    route = "/api/v3/custom_models/{id}"
    assert counted(live, "training_api_requests_total", method="GET", route=route, status="304") == 5
    assert counted(live, "training_api_request_seconds_count", method="GET", route=route) >= 5


class TestLinesOfReads:
    @pytest.fixture
    def api_settings(self):
        return {"api_log_reads": True}

    async def test_successful_reads_have_lines_where_the_operator_asks_for_them(self, customer):
        with capture_logs() as logs:
            await customer.http.get("/caller")
        assert [line["route"] for line in lines_of(logs)] == ["/api/v3/caller"]


async def test_every_kind_of_refusal_is_told_with_its_code(live, customer):
    anonymous = live.client(None)
    with capture_logs() as logs:
        await anonymous.get("/caller")
        await customer.http.get("/no_such_thing")
        await customer.http.patch("/caller")
        await customer.http.post("/custom_models", content=b"{" * 70_000)
        await customer.http.post("/custom_models", content=b"{")
        await anonymous.get(live.url + "/nowhere")
    told = [(line["status"], line["code"], line["route"]) for line in lines_of(logs)]
    assert told == [
        (401, "unauthorized", "/api/v3/caller"),
        (404, "not_found", "other"),
        (405, "method_not_allowed", "/api/v3/caller"),
        (413, "too_large", "/api/v3/custom_models"),
        (400, "malformed_json", "/api/v3/custom_models"),
        (404, "not_found", "other"),
    ]


async def test_a_fault_of_ours_is_told_with_the_id_that_its_answer_carries(live, customer, monkeypatch):
    async def broken(*_):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(type(live.app.state.api.models), "counts", broken)
    with capture_logs() as logs:
        answer = await customer.http.get("/caller")
    assert answer.status_code == 500
    [line] = lines_of(logs)
    assert (line["status"], line["code"], line["request"]) == (500, "internal", answer.headers["x-request-id"])
    assert [fault["request"] for fault in lines_of(logs, "fault")] == [answer.headers["x-request-id"]]


async def test_neither_keys_nor_queries_are_in_a_line(live, customer):
    secret = customer.key.secret
    with capture_logs() as logs:
        await customer.http.get(f"/custom_models/{secret}", params={"key": secret}, headers={"User-Agent": secret})
        await live.client(secret + "x").get("/caller", params={"access_token": secret})
    assert len(lines_of(logs)) == 2
    assert secret not in str(logs)
    assert secret[4:] not in str(logs)
    assert "access_token" not in str(logs)


HOSTILE = [
    "\r\nrequest forged",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202e\u2066txt.exe",
    "\x9b31m",
    '","status":200,"x":"',
    "\ud800",
]


@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=300), st.binary(max_size=300)))
def test_a_strangers_text_stays_in_its_field_and_on_its_line(text):
    told = shown(text)
    assert re.fullmatch(r"[ -~]*", told)
    assert len(told) <= 203
    line = structlog.processors.JSONRenderer()(None, "info", {"event": "request", "path": told})
    assert "\n" not in line
    assert json.loads(line) == {"event": "request", "path": told}


async def test_a_hostile_path_reaches_the_log_as_harmless_ascii(live, customer):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
    with capture_logs() as logs:
        writer.write(
            b"GET /api/v3/%0d%0aforged%1b%5b2J/"
            b"\xe2\x80\xae"
            b" HTTP/1.1\r\nHost: a\r\nUser-Agent: a\xc2\x9b31m\r\n"
            b"Connection: close\r\n\r\n"
        )
        await reader.read()
        writer.close()
    for line in lines_of(logs):
        assert re.fullmatch(r"[ -~]*", line["path"] + line["agent"])


def record(address="192.0.2.1", route="/api/v3/caller", key=None):
    made = RequestRecord("id", "GET", route, address, address, b"/api/v3/caller", [(b"user-agent", b"agent")])
    made.key = key
    made.status, made.code, made.seconds = 401, "unauthorized", 0.001
    return made


def test_a_flood_from_one_address_leaves_a_bounded_number_of_lines_and_loses_no_count():
    now = [0.0]
    metrics = ApiMetrics()
    log = RequestLog(metrics, now=lambda: now[0])
    with capture_logs() as logs:
        for second in range(10):
            now[0] = float(second)
            for _ in range(2_000):
                log.ended(record())
            log.flush()
    alone, sums = lines_of(logs), lines_of(logs, "requests refused")
    assert len(alone) <= 20 + 10 * 5
    assert len(sums) == 10, "one a second"
    assert len(alone) + sum(line["count"] for line in sums) == 20_000
    value = metrics.registry.get_sample_value
    assert value("training_api_log_lines_suppressed_total") == 20_000 - len(alone)
    assert value("training_api_refusals_total", {"code": "unauthorized"}) == 20_000


def test_a_flood_from_many_addresses_leaves_a_bounded_number_of_lines_too():
    log = RequestLog(ApiMetrics(), now=lambda: 0.0)
    with capture_logs() as logs:
        for number in range(50_000):
            log.ended(record(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"))
        assert len(log._sums) <= 1_001
        log.flush()
    assert len(lines_of(logs)) <= 200
    assert len(lines_of(logs, "requests refused")) <= 21
    assert len(lines_of(logs)) + sum(line["count"] for line in lines_of(logs, "requests refused")) == 50_000


def test_a_flood_of_one_address_does_not_hide_anothers_refusal():
    log = RequestLog(ApiMetrics(), now=lambda: 0.0)
    with capture_logs() as logs:
        for _ in range(10_000):
            log.ended(record())
        log.ended(record("198.51.100.7"))
    assert lines_of(logs)[-1]["address"] == "198.51.100.7"


@pytest.mark.parametrize("route", [route for route in ROUTES if route != OTHER])
def test_a_route_is_found_from_its_own_path_whatever_stands_in_its_braces(route):
    path = re.sub(r"\{\w+\}", "anything", route)
    assert route_of(path) == route
    assert route_of(path.rstrip("/") + "/") in {route, "/"}


@given(st.text(max_size=500))
def test_whatever_path_is_sent_the_route_is_from_the_list(path):
    assert route_of("/" + path) in ROUTES
    assert route_of("/api/v3/custom_models/" + path) in ROUTES
