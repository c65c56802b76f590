"""OpenAPI from the route table: what `schemas/openapi.json` holds. A test keeps the file current."""

import json
import re
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from schemas import api as wire
from worker import __version__
from worker.api.endpoints import ENDPOINTS, EVERYWHERE, Endpoint
from worker.api.models import LARGEST_OFFSET, LONGEST_SEARCH, MOST_A_PAGE
from worker.api.problems import KINDS, MEDIA_TYPE
from worker.api.routes import PREFIX
from worker.store.api import SORTS

_REF: Final = "#/components/schemas/{model}"
_ID: Final = {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2**63 - 1}
_EXACT: Final = ("Model", "TrainingLog", "CustomModels")
"""Version 3 has no field more."""
_QUERY: Final[dict[str, dict[str, Any]]] = {
    "offset": {"type": "integer", "minimum": 0, "maximum": LARGEST_OFFSET, "default": 0},
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST_A_PAGE, "default": 25},
    "q": {"type": "string", "maxLength": LONGEST_SEARCH, "pattern": r"^[^\u0000]*$"},
    "sort": {"type": "string", "enum": list(SORTS), "default": "id"},
    "direction": {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
    "tail": {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 0},
    "before": _ID,
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Upload-Offset": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
    "Range": {"type": "string"},
}
_FILES: Final = {
    "type": "object",
    "properties": {
        "split": {"type": "string", "enum": ["train", "dev", "test", ""]},
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
    "required": ["file"],
}


def document() -> dict[str, Any]:
    """The whole OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(PREFIX + endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Custom Models",
            "version": __version__,
            "description": "Custom speech recognition models: created, fed, trained and watched.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def as_text() -> str:
    """The document as the file holds it."""
    return json.dumps(document(), indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def _schemas() -> dict[str, Any]:
    shown = {endpoint.shows for endpoint in ENDPOINTS if endpoint.shows} | {wire.Problem}
    taken = {endpoint.takes for endpoint in ENDPOINTS if endpoint.takes}
    modes = [(model, "serialization") for model in shown] + [(model, "validation") for model in taken]
    modes.sort(key=lambda mode: mode[0].__name__)
    definitions: dict[str, Any] = models_json_schema(modes, by_alias=True, ref_template=_REF)[1]["$defs"]  # type: ignore[arg-type]
    for name, schema in definitions.items():
        answered = name not in {model.__name__ for model in taken}
        if answered and "properties" in schema:
            schema["required"] = list(schema["properties"])
        if name in _EXACT:
            schema["additionalProperties"] = False
    log = definitions["Model"]["properties"]["training_log"]
    definitions["Model"]["properties"]["training_log"] = log["anyOf"][0] | {
        "description": "absent until a run was asked for"
    }
    definitions["Model"]["required"].remove("training_log")
    errors = definitions["Problem"]["properties"]["errors"]
    definitions["Problem"]["properties"]["errors"] = errors["anyOf"][0]
    definitions["Problem"]["required"].remove("errors")
    definitions["Problem"]["properties"]["code"]["enum"] = list(KINDS)
    return dict(sorted(definitions.items()))


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint),
    }
    body = _body(endpoint)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in re.findall(r"{(\w+)}", endpoint.path):
        schema = {"type": "string", "format": "uuid"} if name in {"run_id", "upload_id"} else _ID
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    found += [{"name": name, "in": "query", "schema": _QUERY[name]} for name in endpoint.query]
    for name in endpoint.headers:
        found.append({"name": name, "in": "header", "required": name == "Upload-Offset", "schema": _HEADERS[name]})
    if "idempotency_mismatch" in endpoint.codes:
        schema = {"type": "string", "pattern": r"^[\x21-\x7e]{1,200}$"}
        found.append({"name": "Idempotency-Key", "in": "header", "schema": schema})
    if endpoint.polled:
        found.append({"name": "If-None-Match", "in": "header", "schema": {"type": "string"}})
    return found


def _body(endpoint: Endpoint) -> dict[str, Any] | None:
    if endpoint.takes is not None:
        schema: dict[str, Any] = {"$ref": _REF.format(model=endpoint.takes.__name__)}
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    match endpoint.body_type:
        case "multipart/form-data":
            return {"required": True, "content": {"multipart/form-data": {"schema": _FILES}}}
        case "application/octet-stream":
            schema = {"type": "string", "format": "binary"}
            return {"required": True, "content": {"application/octet-stream": {"schema": schema}}}
        case "*/*":
            return {"required": False, "content": {"application/json": {"schema": {"type": "object"}}}}
    return None


_GIVES: Final = {
    ("POST", "/custom_models"): ("id", "/id"),
    ("POST", "/custom_models/{id}/uploads"): ("upload_id", "/id"),
    ("POST", "/webhooks"): ("webhook_id", "/id"),
}
"""Endpoints that make something others ask for: path parameter, and where it stands. A list may be empty."""


def _links(endpoint: Endpoint) -> dict[str, Any]:
    """Where a caller can go from an answer."""
    gives = _GIVES.get((endpoint.method, endpoint.path))
    if gives is None:
        return {}
    name, pointer = gives
    known = set(re.findall(r"{(\w+)}", endpoint.path))
    links = {}
    for other in ENDPOINTS:
        needs = set(re.findall(r"{(\w+)}", other.path))
        if name in needs and needs <= known | {name}:
            parameters = {name: f"$response.body#{pointer}"} | {one: f"$request.path.{one}" for one in sorted(known)}
            links[other.name] = {"operationId": other.name, "parameters": parameters}
    return links


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    good: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.shows is not None:
        schema: dict[str, Any] = {"$ref": _REF.format(model=endpoint.shows.__name__)}
        good["content"] = {"application/json": {"schema": schema}}
    elif endpoint.status != 204:  # noqa: PLR2004 - no content
        good["content"] = {endpoint.media_type: {"schema": {"type": "string"}}}
    links = _links(endpoint)
    if links:
        good["links"] = links
    if endpoint.polled:
        good["headers"] = {"ETag": {"schema": {"type": "string"}}}
    responses = {str(endpoint.status): good}
    if endpoint.polled:
        responses["304"] = {
            "description": "The caller has it already",
            "headers": {"ETag": {"schema": {"type": "string"}}},
        }
    if "Range" in endpoint.headers:
        responses["206"] = good | {"description": "The range of bytes asked for"}
    codes: dict[int, list[str]] = {}
    for code in dict.fromkeys(endpoint.codes + EVERYWHERE):
        codes.setdefault(KINDS[code].status, []).append(code)
    for status, names in sorted(codes.items()):
        content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
        responses[str(status)] = {"description": ", ".join(names), "content": content}
    return responses


def main() -> None:
    """Write ``schemas/openapi.json`` beside the package of schemas."""
    path = Path(wire.__file__).with_name("openapi.json")
    path.write_text(as_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
