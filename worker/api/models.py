"""Custom models: the seven endpoints of version 3 but for the data."""

import re
import secrets
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from schemas.api import ModelWanted
from schemas.text import normalized
from worker.api import present, quotas
from worker.api.api import Api, own_organization
from worker.api.bodies import parse_json, path_id, query_choice, query_int, query_text, read_as, read_body, traceparent
from worker.api.once import once
from worker.api.problems import Refused, invalid, not_found
from worker.store import api as store
from worker.store.api import SORTS, Page
from worker.store.api_keys import Answer, Key, audit
from worker.store.database import Connection, Record

LONGEST_SEARCH: Final = 200
LARGEST_OFFSET: Final = 2**31 - 1
MOST_A_PAGE: Final = 100
_DEFAULT_PAGE: Final = 25


def offset_and_limit(request: Request) -> tuple[int, int]:
    """Which rows of a list are wanted.

    Raises:
        Refused: a bad number; names the field.
    """
    offset = query_int(request, "offset", 0, 0, LARGEST_OFFSET)
    return offset, query_int(request, "limit", _DEFAULT_PAGE, 1, MOST_A_PAGE)


async def create(api: Api, key: Key, request: Request) -> Response:
    """POST /custom_models."""
    wanted, body = await read_as(request, ModelWanted)
    own_organization(key, wanted.organization_id)

    async def effect(connection: Connection) -> Answer:
        organization, base = await store.known_parts(connection, wanted.organization_id, wanted.language_id)
        if not base:
            raise _no_language()
        if not organization:
            raise invalid("organization_id", "unknown", "There is no such organization.")
        row = await store.create_model(
            connection, new_key(wanted.name), wanted.name, wanted.organization_id, wanted.language_id
        )
        assert row is not None
        # After the insert, whose trigger holds the count: two at once cannot both be the last one allowed.
        await quotas.check(api, connection, wanted.organization_id, "models")
        await quotas.count_change(api, connection, wanted.organization_id)
        await audit(connection, key, wanted.organization_id, "create_model", model_id=row["id"])
        return present.answer(present.model(row, api.settings.minimum_audio_s), 201)

    return await once(api, request, key, body, effect)


def new_key(name: str) -> str:
    """A key for a model: readable, safe in a URL, and with 60 random bits never the same twice."""
    plain = normalized(name, "NFKD").encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")
    return f"{readable or 'model'}-{secrets.token_hex(8)[:15]}"


def _no_language() -> Refused:
    return invalid("language_id", "unknown", "There is no base language with this id.")


