"""Runs of a model: listed, looked at, cancelled; their log and report; versions and roll-back."""

import re
from collections.abc import Sequence
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from worker.api import present, quotas, report
from worker.api.api import Api
from worker.api.bodies import path_id, path_uuid, query_int, read_body
from worker.api.models import offset_and_limit
from worker.api.once import once
from worker.api.problems import Refused, not_found
from worker.api.streams import download
from worker.store import api as store
from worker.store.api_keys import Answer, Key, audit
from worker.store.audit import Subject
from worker.store.database import Connection, Record

_TAIL_BYTES: Final = 2 << 20
_MOST_TAIL: Final = 10_000
# In an origin of its own, with no way out: it may run its script and play its recordings, whatever texts it holds.
_RECIPE_REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src data:; base-uri 'none'; "
    "form-action 'none'; sandbox allow-scripts"
)
_TEXT: Final = "text/plain; charset=utf-8"
_ANSWERED: Final = {"Cache-Control": "private, no-cache", "Vary": "Authorization", "X-Content-Type-Options": "nosniff"}


async def list_runs(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}/runs."""
    offset, limit = offset_and_limit(request)
    model = await api.model(key, path_id(request.path_params["id"]))
    total, rows = await api.models.runs(model["id"], offset, limit)
    return present.polled(request, present.page([present.run(row) for row in rows], total))


async def _run(api: Api, key: Key, request: Request) -> Record:
    model_id, run_id = path_id(request.path_params["id"]), path_uuid(request.path_params["run_id"])
    row = await api.models.run(model_id, run_id, key.organization_id)
    if row is None:
        raise not_found("run")
    return row


async def read(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}/runs/{run_id}."""
    row = await _run(api, key, request)
    return present.polled(request, await _detail(api, row))


async def _detail(api: Api, row: Record) -> dict[str, object]:
    return present.run_detail(row, await api.models.transitions(row["id"]))


async def cancel(api: Api, key: Key, request: Request) -> Response:
    """POST /custom_models/{id}/runs/{run_id}/cancel."""
    row = await _run(api, key, request)
    await read_body(request)

    async def effect(connection: Connection) -> Answer:
        await store.hold_organization(connection, row["organization_id"])
        before, _ = await _now(connection, row)
        if not await store.stop_run(connection, row["id"]):
            raise Refused("run_over", "The run is over.")
        if not before["cancel_requested"]:  # asking again changes nothing, and fills no audit trail
            await audit(
                connection, key, row["organization_id"], "cancel_run", model_id=row["custom_model_id"], run_id=row["id"]
            )
        return present.answer(present.run_detail(*await _now(connection, row)), 202)

    return await once(api, request, key, b"", effect)


async def _now(connection: Connection, run: Record) -> tuple[Record, Sequence[Record]]:
    """A run and its history, while its organization is held.

    Raises:
        Refused: the model was deleted since the run was looked up.
    """
    now = await store.run_now(connection, run["custom_model_id"], run["id"])
    if now is None:
        raise not_found("run")
    return now


async def read_log(api: Api, key: Key, request: Request) -> Response:
    """GET …/log: all of it, a range of bytes, or the last lines."""
    row = await _run(api, key, request)
    tail = query_int(request, "tail", 0, 0, _MOST_TAIL)
    size = None if row["log_address"] is None else await api.storage.size(row["log_address"])
    if size is None:
        raise not_found("log")
    await api.trail.read(key, Subject(row["organization_id"], row["custom_model_id"], row["id"]), "read_log")
    if tail:
        last = await _tail(api, row["log_address"], size, tail)
        return download(api, key, last, _ANSWERED | {"Content-Length": str(len(last))}, _TEXT)
    start, end = _range(request.headers.get("range"), size)
    headers = _ANSWERED | {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    partial = (start, end) != (0, size)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    body = api.storage.stream(row["log_address"], start, end) if end > start else b""
    return download(api, key, body, headers, _TEXT, 206 if partial else 200)


async def _tail(api: Api, address: str, size: int, lines: int) -> bytes:
    start = max(0, size - _TAIL_BYTES)
    text = b"".join([piece async for piece in api.storage.stream(address, start, size)]) if size else b""
    return b"".join(text.splitlines(keepends=True)[-lines:])


def _range(header: str | None, size: int) -> tuple[int, int]:
    """From and before which byte; a header we do not understand asks for everything, as the standard says.

    Raises:
        Refused: it begins behind the end, or asks for the last no bytes.
    """
    asked = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    if asked is None or asked.group(0) == "bytes=-":
        return 0, size
    first, last = asked.groups()
    if not first and int(last) and not size:
        return 0, 0  # the end of an empty log is all of it
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size or end <= start:
        raise Refused("range_not_satisfiable", "The log ends before.", headers={"Content-Range": f"bytes */{size}"})
    return start, end


async def read_report(api: Api, key: Key, request: Request) -> Response:
    """GET …/report: a page for people.

    The one that the recipe made where there is one; else, or asked for by ``view=summary``, a short one from what
    the database knows.
    """
    row = await _run(api, key, request)
    await api.trail.read(key, Subject(row["organization_id"], row["custom_model_id"], row["id"]), "read_report")
    if row["report_address"] is not None and request.query_params.get("view") != "summary":
        size = await api.storage.size(row["report_address"])
        if size is not None:
            headers = _ANSWERED | {"Content-Security-Policy": _RECIPE_REPORT_POLICY, "Content-Length": str(size)}
            pieces = api.storage.stream(row["report_address"], 0, size)
            return download(api, key, pieces, headers, "text/html; charset=utf-8")
    page = report.page(row, await api.models.transitions(row["id"]))
    # The page runs nothing and loads nothing, whatever a customer's file names hold.
    headers = _ANSWERED | {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
    return Response(page, 200, headers, "text/html; charset=utf-8")


async def list_versions(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}/versions."""
    offset, limit = offset_and_limit(request)
    model = await api.model(key, path_id(request.path_params["id"]))
    total, rows = await api.models.versions(model["id"], offset, limit)
    return present.polled(request, present.page([present.version(row) for row in rows], total))


async def serve_version(api: Api, key: Key, request: Request) -> Response:
    """POST /custom_models/{id}/versions/{number}/serve: roll back, or forward again."""
    model_id = path_id(request.path_params["id"])
    number = path_id(request.path_params["number"], "version")
    await read_body(request)

    async def effect(connection: Connection) -> Answer:
        model = await store.lock_model(connection, model_id, key.organization_id)
        if model is None:
            raise not_found()
        if number >= 2**31 or not await store.serve_version(connection, model_id, number):
            raise not_found("version")
        detail = {"version": number}
        await quotas.count_change(api, connection, model["organization_id"])
        await audit(connection, key, model["organization_id"], "serve_version", model_id=model_id, detail=detail)
        changed = await store.read_model(connection, model_id, key.organization_id)
        assert changed is not None
        return present.answer(present.model(changed, api.settings.minimum_audio_s))

    return await once(api, request, key, b"", effect)
