"""The exported OpenAPI is what the code says, and names every endpoint of the contract."""

import json
from pathlib import Path

from worker.api.endpoints import ENDPOINTS, VERSION_3
from worker.api.openapi import as_text, document
from worker.api.problems import KINDS

FILE = Path(__file__).parents[2] / "schemas" / "openapi.json"


def test_the_exported_file_is_current():
    assert FILE.read_text(encoding="utf-8") == as_text(), "run: python -m worker.api.openapi"


def test_the_seven_endpoints_are_those_of_the_contract():
    assert [(one.method, one.path, one.status) for one in VERSION_3] == [
        ("POST", "/custom_models", 201),
        ("GET", "/speech-to-text/models", 200),
        ("GET", "/custom_models/{id}", 200),
        ("PUT", "/custom_models/{id}", 200),
        ("DELETE", "/custom_models/{id}", 204),
        ("GET", "/custom_models/{id}/data", 200),
        ("POST", "/custom_models/{id}/run", 202),
    ]


def test_a_model_is_documented_with_exactly_its_fields():
    model = document()["components"]["schemas"]["Model"]
    assert set(model["properties"]) == {
        "id", "key", "name", "last_modified", "organization_id", "language_data", "is_trainable", "type",
        "base_language_id", "base_language_key", "training_log",
    }  # fmt: skip
    assert set(model["required"]) == set(model["properties"]) - {"training_log"}
    assert model["additionalProperties"] is False


def test_every_operation_has_its_own_name_and_every_code_a_kind():
    names = [one.name for one in ENDPOINTS]
    assert len(set(names)) == len(names)
    assert {code for one in ENDPOINTS for code in one.codes} <= set(KINDS)


async def test_the_api_serves_its_own_description_without_a_key(live):
    served = await live.client(None).get("/openapi.json")
    assert served.json() == json.loads(as_text())
