"""Large files in parts: a part that broke off is sent again from where the file stands."""

import hashlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from fastapi import Request
from fastapi.responses import Response

from schemas.api import UploadWanted
from worker.api import present, quotas
from worker.api.api import Api
from worker.api.bodies import path_id, path_uuid, read_as
from worker.api.contents import RefusedContent, check_size, checked_name
from worker.api.data import add, discard, kept, new_upload_key
from worker.api.incoming import Arrived, Incoming, look_at, spool_folder, upload_chunks
from worker.api.limits import room_for
from worker.api.once import once, repeated
from worker.api.problems import Refused, invalid, not_found
from worker.errors import NotStored, TooLarge
from worker.storage.disk import writing_errors
from worker.store import api as store
from worker.store import api_data
from worker.store.api_keys import Answer, Key, audit
from worker.store.database import Connection, Record

LARGEST_PART_BYTES: Final = 64 << 20
MOST_UPLOADS: Final = 100
"""Files on their way to one model at the same time."""
MOST_PARTS: Final = 10_000
_KEPT: Final = timedelta(hours=24)


def _show(row: Record, item: Record | None = None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "bytes": row["bytes"],
        "received": row["received"],
        "expires": row["changed_at"] + _KEPT,
        "item": None if item is None else present.data_item(item),
    }


async def create(api: Api, key: Key, request: Request) -> Response:
    """POST /custom_models/{id}/uploads."""
    model = await api.model(key, path_id(request.path_params["id"]))
    wanted, body = await read_as(request, UploadWanted)
    try:
        name = checked_name(wanted.name)
        check_size(name, wanted.bytes, api.settings.api_largest_file_bytes)
    except RefusedContent as refused:
        raise Refused(refused.code, refused.reason, errors=[("name", refused.code, refused.reason)]) from None
    largest = min(api.settings.api_largest_file_bytes, api.limits.largest_request_bytes)
    if wanted.bytes > largest:
        raise Refused("too_large", f"A file has at most {largest} bytes.")

    async def effect(connection: Connection) -> Answer:
        await api_data.try_hold(connection, model["id"])
        if await api_data.count_uploads(connection, model["id"]) >= MOST_UPLOADS:
            raise Refused(
                "quota_exceeded",
                f"At most {MOST_UPLOADS} files may be on their way to one model. Finish or delete unfinished uploads.",
            )
        row = await api_data.create_upload(
            connection, uuid4(), model["id"], model["organization_id"], name, wanted.split, wanted.bytes
        )
        await quotas.check(api, connection, model["organization_id"], "bytes", "leaving", "uploads")
        await quotas.count_change(api, connection, model["organization_id"])
        await audit(
            connection, key, model["organization_id"], "begin_upload", model_id=model["id"], detail={"name": name}
        )
        return present.answer(_show(row), 201)

    async with api.turns.of(model["id"]):
        return await once(api, request, key, body, effect)


async def _upload(api: Api, key: Key, request: Request) -> tuple[Record, Record]:
    model = await api.model(key, path_id(request.path_params["id"]))
    row = await api.data.upload(model["id"], path_uuid(request.path_params["upload_id"], "upload"))
    if row is None:
        raise not_found("upload")
    return model, row


async def read(api: Api, key: Key, request: Request) -> Response:
    """GET /custom_models/{id}/uploads/{upload_id}: where to go on."""
    _, row = await _upload(api, key, request)
    return present.polled(request, _show(row))


async def delete(api: Api, key: Key, request: Request) -> Response:
    """DELETE /custom_models/{id}/uploads/{upload_id}."""
    model_id = path_id(request.path_params["id"])
    upload_id = path_uuid(request.path_params["upload_id"], "upload")

    async def effect(connection: Connection) -> Answer:
        # Looked up inside, so that a repeat gets its answer although the upload is gone.
        if await store.read_model(connection, model_id, key.organization_id) is None:
            raise not_found()
        if not await api_data.end_upload(connection, model_id, upload_id):
            raise not_found("upload")
        return Answer(204, None, b"")

    return await once(api, request, key, b"", effect)


