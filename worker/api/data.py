"""Training data: shown, uploaded and removed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import structlog
from fastapi import Request
from fastapi.responses import Response

from worker.api import present, quotas
from worker.api.api import Api
from worker.api.bodies import path_id
from worker.api.contents import checked_kind
from worker.api.incoming import Arrived, Incoming, incoming
from worker.api.models import offset_and_limit
from worker.api.once import answered_before, once, repeated
from worker.api.problems import Refused, not_found
from worker.concurrency import all_of
from worker.errors import DatabaseAway, StorageAway
from worker.store import api as store
from worker.store import api_data
from worker.store.api_data import NewItem
from worker.store.api_keys import Answer, Key, audit
from worker.store.database import Connection, Record

_STORED_AT_ONCE = 4
_FILES_A_CHANGE = 100
"""Files of one request that count as a further change of the day: the answer kept for a repeat names them all."""
_LOG = structlog.get_logger("api")


async def list_data(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}/data."""
    model_id = path_id(request.path_params["id"])
    offset, limit = offset_and_limit(request)
    row = await api.model(key, model_id)
    rows = await api.data.page(model_id, offset, limit)
    return present.polled(request, present.page([present.data_item(item) for item in rows], row["data_items"]))


async def upload(api: Api, key: Key, request: Request) -> Response:
    """POST /custom_models/{id}/data: several files, each with its verdict."""
    model = await api.model(key, path_id(request.path_params["id"]))
    organization_id = model["organization_id"]
    with api.upload_slot(organization_id):
        # A repeat gets its answer, although what it repeats has used up the quota.
        again = await answered_before(api.database, request, key)
        quota_bytes = None if again else await quotas.room_bytes(api, organization_id)
        async with incoming(request, api, organization_id, quota_bytes) as arriving:
            told = await repeated(api.database, request, key, arriving.digest())
            return await _keep(api, key, request, model, arriving) if told is None else told


async def _keep(api: Api, key: Key, request: Request, model: Record, arriving: Incoming) -> Response:
    async with kept(api, model, arriving.arrived) as items:

        async def effect(connection: Connection) -> Answer:
            rows = await add(api, connection, key, model, items)
            return present.answer(_uploaded(rows, arriving), 201)

        async with api.turns.of(model["id"]):
            return await once(api, request, key, arriving.digest(), effect)


def _uploaded(rows: list[Record], arriving: Incoming) -> dict[str, object]:
    refused = [{"name": turned.name, "reason_code": turned.code, "reason": turned.reason} for turned in arriving.turned]
    return {"count": len(rows), "result": [present.data_item(row) for row in rows], "refused": refused}


@asynccontextmanager
async def kept(api: Api, model: Record, files: list[Arrived], announced: int = 0) -> AsyncIterator[list[NewItem]]:
    """Checked files in storage, within the quota; what the block gives no owner is removed at its end.

    Written down before, so that none is ever forgotten. Each lies under an address of its own, so that removing what
    one request stored never takes what another one has.

    Args:
        api: where to.
        model: whose data they will be.
        files: as they arrived.
        announced: bytes of these files that count as an unfinished upload already.

    Raises:
        Refused: the quota of bytes is used up; nothing was stored.
    """
    items = _new_items(model, files)
    sizes = {item.address: item.bytes for item in items}
    async with api.database.transaction() as connection:
        await api_data.intend(connection, model["id"], sizes, announced)
        await quotas.check(api, connection, model["organization_id"], "bytes", "leaving")
    try:
        await _put(api, files, items)
        yield await _compared(api, model, items)
    except Refused:  # rolled back; after any other error nobody knows, and the bytes go when their time has come
        await discard(api, model, list(sizes))
        raise
    else:
        await _discard_unowned(api, model, list(sizes))


def _new_items(model: Record, files: list[Arrived]) -> list[NewItem]:
    folder = f"organizations/{model['organization_id']}/models/{model['id']}/data"
    return [
        NewItem(
            name=file.name,
            kind=checked_kind(file.name),
            bytes=file.bytes,
            sha256=file.sha256,
            address=f"{folder}/{file.sha256}-{uuid4().hex[:12]}",
            duration_s=file.content.duration_s,
            split=file.split,
            audio_names=file.content.audio_names,
        )
        for file in files
    ]


