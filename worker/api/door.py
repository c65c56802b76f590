"""In front of every route: the caller is known and within limits before anything else is looked at.

Plain ASGI, because every poll passes here; a poll that carries an entity tag is answered here as well.
"""

import re
from typing import TYPE_CHECKING, Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.api import present
from worker.api.access import Keyring, Limiter
from worker.api.addresses import UNKNOWN, client_network
from worker.api.limits import Limits
from worker.api.metrics import ApiMetrics
from worker.api.problems import Refused
from worker.api.routes import PREFIX
from worker.api.settings import ApiSettings
from worker.errors import DatabaseAway
from worker.store.api import ApiStore
from worker.store.api_keys import Key
from worker.store.database import connections_count_for

if TYPE_CHECKING:
    from worker.api.request_log import RequestRecord

_LOG: Final = structlog.get_logger("api")
_OPEN: Final = frozenset({f"{PREFIX}/openapi.json"})
_MODEL: Final = re.compile(PREFIX + r"/custom_models/([1-9][0-9]{0,17})")
_START: Final = "http.response.start"


class Door:
    """ASGI middleware.

    Args:
        app: what comes behind.
        keyring: who may come in.
        limiter: how often.
        models: answers polls.
        settings: for the floor that ``is_trainable`` tells.
        limits: how many requests an organization, or a client behind a proxy, may have under way.
        metrics: counts those who came too often.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        app: ASGIApp,
        keyring: Keyring,
        limiter: Limiter,
        models: ApiStore,
        settings: ApiSettings,
        limits: Limits,
        metrics: ApiMetrics,
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._limiter = limiter
        self._models = models
        self._under_way = limits.requests
        self._clients = limits.clients
        self._floor_s = settings.minimum_audio_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        path: str = scope["path"].rstrip("/")  # a trailing slash works, without a redirect
        if path in _OPEN or scope["method"] == "OPTIONS":
            await self._app({**scope, "path": path}, receive, send)
            return
        if self._clients is None:
            await self._let_in(scope, path, receive, send)
            return
        with self._clients.place(client_network((scope["client"] or (UNKNOWN,))[0])) as there_is_room:
            if there_is_room:
                await self._let_in(scope, path, receive, send)
            else:
                await _too_many_at_once("from this address").response()(scope, receive, send)

    async def _let_in(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        authorization, tag = _headers(scope)
        try:
            key = await self._caller(scope, authorization)
        except (Refused, DatabaseAway) as error:
            await _refusal(scope, error).response()(scope, receive, send)
            return
        with self._under_way.place(key.holder) as there_is_room:
            if not there_is_room:
                await _too_many_at_once("of this organization").response()(scope, receive, send)
                return
            connections_count_for(key.holder)
            try:
                now = None if tag is None or scope["method"] != "GET" else await self._known(key, path, tag)
            except DatabaseAway as error:
                await _refusal(scope, error).response()(scope, receive, send)
                return
            if now is not None:
                await send(_not_modified(now))
                await send({"type": "http.response.body"})
                return
            behind: dict[str, Any] = {"path": path, "raw_path": path.encode("utf-8", "surrogateescape"), "key": key}
            await self._app({**scope, **behind}, receive, send)

    async def _caller(self, scope: Scope, authorization: str | None) -> Key:
        """The caller's key, within limits; the request's record knows it from here on.

        Raises:
            Refused: no valid key, or too many requests.
            DatabaseAway: the key cannot be looked up.
        """
        record: RequestRecord = scope["record"]
        client = scope.get("client")
        limit = "address"
        try:
            key = await self._keyring.caller(authorization, client_network(client[0] if client else UNKNOWN))
            record.key = key
            limit = "key"
            self._limiter.take(key.id)
        except Refused as refused:
            if refused.code == "rate_limited":
                self._metrics.rate_limited.labels(limit).inc()
            raise
        return key

    async def _known(self, key: Key, path: str, tag: str) -> str | None:
        """The tag of the polled model, where the caller has it already."""
        polled = _MODEL.fullmatch(path)
        row = None if polled is None else await self._models.model(int(polled[1]), key.organization_id)
        if row is None:
            return None
        now = present.model_tag(row, self._floor_s)
        return now if present.matches(tag, now) else None


def _headers(scope: Scope) -> tuple[str | None, str | None]:
    """``Authorization`` and ``If-None-Match``."""
    authorization = tag = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value.decode("latin-1")
        elif name == b"if-none-match":
            tag = value.decode("latin-1")
    return authorization, tag


def unavailable() -> Refused:
    """The database or the storage is away: the caller may try again."""
    return Refused("unavailable", "A part of the service is away. Try again in a moment.", headers={"Retry-After": "5"})


def _refusal(scope: Scope, error: Refused | DatabaseAway) -> Refused:
    if isinstance(error, Refused):
        return error
    _LOG.warning("away", request=scope["record"].request_id, path=scope["record"].path, error=str(error))
    return unavailable()


def _too_many_at_once(whose: str) -> Refused:
    return Refused("rate_limited", f"Too many requests {whose} at once.", headers={"Retry-After": "1"})


def _not_modified(tag: str) -> Message:
    headers = [
        (b"etag", tag.encode()),
        (b"cache-control", b"private, no-cache"),
        (b"vary", b"Authorization"),
    ]
    return {"type": _START, "status": 304, "headers": headers}
