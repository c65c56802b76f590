"""Errors as RFC 9457 problem documents with a stable code. Raised anywhere in a handler; told in one place."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi.responses import Response

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One code: the status it travels with, and its title."""

    status: int
    title: str


KINDS: Final[dict[str, Kind]] = {
    "malformed_json": Kind(400, "The body is not JSON"),
    "malformed_multipart": Kind(400, "The body is not multipart form data"),
    "malformed_request": Kind(400, "The request cannot be understood"),
    "unauthorized": Kind(401, "A valid key is needed"),
    "not_allowed": Kind(403, "This key may not do that"),
    "organization_mismatch": Kind(403, "Another organization's id"),
    "quota_exceeded": Kind(403, "The organization's quota is used up"),
    "not_found": Kind(404, "There is no such thing"),
    "method_not_allowed": Kind(405, "Not with this method"),
    "too_slow": Kind(408, "The body came too slowly"),
    "run_active": Kind(409, "The model is busy"),
    "run_over": Kind(409, "The run is over"),
    "wrong_offset": Kind(409, "The upload stands elsewhere"),
    "idempotency_in_progress": Kind(409, "The first request with this key is still in progress"),
    "too_large": Kind(413, "Too large"),
    "too_long": Kind(413, "Too long"),
    "too_many_files": Kind(413, "Too many files"),
    "unsupported_media": Kind(415, "Unsupported media"),
    "range_not_satisfiable": Kind(416, "Nothing there"),
    "invalid": Kind(422, "Some fields do not fit"),
    "no_training_data": Kind(422, "Not enough usable training data"),
    "idempotency_mismatch": Kind(422, "The same Idempotency-Key with another body"),
    "bad_file_name": Kind(422, "A file name that cannot be one"),
    "no_files": Kind(422, "No file came"),
    "unreadable_audio": Kind(422, "Not readable as audio"),
    "empty_transcript": Kind(422, "An empty transcript"),
    "unreadable_transcript": Kind(422, "Not readable as a transcript"),
    "unreadable_manifest": Kind(422, "Not readable as a manifest"),
    "address_refused": Kind(422, "Not an address that events may go to"),
    "rate_limited": Kind(429, "Too many requests"),
    "head_too_large": Kind(431, "The request's head is too large"),
    "internal": Kind(500, "A fault of ours"),
    "unavailable": Kind(503, "Not available at the moment"),
}


class Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that is answered with a problem document.

    Args:
        code: one of ``KINDS``.
        detail: a sentence for the person who reads it.
        errors: (field, code, message) of every field at fault.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}

    @property
    def status(self) -> int:
        """HTTP status."""
        return KINDS[self.code].status

    def body(self) -> bytes:
        """The problem document."""
        kind = KINDS[self.code]
        document: dict[str, object] = {
            "type": f"urn:speech-training:problem:{self.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            document["errors"] = [
                {"field": field, "code": code, "message": message} for field, code, message in self.errors
            ]
        # ASCII: what a caller sent may come back in a message, lone surrogates and all.
        return json.dumps(document).encode()

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), self.status, dict(self.headers), MEDIA_TYPE)


def not_found(what: str = "model") -> Refused:
    """Unknown, deleted or another organization's: nobody can tell which."""
    return Refused("not_found", f"There is no such {what}.")


def invalid(field: str, code: str, message: str) -> Refused:
    """One field at fault."""
    return Refused("invalid", message, errors=[(field, code, message)])