async def _compared(api: Api, model: Record, items: list[NewItem]) -> list[NewItem]:
    """The files with what is known of those that hold the same as the ones they replace, where that is still stored."""
    known = {row["name"]: row for row in await api.data.named(model["id"], [item.name for item in items])}

    async def compared(item: NewItem) -> NewItem:
        row = known.get(item.name)
        if row is None or row["sha256"] != item.sha256 or await api.storage.size(row["address"]) != item.bytes:
            return item
        return replace(item, same_as=row["address"])

    return await all_of(items, compared, _STORED_AT_ONCE)


async def _put(api: Api, files: list[Arrived], items: list[NewItem]) -> None:
    async def put(pair: tuple[Arrived, NewItem]) -> None:
        file, item = pair
        await api.storage.put_file(file.path, item.address, move=True)

    # Not a task group: that would hide a storage that is away in a group of errors, which nobody answers with 503.
    await all_of(zip(files, items, strict=True), put, _STORED_AT_ONCE)


async def discard(api: Api, model: Record, addresses: list[str]) -> None:
    """Remove at once what a request stored and nobody will own; where storage is away, an hour later."""
    try:
        await api.storage.delete(addresses)
        await api.data.settle(model["id"], addresses)
    except (StorageAway, DatabaseAway) as error:
        _LOG.warning("bytes not removed yet", model=model["id"], objects=len(addresses), error=str(error))


async def _discard_unowned(api: Api, model: Record, addresses: list[str]) -> None:
    """A repeated request, or a file that was there already, owns nothing of what it has stored again."""
    try:
        unowned = await api.data.unowned(model["id"], addresses)
    except DatabaseAway:
        return
    if unowned:
        await discard(api, model, unowned)


async def add(api: Api, connection: Connection, key: Key, model: Record, items: list[NewItem]) -> list[Record]:
    """Stored files become training data, in the request's transaction.

    Raises:
        Busy: another change of the model's data is under way.
        Refused: the model is gone, an active run uses a file of the same name, or the quota is used up.
    """
    model_id, organization_id = model["id"], model["organization_id"]
    await api_data.try_hold(connection, model_id)
    if await store.read_model(connection, model_id, organization_id) is None:
        raise not_found()
    await _refuse_if_used(connection, model_id, await api_data.named(connection, model_id, [i.name for i in items]))
    rows = await api_data.add(connection, model_id, organization_id, items)
    await quotas.check(api, connection, organization_id, "hours", "bytes", "files", "manifest_names")
    await quotas.count_change(api, connection, organization_id, 1 + len(items) // _FILES_A_CHANGE)
    detail = {"files": len(rows), "names": [row["name"] for row in rows[:20]]}
    await audit(connection, key, organization_id, "upload", model_id=model_id, detail=detail)
    return list(rows)


async def _refuse_if_used(connection: Connection, model_id: int, rows: Sequence[Record]) -> None:
    """What an active run trains on, or will: all there was when its inputs were fixed."""
    if not rows:
        return
    active = await store.active_run(connection, model_id)
    if active is None:
        return
    used = [row["name"] for row in rows if not active["fixed"] or row["created_at"] <= active["started_at"]]
    if used:
        raise Refused("run_active", f"An active run of the model uses {used[0]}.")


async def delete(api: Api, key: Key, request: Request) -> Response:
    """DELETE /custom_models/{id}/data/{data_id}."""
    model_id = path_id(request.path_params["id"])
    data_id = path_id(request.path_params["data_id"], "data item")

    async def effect(connection: Connection) -> Answer:
        # The right first: how long the answer takes must not tell that another organization is uploading.
        if await store.read_model(connection, model_id, key.organization_id) is None:
            raise not_found()
        await api_data.try_hold(connection, model_id)  # before the model, as an upload does
        model = await store.lock_model(connection, model_id, key.organization_id)
        if model is None:
            raise not_found()
        row = await api_data.item(connection, model_id, data_id)
        if row is None:
            raise not_found("data item")
        await _refuse_if_used(connection, model_id, [row])
        await api_data.delete(connection, model_id, row)
        await audit(
            connection, key, model["organization_id"], "delete_data", model_id=model_id, detail={"name": row["name"]}
        )
        return Answer(204, None, b"")

    if await api.models.model(model_id, key.organization_id) is None:  # no turn of a model that is none of the caller's
        return await once(api, request, key, b"", effect)
    async with api.turns.of(model_id):
        return await once(api, request, key, b"", effect)


def new_upload_key(model: Record, upload_id: object, offset: int) -> str:
    """Where a part of a large file lies until the file is whole."""
    # The random end: two requests that send the same part must not overwrite each other's bytes.
    name = f"{offset:020d}-{uuid4().hex[:12]}"
    return f"organizations/{model['organization_id']}/models/{model['id']}/parts/{upload_id}/{name}"
