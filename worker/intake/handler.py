"""What a message means: bytes and properties in, a verdict out. Pure: no AMQP types, no await."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.messages import REQUEST_TYPE, RunRequested
from worker.domain.run import Request

LARGEST_BODY: Final = 65_536
"""Bytes. A request has about 200; what is far larger is not decoded at all."""
LONGEST_DETAIL: Final = 1_000
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class DeadReason(StrEnum):
    """Why a message became a dead letter: the header ``x-reason``."""

    TOO_LARGE = "too_large"
    CONTENT_TYPE = "content_type"
    """Not JSON by its own account, or encoded in a way that we do not read."""
    UNKNOWN_TYPE = "unknown_type"
    """Another kind or version of message."""
    NOT_JSON = "not_json"
    MALFORMED = "malformed"
    """JSON, but not a request."""
    RUN_CONFLICT = "run_conflict"
    """The run id is known with other ids, or the message contradicts itself."""
    MODEL_UNKNOWN = "model_unknown"
    MODEL_DELETED = "model_deleted"
    RUN_ACTIVE = "run_active"
    """The model trains already; worth replaying once that run is over."""
    REFUSED = "refused"
    """The database refused this message and took others at the same time."""


@dataclass(frozen=True)
class Properties:
    """What a message says about itself; None where it is silent."""

    content_type: str | None = None
    content_encoding: str | None = None
    type: str | None = None
    message_id: str | None = None
    headers: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Accepted:
    """A request that can be registered."""

    request: Request


@dataclass(frozen=True)
class Duplicate:
    """A run that is known already, with the same ids: nothing is left to do."""


@dataclass(frozen=True)
class Dead:
    """Not for us, and why."""

    reason: DeadReason
    detail: str


@dataclass(frozen=True)
class Again:
    """What stood in the way is gone: register once more."""


def understand(body: bytes, properties: Properties) -> Accepted | Dead:
    """Read a message. Nothing in it can raise."""
    if len(body) > LARGEST_BODY:
        return Dead(DeadReason.TOO_LARGE, f"{len(body)} bytes; a request has at most {LARGEST_BODY}")
    content_type = (properties.content_type or "application/json").split(";")[0].strip().lower()
    if content_type != "application/json":
        return _dead(
            DeadReason.CONTENT_TYPE, f"content type {properties.content_type!r}; requests are application/json"
        )
    if (properties.content_encoding or "utf-8").lower() not in ("utf-8", "identity"):
        return _dead(DeadReason.CONTENT_TYPE, f"content encoding {properties.content_encoding!r} is not read")
    if properties.type not in (None, "", REQUEST_TYPE):
        return _dead(DeadReason.UNKNOWN_TYPE, f"type {properties.type!r}; this worker reads {REQUEST_TYPE}")
    try:
        # A strict reader: UTF-8, no NaN, bounded depth.
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        return _dead(DeadReason.NOT_JSON, str(error))
    return _request(value, properties)


def _request(value: object, properties: Properties) -> Accepted | Dead:
    if not isinstance(value, dict):
        return _dead(DeadReason.MALFORMED, f"a request is an object, not {type(value).__name__}")
    # pydantic would also read other spellings: a UUID without hyphens, a date from a number.
    for name, form, wanted in (("run_id", _UUID, "a UUID"), ("requested_at", _RFC3339, "an RFC 3339 time")):
        if name in value and not (isinstance(value[name], str) and form.fullmatch(value[name])):
            return _dead(DeadReason.MALFORMED, f"{name}: {value[name]!r} is not {wanted}")
    try:
        wanted_run = RunRequested.model_validate(value)
        requested_at = wanted_run.requested_at.astimezone(UTC)  # the first and last hours of the calendar have no UTC
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False))
        return _dead(DeadReason.MALFORMED, "; ".join(faults))
    except OverflowError:
        return _dead(DeadReason.MALFORMED, "requested_at: beyond the calendar")
    if properties.message_id and not _names(properties.message_id, wanted_run.run_id):
        detail = f"message id {properties.message_id!r} is not the run id {wanted_run.run_id}"
        return _dead(DeadReason.RUN_CONFLICT, detail)
    return Accepted(
        Request(
            run_id=wanted_run.run_id,
            custom_model_id=wanted_run.custom_model_id,
            organization_id=wanted_run.organization_id,
            requested_at=requested_at,
            traceparent=_traceparent(properties.headers),
        )
    )


def judge(request: Request, standing: Mapping[str, Any]) -> Duplicate | Dead | Again:
    """Why a request could not be registered.

    Args:
        request: the request.
        standing: what the database says: known, same_ids, model_known, model_deleted, active_run_id.
    """
    if standing["known"]:
        if standing["same_ids"]:
            return Duplicate()
        return Dead(DeadReason.RUN_CONFLICT, f"run {request.run_id} exists for another model or organization")
    if not standing["model_known"]:
        detail = f"organization {request.organization_id} has no model {request.custom_model_id}"
        return Dead(DeadReason.MODEL_UNKNOWN, detail)
    if standing["model_deleted"]:
        return Dead(DeadReason.MODEL_DELETED, f"model {request.custom_model_id} is deleted")
    if standing["active_run_id"] is not None:
        detail = f"model {request.custom_model_id} trains already, run {standing['active_run_id']}"
        return Dead(DeadReason.RUN_ACTIVE, detail)
    return Again()


def _dead(reason: DeadReason, detail: str) -> Dead:
    return Dead(reason, detail if len(detail) <= LONGEST_DETAIL else detail[: LONGEST_DETAIL - 1] + "…")


def _names(message_id: str, run_id: UUID) -> bool:
    return message_id.lower() == str(run_id)


def _traceparent(headers: Mapping[str, Any] | None) -> str | None:
    found = (headers or {}).get("traceparent")
    return found if isinstance(found, str) and _TRACEPARENT.fullmatch(found) else None
