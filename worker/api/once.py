"""Writes: one transaction holds the effect, its audit entry and the answer kept for a repeat."""

import asyncio
import hashlib
import random
import re
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request
from fastapi.responses import Response

from worker.api import quotas
from worker.api.api import Api
from worker.api.problems import MEDIA_TYPE, Refused, invalid
from worker.api.turns import WAIT_S, busy
from worker.errors import Busy
from worker.store.api_keys import Answer, Key, earlier_answer, keep_answer, take_turn
from worker.store.database import Connection, Database

_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")
_AGAIN_S: Final = 0.05
_FIRST_REFUSED: Final = 400
Effect = Callable[[Connection], Awaitable[Answer]]


async def once(api: Api, request: Request, key: Key, body: bytes, effect: Effect) -> Response:
    """Run an effect, or repeat the answer that the same ``Idempotency-Key`` got before.

    Args:
        api: with the database and the quotas.
        request: with or without an ``Idempotency-Key``.
        key: the caller's; keys of others are another scope.
        body: what the request asks, to be compared with the first one's.
        effect: does it; whatever it raises undoes it. After ``Busy`` it is tried again.

    Raises:
        Refused: by the effect; or the first request is still in progress, or asked something else; or others are busy
            with the same thing for too long.
    """
    ends_at = asyncio.get_running_loop().time() + WAIT_S
    while True:
        try:
            return await _once(api, request, key, body, effect)
        except Busy:
            # Here nothing is held: neither a connection nor the turn of an Idempotency-Key.
            if asyncio.get_running_loop().time() >= ends_at:
                raise busy() from None
            await asyncio.sleep(_AGAIN_S * random.uniform(0.5, 1.5))  # noqa: S311 - keeps processes out of step


async def _once(api: Api, request: Request, key: Key, body: bytes, effect: Effect) -> Response:
    name = request.headers.get("idempotency-key")
    if name is None:
        async with api.database.transaction() as connection:
            return response(await effect(connection))
    if _KEY.fullmatch(name) is None:
        raise invalid("Idempotency-Key", "malformed", "An Idempotency-Key has 1 to 200 visible ASCII characters.")
    scope = _scope(request, key, name)
    digest = hashlib.sha256(body).digest()
    async with api.database.transaction() as connection:
        if not await take_turn(connection, "\n".join(map(str, scope))):
            raise Refused(
                "idempotency_in_progress", "The first request with this Idempotency-Key is still in progress."
            )
        earlier = await _earlier(connection, scope, digest)
        if earlier is not None:
            return response(earlier)
        answer = await _attempt(connection, effect)
        if await _may_keep(api, connection, key, answer):
            await keep_answer(connection, scope, digest, answer)
    return response(answer)


async def repeated(database: Database, request: Request, key: Key, body: bytes) -> Response | None:
    """The answer that the same ``Idempotency-Key`` got before, for a request whose effect ended what it names.

    Raises:
        Refused: the first request asked something else.
    """
    name = request.headers.get("idempotency-key")
    if name is None or _KEY.fullmatch(name) is None:
        return None
    async with database.transaction() as connection:
        earlier = await _earlier(connection, _scope(request, key, name), hashlib.sha256(body).digest())
    return None if earlier is None else response(earlier)


async def answered_before(database: Database, request: Request, key: Key) -> bool:
    """Whether the ``Idempotency-Key`` of a request has its answer, whatever its body: known before that is read."""
    name = request.headers.get("idempotency-key")
    if name is None or _KEY.fullmatch(name) is None:
        return False
    async with database.connection() as connection:
        return await earlier_answer(connection, _scope(request, key, name)) is not None


def _scope(request: Request, key: Key, name: str) -> tuple[int, str, str, str]:
    return key.id, request.method, request.url.path, name


async def _earlier(connection: Connection, scope: tuple[int, str, str, str], digest: bytes) -> Answer | None:
    earlier = await earlier_answer(connection, scope)
    if earlier is None:
        return None
    if earlier[0] != digest:
        raise Refused("idempotency_mismatch", "This Idempotency-Key was used with another body.")
    return earlier[1]


async def _attempt(connection: Connection, effect: Effect) -> Answer:
    """The effect's answer; a refusal undoes the effect and is an answer too."""
    try:
        async with connection.transaction():
            return await effect(connection)
    except Refused as refused:
        return Answer(refused.status, MEDIA_TYPE, refused.body())


async def _may_keep(api: Api, connection: Connection, key: Key, answer: Answer) -> bool:
    """What made something was counted; a refusal is counted here, or whoever sends many would fill the table."""
    if answer.status < _FIRST_REFUSED or key.organization_id is None:
        return True
    return await quotas.try_count_change(api, connection, key.organization_id)


def response(answer: Answer) -> Response:
    """An answer as it is sent."""
    return Response(answer.body or None, answer.status, media_type=answer.media_type)
