"""Rows out: exactly the fields of the contract, and the entity tags by which a poll costs one index read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response

from schemas.status import TrainingStatus
from worker.store.api_keys import Answer
from worker.store.database import Record

JSON: Final = "application/json"
_ACTIVE: Final = (TrainingStatus.READY_TO_RUN, TrainingStatus.RUNNING)
_LONGEST_TAGS: Final = 1_000
"""Characters of ``If-None-Match`` that are looked at: a caller has one tag, and a list of 64 KiB takes milliseconds."""
POLLED: Final = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}


def to_json(document: Any) -> bytes:
    """Compact JSON; moments as ISO 8601 with their offset."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain).encode()


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def model(row: Record, floor_s: float) -> dict[str, Any]:
    """`Model`: no field more, none less."""
    status = row["training_status"]
    shown = {
        "id": row["id"],
        "key": row["key"],
        "name": row["name"],
        "last_modified": row["last_modified"].isoformat(),
        "organization_id": row["organization_id"],
        "language_data": None,
        "is_trainable": is_trainable(row, floor_s),
        "type": 1,
        "base_language_id": row["base_language_id"],
        "base_language_key": row["base_language_key"],
    }
    if status is not None:
        shown["training_log"] = {"language_id": row["id"], "training_status": status, "log_name": None}
    return shown


def is_trainable(row: Record, floor_s: float) -> bool:
    """Whether POST run would be accepted now."""
    usable_ms: int = row["usable_ms"]
    return row["training_status"] not in _ACTIVE and usable_ms > 0 and usable_ms >= floor_s * 1000


def model_tag(row: Record, floor_s: float) -> str:
    """Changes with every field of `Model`: all but `is_trainable` move `last_modified`."""
    return f'"{row["id"]:x}-{row["last_modified"].timestamp() * 1e6:.0f}-{is_trainable(row, floor_s):d}"'


def page(rows: Sequence[Any], total: int) -> dict[str, Any]:
    """A page of anything."""
    return {"count": len(rows), "total_results": total, "result": rows}


def data_item(row: Record) -> dict[str, Any]:
    """`DataItem`."""
    shown = {
        name: row[name]
        for name in ("id", "name", "kind", "bytes", "duration_s", "split", "verdict", "reason_code", "reason")
    }
    shown["created"] = row["created_at"]
    return shown


def run(row: Record) -> dict[str, Any]:
    """`Run`."""
    failure = None
    if row["failure_class"] is not None:
        failure = {
            "class": row["failure_class"],
            "code": shown_code(row["failure_code"]),
            "reason": row["failure_reason"],
        }
    return {
        "id": row["id"],
        "custom_model_id": row["custom_model_id"],
        "training_status": row["status"],
        "requested": row["requested_at"],
        "started": row["started_at"],
        "ended": row["ended_at"],
        "attempt": row["attempt"],
        "phase": row["phase"],
        "percent": round(row["percent"], 2),
        "eta_s": row["eta_s"],
        "since_sign_of_life_s": row["since_progress_s"],
        "cancel_requested": row["cancel_requested"],
        "failure": failure,
        "gate": row["gate"],
    }


def run_detail(row: Record, transitions: Sequence[Record]) -> dict[str, Any]:
    """`RunDetail`."""
    figures = row["figures"]
    return run(row) | {
        "failures": row["failures"],
        "data_report": row["data_report"],
        "error_rates": error_rates(figures),
        "figures": figures,
        "curve": curve(row["live"]),
        "transitions": [transition(move) for move in transitions],
        "has_log": row["log_address"] is not None,
        "has_report": figures is not None or row["data_report"] is not None,
    }


def transition(row: Record) -> dict[str, Any]:
    """`Transition`."""
    return {
        "sequence": row["sequence"],
        "from": row["from_status"],
        "to": row["to_status"],
        "attempt": row["attempt"],
        "at": row["at"],
        "reason_code": shown_code(row["reason_code"]),
    }


def shown_code(code: str | None) -> str | None:
    """A reason as its customer reads it: it says nothing about the runs of others."""
    return "lease_expired" if code == "bystander_of_lost_worker" else code


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def error_rates(figures: Mapping[str, Any] | None) -> dict[str, float | None]:
    """`ErrorRates`, from the figures of the evaluation."""
    known = figures or {}
    return {"base": _number(known.get("wer_base")), "custom": _number(known.get("wer_custom"))}


def curve(live: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """`CurvePoint` s, from the triples that the owner of a run writes: steps done, name, value."""
    points: list[dict[str, Any]] = []
    for point in (live or {}).get("curve", ()):
        match point:
            case [int() as steps, str() as name, int() | float() as value]:
                points.append({"name": name, "steps_done": steps, "value": value})
    return points


def version(row: Record) -> dict[str, Any]:
    """`Version`."""
    return {
        "number": row["number"],
        "run_id": row["run_id"],
        "created": row["created_at"],
        "serving": row["serving"],
        "figures": row["figures"],
    }


def answer(document: Any, status: int = 200) -> Answer:
    """An answer to keep and send."""
    return Answer(status, JSON, to_json(document))


def polled(request: Request, document: Any, tag: str | None = None) -> Response:
    """An answer that is polled: 304 where the caller has it already. Without a tag one is made from the bytes."""
    body = None
    if tag is None:
        body = to_json(document)
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = POLLED | {"ETag": tag}
    if matches(request.headers.get("if-none-match"), tag):
        return Response(None, 304, headers)
    return Response(to_json(document) if body is None else body, 200, headers, JSON)


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether a caller's ``If-None-Match`` holds a tag, weak or not."""
    if if_none_match is None or len(if_none_match) > _LONGEST_TAGS:
        return False
    if if_none_match == tag or if_none_match.strip() == "*":
        return True
    return any(one.strip().removeprefix("W/") == tag for one in if_none_match.split(","))
