"""Wire formats: exported files are current, and bodies read as the contract says."""

import json
from uuid import uuid4

import pytest
from pydantic import ValidationError

from schemas.events import EVENT, LONGEST_LINE, Result, encode
from schemas.export import FOLDER, exported
from schemas.messages import EVENT_NAMES, RunRequested
from schemas.splits import DEV_SHARE, TEST_SHARE, split_of, split_text_key
from schemas.status import TrainingStatus

BODY = {"run_id": str(uuid4()), "custom_model_id": 5, "organization_id": 7, "requested_at": "2026-01-31T12:00:00Z"}


@pytest.mark.parametrize("name", sorted(exported()))
def test_exported_schema_is_current(name):
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == exported()[name], "run `python -m schemas.export`"


def test_the_public_numbers_never_change():
    numbers = {"NOT_RUNNING": 1, "READY_TO_RUN": 2, "RUNNING": 3, "SUCCESS": 4, "FAILED": 5}
    assert {status.name: status.value for status in TrainingStatus} == numbers


def test_every_status_has_an_event():
    assert set(EVENT_NAMES) == set(TrainingStatus)


def test_a_request_from_a_newer_producer_is_understood():
    assert RunRequested.model_validate_json(json.dumps(BODY | {"colour": "blue"})).custom_model_id == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "no uuid"),
        ("custom_model_id", "5"),
        ("custom_model_id", True),
        ("custom_model_id", 0),
        ("custom_model_id", 2**63),
        ("organization_id", 7.5),
        ("requested_at", "2026-01-31T12:00:00"),
    ],
)
def test_a_request_with_a_wrong_field_is_refused_by_name(field, value):
    with pytest.raises(ValidationError) as refused:
        RunRequested.model_validate_json(json.dumps(BODY | {field: value}))
    assert refused.value.errors()[0]["loc"] == (field,)


def test_an_event_line_is_read_back_as_it_was_written():
    event = Result(figures={"wer": 0.1})
    assert EVENT.validate_json(encode(event)) == event


def test_an_event_longer_than_a_line_may_be_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="put large figures into a file"):
        encode(Result(figures={"x": "y" * LONGEST_LINE}))


def test_case_and_punctuation_do_not_make_another_text():
    assert split_text_key("Start  Metolazone, today!") == split_text_key("start metolazone today")


def test_splits_are_a_function_of_the_key_in_the_promised_shares():
    sides = [split_of(f"text {number}") for number in range(20_000)]
    assert sides == [split_of(f"text {number}") for number in range(20_000)]
    assert abs(sides.count("test") / 20_000 - TEST_SHARE) < 0.01
    assert abs(sides.count("dev") / 20_000 - DEV_SHARE) < 0.01
