"""What a message means: a pure function of its bytes and properties."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.run import Request
from worker.intake.handler import (
    LARGEST_BODY,
    LONGEST_DETAIL,
    Accepted,
    Again,
    Dead,
    DeadReason,
    Duplicate,
    Properties,
    judge,
    understand,
)

RUN = "0f9a4b1e-6a52-4a4e-8d7e-3f0d0d1f2a33"
GOOD = {
    "run_id": RUN,
    "custom_model_id": 7,
    "organization_id": 3,
    "requested_at": "2026-03-01T12:00:00.5+02:00",
}
PROPERTIES = Properties("application/json", None, "training.run.requested.v1", RUN, None)


def _body(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def _reason(body: bytes, properties: Properties = PROPERTIES) -> DeadReason | None:
    verdict = understand(body, properties)
    return verdict.reason if isinstance(verdict, Dead) else None


def test_a_good_message_is_accepted_with_its_ids_and_its_time_in_utc():
    verdict = understand(_body(newer_field={"a": [1]}), PROPERTIES)
    assert verdict == Accepted(
        Request(UUID(RUN), 7, 3, datetime(2026, 3, 1, 10, 0, 0, 500_000, tzinfo=UTC), traceparent=None)
    )


@pytest.mark.parametrize(
    "properties",
    [
        Properties(),
        Properties("application/json; charset=utf-8", "utf-8", "training.run.requested.v1", RUN.upper()),
        Properties("Application/JSON", "identity", "", ""),
    ],
)
def test_a_producer_may_leave_out_what_the_body_says_as_well(properties):
    assert isinstance(understand(_body(), properties), Accepted)


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        (Properties("text/plain"), DeadReason.CONTENT_TYPE),
        (Properties("application/json", "gzip"), DeadReason.CONTENT_TYPE),
        (Properties("application/json", None, "training.run.requested.v2"), DeadReason.UNKNOWN_TYPE),
        (Properties("application/json", None, None, str(uuid4())), DeadReason.RUN_CONFLICT),
        (Properties("application/json", None, None, "no uuid"), DeadReason.RUN_CONFLICT),
    ],
)
def test_properties_that_contradict_are_dead(properties, reason):
    assert _reason(_body(), properties) == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": RUN.replace("-", "")},
        {"run_id": f"urn:uuid:{RUN}"},
        {"run_id": 5},
        {"run_id": None},
        {"custom_model_id": "7"},
        {"custom_model_id": 7.0},
        {"custom_model_id": True},
        {"custom_model_id": 0},
        {"custom_model_id": 2**63},
        {"organization_id": -1},
        {"organization_id": None},
        {"requested_at": 1_700_000_000},
        {"requested_at": "1700000000"},
        {"requested_at": "2026-03-01"},
        {"requested_at": "2026-03-01T12:00:00"},
        {"requested_at": "2026-13-01T12:00:00Z"},
        {"requested_at": "0001-01-01T00:00:00+14:00"},
        {"requested_at": "9999-12-31T23:59:59-01:00"},
        {"requested_at": "\u0662026-03-01T12:00:00Z"},
    ],
)
def test_strict_types_and_times(changes):
    assert _reason(_body(**changes), Properties()) == DeadReason.MALFORMED


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_field_is_needed_and_the_detail_names_it(name):
    verdict = understand(json.dumps({key: GOOD[key] for key in GOOD if key != name}).encode(), Properties())
    assert isinstance(verdict, Dead)
    assert verdict.reason == DeadReason.MALFORMED
    assert name in verdict.detail


def test_the_size_is_looked_at_before_anything_is_decoded():
    assert _reason(_body(padding="x" * LARGEST_BODY)) == DeadReason.TOO_LARGE
    assert _reason(b"\xff" * (LARGEST_BODY + 1)) == DeadReason.TOO_LARGE
    fits = _body()
    assert isinstance(understand(fits + b" " * (LARGEST_BODY - len(fits)), PROPERTIES), Accepted)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf" + _body(),
        _body().decode().encode("utf-16"),
        b"[" * LARGEST_BODY,
        b'{"a":' * 10_000,
        b'{"a": NaN}',
        b'{"a": 1} {}',
        b"'{}'",
    ],
)
def test_what_is_not_json_is_dead_and_nothing_is_raised(body):
    assert _reason(body) == DeadReason.NOT_JSON


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_json_that_is_no_object_is_malformed(body):
    assert _reason(body) == DeadReason.MALFORMED


def test_a_detail_is_never_long():
    verdict = understand(_body(run_id="x" * 50_000), Properties())
    assert isinstance(verdict, Dead)
    assert len(verdict.detail) <= LONGEST_DETAIL


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("\x00", False),
        (b"bytes", False),
        (7, False),
    ],
)
def test_a_trace_is_carried_on_only_where_it_is_one(value, kept):
    verdict = understand(_body(), Properties(headers={"traceparent": value}))
    assert isinstance(verdict, Accepted)
    assert verdict.request.traceparent == (value if kept else None)


@given(st.binary(max_size=2_000), st.none() | st.text(max_size=50), st.none() | st.text(max_size=50))
def test_no_bytes_and_no_properties_can_raise(body, content_type, message_id):
    assert isinstance(understand(body, Properties(content_type, None, None, message_id)), Accepted | Dead)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "other"]), JSON))
def test_no_json_can_raise(fields):
    assert isinstance(understand(json.dumps(GOOD | fields).encode(), PROPERTIES), Accepted | Dead)


@given(st.datetimes(timezones=st.timezones()), st.booleans())
def test_every_rfc_3339_time_within_the_calendar_is_read(moment, zulu):
    offset = moment.utcoffset()
    if offset is None or offset % timedelta(minutes=1) or not 2 <= moment.year <= 9998:
        return
    text = moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if zulu else moment.isoformat()
    verdict = understand(_body(requested_at=text), PROPERTIES)
    assert isinstance(verdict, Accepted), text
    assert verdict.request.requested_at == moment.astimezone(UTC)


# --- why a request was not registered ----------------------------------------------------------------------------

REQUEST = Request(UUID(RUN), 7, 3, datetime.now(UTC))
CLEAR = {
    "known": False, "same_ids": False, "model_known": True, "model_deleted": False, "active_run_id": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("standing", "verdict"),
    [
        ({"known": True, "same_ids": True}, Duplicate()),
        ({"known": True, "same_ids": True, "model_deleted": True}, Duplicate()),
        ({"known": True, "same_ids": True, "active_run_id": UUID(RUN)}, Duplicate()),
        ({"known": True, "same_ids": False, "model_known": False}, DeadReason.RUN_CONFLICT),
        ({"model_known": False}, DeadReason.MODEL_UNKNOWN),
        ({"model_deleted": True, "active_run_id": uuid4()}, DeadReason.MODEL_DELETED),
        ({"active_run_id": uuid4()}, DeadReason.RUN_ACTIVE),
        ({}, Again()),
    ],
)
def test_the_run_is_looked_up_first_then_the_model(standing, verdict):
    found = judge(REQUEST, CLEAR | standing)
    assert (found.reason if isinstance(found, Dead) else found) == verdict
