"""The route table. It reads like the contract; OpenAPI is made from it."""

# ruff: noqa: E501 - a table is read by its columns

from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from schemas import api as wire
from worker.api import data, models, others, runs, uploads, webhooks
from worker.api.api import Handler

_THINGS: Final = {"models": "model", "data": "data", "uploads": "upload", "runs": "run", "webhooks": "webhook"}


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        right: what the key's role must allow: look, change or own.
        status: of the answer when all is well.
        shows: the answer's model; None: none, or a media type of its own.
        takes: the body's model; None: no body, or a media type of its own.
        codes: of the refusals this endpoint has beside those that every endpoint has.
        query: names of query parameters.
        media_type: of an answer that is not JSON.
        body_type: of a body that is not JSON.
        polled: carries an entity tag and answers If-None-Match.
    """

    method: str
    path: str
    handler: Handler
    right: str
    summary: str
    status: int = 200
    shows: type[BaseModel] | None = None
    takes: type[BaseModel] | None = None
    codes: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    media_type: str = "application/json"
    body_type: str = "application/json"
    polled: bool = field(default=False)

    @property
    def name(self) -> str:
        """A name for clients: what the handler is called, and of what."""
        thing = _THINGS.get(self.handler.__module__.rpartition(".")[2])
        return (
            self.handler.__name__
            if thing is None or "_" in self.handler.__name__
            else f"{self.handler.__name__}_{thing}"
        )


_PAGE: Final = ("offset", "limit")
_BODY: Final = ("malformed_json", "unsupported_media", "too_large", "too_slow", "invalid")
_ONCE: Final = ("idempotency_in_progress", "idempotency_mismatch")
_FILES: Final = (
    "bad_file_name", "unsupported_media", "unreadable_audio", "empty_transcript", "unreadable_transcript",
    "unreadable_manifest", "too_large", "too_long", "malformed_request", "too_slow", "quota_exceeded", "run_active",
    "unavailable",
)  # fmt: skip
_MODEL: Final = "/custom_models/{id}"
_RUN: Final = f"{_MODEL}/runs/{{run_id}}"
_UPLOAD: Final = f"{_MODEL}/uploads/{{upload_id}}"
_HOOK: Final = "/webhooks/{webhook_id}"

VERSION_3: Final = (
    Endpoint("POST", "/custom_models", models.create, "change", "Create a custom model", 201, wire.Model, wire.ModelWanted,
             ("organization_mismatch", "quota_exceeded", *_BODY, *_ONCE)),
    Endpoint("GET", "/speech-to-text/models", models.list_models, "look", "List the caller's custom models", 200,
             wire.CustomModels, codes=("invalid",), query=(*_PAGE, "q", "sort", "direction"), polled=True),
    Endpoint("GET", _MODEL, models.read, "look", "One custom model", 200, wire.Model, codes=("not_found",), polled=True),
    Endpoint("PUT", _MODEL, models.update, "change", "Change a model's metadata", 200, wire.Model, wire.ModelWanted,
             ("not_found", "organization_mismatch", "run_active", "quota_exceeded", *_BODY, *_ONCE)),
    Endpoint("DELETE", _MODEL, models.delete, "change", "Delete a model and stop its run", 204,
             codes=("not_found", "invalid", *_ONCE)),
    Endpoint("GET", f"{_MODEL}/data", data.list_data, "look", "A model's training data", 200, wire.DataItems,
             codes=("not_found", "invalid"), query=_PAGE, polled=True),
    Endpoint("POST", f"{_MODEL}/run", models.run, "change", "Start training", 202, wire.Model,
             codes=("not_found", "run_active", "no_training_data", "quota_exceeded", "malformed_json", "too_large",
                    "too_slow", "invalid", *_ONCE), body_type="*/*"),
)  # fmt: skip

BEYOND: Final = (
    Endpoint("POST", f"{_MODEL}/data", data.upload, "change", "Upload training data", 201, wire.Uploaded,
             codes=("not_found", "malformed_multipart", "no_files", "too_many_files", "invalid", *_FILES, *_ONCE),
             body_type="multipart/form-data"),
    Endpoint("DELETE", f"{_MODEL}/data/{{data_id}}", data.delete, "change",
             "Remove one file, and what runs made of it but the weights of versions", 204,
             codes=("not_found", "run_active", "invalid", *_ONCE)),
    Endpoint("POST", f"{_MODEL}/uploads", uploads.create, "change", "Begin a large file", 201, wire.Upload,
             wire.UploadWanted, ("not_found", "bad_file_name", "quota_exceeded", *_BODY, *_ONCE)),
    Endpoint("GET", _UPLOAD, uploads.read, "look", "Where a large file stands", 200, wire.Upload,
             codes=("not_found",), polled=True),
    Endpoint("PATCH", _UPLOAD, uploads.add_part, "change", "The next part of a large file", 200, wire.Upload,
             codes=("not_found", "wrong_offset", "too_many_files", "invalid", *_FILES, *_ONCE),
             headers=("Upload-Offset",), body_type="application/octet-stream"),
    Endpoint("DELETE", _UPLOAD, uploads.delete, "change", "Give a large file up", 204, codes=("not_found", "invalid", *_ONCE)),
    Endpoint("GET", f"{_MODEL}/runs", runs.list_runs, "look", "A model's runs, the newest first", 200, wire.Runs,
             codes=("not_found", "invalid"), query=_PAGE, polled=True),
    Endpoint("GET", _RUN, runs.read, "look", "One run", 200, wire.RunDetail, codes=("not_found",), polled=True),
    Endpoint("POST", f"{_RUN}/cancel", runs.cancel, "change", "Cancel a run", 202, wire.RunDetail,
             codes=("not_found", "run_over", "too_large", "too_slow", "invalid", *_ONCE), body_type="*/*"),
    Endpoint("GET", f"{_RUN}/log", runs.read_log, "look", "The log of a run's newest attempt", 200,
             codes=("not_found", "range_not_satisfiable", "invalid"), query=("tail",), headers=("Range",),
             media_type="text/plain"),
    Endpoint("GET", f"{_RUN}/report", runs.read_report, "look", "A page on a run, for people", 200, codes=("not_found",),
             media_type="text/html"),
    Endpoint("GET", f"{_MODEL}/changes", others.changes, "look", "Server-sent events: the model or its run changed", 200,
             codes=("not_found",), media_type="text/event-stream"),
    Endpoint("GET", f"{_MODEL}/versions", runs.list_versions, "look", "What a model has published", 200, wire.Versions,
             codes=("not_found", "invalid"), query=_PAGE, polled=True),
    Endpoint("POST", f"{_MODEL}/versions/{{number}}/serve", runs.serve_version, "change", "Put a version (back) into use",
             200, wire.Model, codes=("not_found", "quota_exceeded", "too_large", "too_slow", "invalid", *_ONCE), body_type="*/*"),
    Endpoint("GET", "/base_languages", others.base_languages, "look", "What models start from", 200, wire.BaseLanguages,
             polled=True),
    Endpoint("GET", "/caller", others.caller, "look", "Whose key this is", 200, wire.Caller, polled=True),
    Endpoint("GET", "/audit_log", others.audit_log, "own", "Who changed what", 200, wire.AuditEntries, codes=("invalid",),
             query=("before", "limit"), polled=True),
    Endpoint("GET", "/webhooks", webhooks.list_webhooks, "own", "Where events go", 200, wire.Webhooks, polled=True),
    Endpoint("POST", "/webhooks", webhooks.create, "own", "Send events to an address", 201, wire.Webhook,
             wire.WebhookWanted, ("address_refused", "quota_exceeded", *_BODY, *_ONCE)),
    Endpoint("DELETE", _HOOK, webhooks.delete, "own", "Send no more events there", 204, codes=("not_found", "invalid", *_ONCE)),
    Endpoint("POST", f"{_HOOK}/test", webhooks.test, "own", "Send a test event", 202, wire.Delivery,
             codes=("not_found", "quota_exceeded", "too_large", "too_slow", "invalid", *_ONCE), body_type="*/*"),
    Endpoint("GET", f"{_HOOK}/deliveries", webhooks.list_deliveries, "own", "What was sent", 200, wire.Deliveries,
             codes=("not_found", "invalid"), query=_PAGE, polled=True),
)  # fmt: skip

ENDPOINTS: Final = VERSION_3 + BEYOND
EVERYWHERE: Final = ("unauthorized", "not_allowed", "rate_limited", "internal", "unavailable")
"""Codes that every endpoint may answer with."""
