"""Bodies and parameters in: every field at fault is named, nothing large is read into memory."""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from schemas.messages import LARGEST_ID
from worker.api.problems import Refused, invalid, not_found

LARGEST_JSON_BYTES: Final = 64 * 1024
PATIENCE_S = 60.0
"""Longest pause of a sender inside a body; also the longest that a small body may take."""
_ID: Final = re.compile(r"[1-9][0-9]{0,18}")
_JSON: Final = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
M = TypeVar("M", bound=BaseModel)


def path_id(text: str, what: str = "model") -> int:
    """A positive 64-bit integer from a path.

    Raises:
        Refused: it is something else, so there is no such thing.
    """
    if _ID.fullmatch(text) is None or int(text) > LARGEST_ID:
        raise not_found(what)
    return int(text)


def path_uuid(text: str, what: str = "run") -> UUID:
    """A UUID from a path.

    Raises:
        Refused: it is something else, so there is no such thing.
    """
    try:
        return UUID(text)
    except ValueError:
        raise not_found(what) from None


def query_int(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A number from the query.

    Raises:
        Refused: not a whole number, or out of range; names the field.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if re.fullmatch(r"-?[0-9]{1,19}", text) is None or not low <= int(text) <= high:
        raise invalid(name, "out_of_range", f"{name} is a whole number from {low} to {high}.")
    return int(text)


def query_choice(request: Request, name: str, default: str, choices: tuple[str, ...]) -> str:
    """One of some words from the query.

    Raises:
        Refused: another word; names the field.
    """
    text = request.query_params.get(name, default)
    if text not in choices:
        raise invalid(name, "unknown", f"{name} is one of: {', '.join(choices)}.")
    return text


def query_text(request: Request, name: str, longest: int) -> str | None:
    """A text from the query; None where there is none.

    Raises:
        Refused: too long, or with characters that no text has.
    """
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if len(text) > longest or "\x00" in text:
        raise invalid(name, "not_a_text", f"{name} is a text of at most {longest} characters.")
    return text


async def chunks(request: Request, least_bytes_per_s: float = 0, longest_s: float = math.inf) -> AsyncIterator[bytes]:
    """A body as it arrives, from a sender who keeps sending.

    Only the time in which we wait counts for the sender's rate, not the time that we need ourselves.

    Args:
        request: whose body.
        least_bytes_per_s: that have to come in each minute of waiting.
        longest_s: for all of it.

    Raises:
        Refused: it broke off, nothing came for a minute, or it comes too slowly.
    """
    now = asyncio.get_running_loop().time
    stream = request.stream()
    ends_at = now() + longest_s
    waited_s, came = 0.0, 0
    try:
        while True:
            began = now()
            async with asyncio.timeout(max(0.0, min(PATIENCE_S, ends_at - began))):
                chunk = await anext(stream)
            waited_s += now() - began
            came += len(chunk)
            if waited_s >= PATIENCE_S:
                if came < least_bytes_per_s * PATIENCE_S:
                    raise _too_slow()
                waited_s, came = 0.0, 0
            yield chunk
    except StopAsyncIteration:
        return
    except TimeoutError:
        raise _too_slow() from None
    except ClientDisconnect:
        raise Refused("malformed_request", "The body broke off.") from None


def _too_slow() -> Refused:
    # Without "Connection: close": the connection still takes a little of the body, so that its sender can read why.
    return Refused("too_slow", "The body came too slowly.")


async def read_body(request: Request, limit_bytes: int = LARGEST_JSON_BYTES) -> bytes:
    """A small body, whole.

    Raises:
        Refused: too large, too slow, or it broke off.
    """
    body = bytearray()
    async for chunk in chunks(request, longest_s=PATIENCE_S):
        body += chunk
        if len(body) > limit_bytes:
            raise Refused("too_large", f"This body has at most {limit_bytes} bytes.")
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """JSON as the standard has it: no NaN, no endless nesting.

    Raises:
        Refused: it is none.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("malformed_json", "The body is not JSON.") from None


def _no_constant(name: str) -> None:
    raise ValueError(name)


async def read_as(request: Request, model: type[M]) -> tuple[M, bytes]:
    """A JSON body as a wire model, and its bytes.

    Raises:
        Refused: another media type, not JSON, or fields that do not fit, every one named.
    """
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    body = await read_body(request)
    if _JSON.fullmatch(media_type) is None:
        raise Refused("unsupported_media", "Send the body as application/json.")
    return parse_as(parse_json(body), model), body


def parse_as(data: Any, model: type[M]) -> M:
    """Parsed JSON as a wire model.

    Raises:
        Refused: fields that do not fit, every one named.
    """
    if not isinstance(data, dict):
        raise invalid("body", "not_an_object", "The body is a JSON object.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["type"], fault["msg"]) for fault in error.errors()]
        detail = "Some fields do not fit: " + ", ".join(sorted({field for field, _, _ in faults})) + "."
        raise Refused("invalid", _CONTROL.sub(" ", detail), errors=faults) from None


def traceparent(request: Request) -> str | None:
    """The W3C trace context of a request, where it has a valid one."""
    text = request.headers.get("traceparent", "")
    return text if re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", text) else None