async def add_part(api: Api, key: Key, request: Request) -> Response:
    """PATCH /custom_models/{id}/uploads/{upload_id}: the bytes from Upload-Offset on; the last part ends the upload."""
    upload_id = path_uuid(request.path_params["upload_id"], "upload")
    told = await repeated(api.database, request, key, upload_id.bytes)  # the upload itself is gone with its last part
    if told is not None:
        return told
    model, row = await _upload(api, key, request)
    text = request.headers.get("upload-offset", "")
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise invalid("Upload-Offset", "missing", "Upload-Offset says where the part begins.")
    if int(text) != row["received"]:
        raise Refused("wrong_offset", f"The upload stands at {row['received']}.")
    with api.upload_slot(model["organization_id"]):
        if row["received"] < row["bytes"]:  # else: everything is there, only the end was lost
            row = await _store_part(api, model, row, request)
        if row["received"] < row["bytes"]:
            return present.polled(request, _show(row))
        return await _finish(api, key, request, model, row)


async def _store_part(api: Api, model: Record, row: Record, request: Request) -> Record:
    if len(row["parts"]) >= MOST_PARTS:
        raise Refused("too_many_files", f"A file comes in at most {MOST_PARTS} parts.")
    address = new_upload_key(model, row["id"], row["received"])
    await api.data.intend(model["id"], {address: 0})  # the upload's announced bytes count already
    try:
        return await _store_part_at(api, model, row, request, address)
    except Refused:
        await discard(api, model, [address])
        raise


async def _store_part_at(api: Api, model: Record, row: Record, request: Request, address: str) -> Record:
    room = min(LARGEST_PART_BYTES, row["bytes"] - row["received"])
    try:
        size, _ = await api.storage.put_stream(address, upload_chunks(request, api.settings), room)
    except TooLarge:
        raise Refused("too_large", f"This part has at most {room} bytes.") from None
    if size == 0:
        raise invalid("body", "empty", "A part has at least one byte.")
    longer = await api.data.add_part(model["id"], row["id"], row["received"], size, address)
    if longer is None:
        raise Refused("wrong_offset", "Another part was stored meanwhile.")
    return longer


async def _finish(api: Api, key: Key, request: Request, model: Record, row: Record) -> Response:
    async with spool_folder(api.settings) as folder:
        with room_for(api.limits, model["organization_id"], folder) as room:
            room.take(row["bytes"])
            return await _end(api, key, request, model, row, folder)


async def _end(api: Api, key: Key, request: Request, model: Record, row: Record, folder: Path) -> Response:  # noqa: PLR0913
    try:
        whole = Incoming([await _assembled(api, row, folder / "whole")])
    except NotStored:  # ended by another request meanwhile
        raise not_found("upload") from None
    await look_at(whole, api.settings, api.readers, model["organization_id"])
    if whole.turned:
        await _forget(api, model["id"], row["id"])
        whole.refuse_if_nothing()
    async with kept(api, model, whole.arrived, announced=row["bytes"]) as items:

        async def effect(connection: Connection) -> Answer:
            await api_data.try_hold(connection, model["id"])  # before the upload's row: nobody waits for a row for long
            if not await api_data.end_upload(connection, model["id"], row["id"]):
                raise not_found("upload")
            added = await add(api, connection, key, model, items)
            return present.answer(_show(row, added[0]))

        async with api.turns.of(model["id"]):
            return await once(api, request, key, row["id"].bytes, effect)


async def _forget(api: Api, model_id: int, upload_id: UUID) -> None:
    async with api.database.transaction() as connection:
        await api_data.end_upload(connection, model_id, upload_id)


async def _assembled(api: Api, row: Record, path: Path) -> Arrived:
    file = Arrived(row["name"], path, row["split"])
    digest = hashlib.sha256()
    with writing_errors(), path.open("xb") as out:
        async for piece in _pieces(api, row["parts"]):
            out.write(piece)
            digest.update(piece)
            file.bytes += len(piece)
    file.sha256 = digest.hexdigest()
    return file


async def _pieces(api: Api, parts: list[str]) -> AsyncIterator[bytes]:
    for address in parts:
        async for piece in api.storage.stream(address):
            yield piece
