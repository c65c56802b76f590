"""What is no model: base languages, the caller itself, the audit trail, and changes as they happen."""

from collections.abc import AsyncIterator
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from schemas.messages import LARGEST_ID
from worker.api import present
from worker.api.api import Api
from worker.api.bodies import path_id, query_int
from worker.api.models import MOST_A_PAGE
from worker.api.problems import Refused
from worker.api.streams import BoundedStream
from worker.api.webhooks import organization_of
from worker.store.api import Counts
from worker.store.api_keys import Key

_CHANGED: Final = b"event: changed\ndata: {}\n\n"
_ALIVE: Final = b": still here\n\n"
_GONE: Final = b"event: gone\ndata: {}\n\n"


async def base_languages(api: Api, key: Key, request: Request) -> Response:  # noqa: ARG001 - the same for every key
    """GET /base_languages."""
    rows = [dict(row) for row in await api.models.base_languages()]
    return present.polled(request, present.page(rows, len(rows)))


async def caller(api: Api, key: Key, request: Request) -> Response:
    """GET /caller: whose key this is."""
    organization = key.organization_id
    counts = Counts(0, 0, 0, 0) if organization is None else await api.models.counts(organization)
    shown = {
        "organization_id": organization,
        "role": key.role,
        "key_name": key.name,
        "models": counts.models,
        "stored_hours": round(counts.stored_ms / 3_600_000, 3),
        "minimum_audio_s": api.settings.minimum_audio_s,
    }
    return present.polled(request, shown)


async def audit_log(api: Api, key: Key, request: Request) -> Response:
    """GET /audit_log: who changed what, the newest first."""
    before = query_int(request, "before", LARGEST_ID, 1, LARGEST_ID)
    limit = query_int(request, "limit", 25, 1, MOST_A_PAGE)
    rows = [dict(row) for row in await api.audit.page(organization_of(key), before, limit)]
    return present.polled(request, {"count": len(rows), "result": rows})


async def changes(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}/changes: a line whenever the model or its run changed, as server-sent events."""
    model = await api.model(key, path_id(request.path_params["id"]))

    async def told() -> AsyncIterator[bytes]:
        async for changed in api.watcher.changes(model["id"], lambda: api.keyring.still_valid(key)):
            yield _GONE if changed is None else _CHANGED if changed else _ALIVE

    places = [(api.limits.watchers, key.holder), (api.limits.watchers_of_key, key.id)]
    detail = "Too many watch at the moment: poll instead."
    refused = Refused("unavailable", detail, headers={"Retry-After": "60"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return BoundedStream(told(), places, refused, headers, "text/event-stream")