async def read(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}."""
    row = await api.model(key, path_id(request.path_params["id"]))
    return show(api, row, request)


def show(api: Api, row: Record, request: Request) -> Response:
    """A model as its pollers see it."""
    floor_s = api.settings.minimum_audio_s
    tag = present.model_tag(row, floor_s)
    if present.matches(request.headers.get("if-none-match"), tag):
        return Response(None, 304, present.POLLED | {"ETag": tag})
    return present.polled(request, present.model(row, floor_s), tag)


async def list_models(api: Api, key: Key, request: Request) -> Response:
    """GET /speech-to-text/models."""
    offset, limit = offset_and_limit(request)
    page = Page(
        offset,
        limit,
        query_choice(request, "sort", "id", SORTS),
        "desc" if query_choice(request, "direction", "asc", ("asc", "desc")) == "desc" else "asc",
        query_text(request, "q", LONGEST_SEARCH),
    )
    floor_s = api.settings.minimum_audio_s
    organization = key.organization_id
    if organization is None:
        total, rows = await api.models.page_of_all(page)
        return present.polled(request, present.page([present.model(row, floor_s) for row in rows], total))
    known = request.headers.get("if-none-match")
    if known is not None:
        tag = _list_tag(organization, (await api.models.counts(organization)).revision, floor_s)
        if present.matches(known, tag):
            return Response(None, 304, present.POLLED | {"ETag": tag})
    found = await api.models.page(organization, page)
    tag = _list_tag(organization, found.revision, floor_s)
    return present.polled(request, present.page([present.model(row, floor_s) for row in found.rows], found.total), tag)


def _list_tag(organization_id: int, revision: int, floor_s: float) -> str:
    """The revision moves with every change of a model, so a tag needs no look at the page."""
    return f'"{organization_id:x}-{revision:x}-{floor_s:g}"'


async def update(api: Api, key: Key, request: Request) -> Response:
    """PUT /custom_models/{id}."""
    model_id = path_id(request.path_params["id"])
    wanted, body = await read_as(request, ModelWanted)
    own_organization(key, wanted.organization_id)

    async def effect(connection: Connection) -> Answer:
        row = await store.lock_model(connection, model_id, key.organization_id)
        if row is None:
            raise not_found()
        if row["organization_id"] != wanted.organization_id:
            raise Refused("organization_mismatch", "A model stays with its organization.")
        if row["base_language_id"] != wanted.language_id:
            if not (await store.known_parts(connection, wanted.organization_id, wanted.language_id))[1]:
                raise _no_language()
            if row["training_status"] in store.ACTIVE:
                raise Refused("run_active", "The base language cannot change while a run is active.")
        changed = await store.update_model(connection, model_id, wanted.name, wanted.language_id)
        assert changed is not None
        await quotas.count_change(api, connection, row["organization_id"])
        await audit(connection, key, row["organization_id"], "update_model", model_id=model_id)
        return present.answer(present.model(changed, api.settings.minimum_audio_s))

    return await once(api, request, key, body, effect)


async def delete(api: Api, key: Key, request: Request) -> Response:
    """DELETE /custom_models/{id}: hidden at once, its run asked to stop."""
    model_id = path_id(request.path_params["id"])

    async def effect(connection: Connection) -> Answer:
        row = await store.read_model(connection, model_id, key.organization_id)
        if row is None:
            raise not_found()
        await store.hold_organization(connection, row["organization_id"])
        active = await store.active_run(connection, model_id)
        if active is not None:
            await store.stop_run(connection, active["id"])
        if not await store.delete_model(connection, model_id):
            raise not_found()
        await audit(connection, key, row["organization_id"], "delete_model", model_id=model_id)
        return Answer(204, None, b"")

    return await once(api, request, key, b"", effect)


async def run(api: Api, key: Key, request: Request) -> Response:
    """POST /custom_models/{id}/run: row, transition and outbox rows in one transaction."""
    model_id = path_id(request.path_params["id"])
    body = await read_body(request)
    if body.strip() and not isinstance(parse_json(body), dict):
        raise invalid("body", "not_an_object", "Send no body, or an empty JSON object.")

    async def effect(connection: Connection) -> Answer:
        row = await store.read_model(connection, model_id, key.organization_id)
        if row is None:
            raise not_found()
        organization_id = row["organization_id"]
        await store.hold_organization(connection, organization_id)
        row = await store.lock_model(connection, model_id, key.organization_id)
        if row is None:
            raise not_found()
        await _check_trainable(api, connection, row)
        run_id = await store.start_run(connection, row, traceparent(request), api.settings.wait_limit_s)
        if run_id is None:
            raise Refused("run_active", "A run of this model is active.")
        await quotas.count_change(api, connection, organization_id)
        await audit(connection, key, organization_id, "start_run", model_id=model_id, run_id=run_id)
        started = await store.read_model(connection, model_id, key.organization_id)
        assert started is not None
        return present.answer(present.model(started, api.settings.minimum_audio_s), 202)

    return await once(api, request, key, body, effect)


async def _check_trainable(api: Api, connection: Connection, row: Record) -> None:
    if row["training_status"] in store.ACTIVE:
        raise Refused("run_active", "A run of this model is active.")
    floor_s = api.settings.minimum_audio_s
    if not present.is_trainable(row, floor_s):
        raise Refused(
            "no_training_data",
            f"The model has {row['usable_ms'] / 1000:.1f} s of audio with transcripts; a run needs {floor_s:g} s.",
        )
    quota = await store.quota(connection, row["organization_id"])
    most = api.settings.api_quota_waiting if quota.limits.waiting is None else quota.limits.waiting
    if quota.waiting >= most:
        raise Refused(
            "quota_exceeded",
            f"The organization may have {most} runs waiting, and has {quota.waiting}."
            " Wait until some have begun, or cancel some.",
        )
