"""The API put together: the only file that knows all its parts."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final
from uuid import UUID

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from worker.api import report
from worker.api.access import Keyring, Limiter, WrongKeys, require
from worker.api.access_log import REQUEST_ID, AccessLog
from worker.api.addresses import Proxies
from worker.api.api import Api
from worker.api.door import Door, unavailable
from worker.api.endpoints import ENDPOINTS, Endpoint
from worker.api.limits import limits_of
from worker.api.metrics import POOL_STATES, ApiMetrics
from worker.api.networks import parse_nameservers, parse_networks, parse_proxy
from worker.api.openapi import document
from worker.api.outward import Outward
from worker.api.present import JSON, to_json
from worker.api.problems import Refused
from worker.api.registrations import Registrations
from worker.api.request_log import RequestLog
from worker.api.routes import PREFIX, route_of
from worker.api.settings import ApiSettings
from worker.api.tidy import Tidying
from worker.api.trail import Trail, keep_for_days
from worker.api.watch import Watcher
from worker.api.webhooks import Sender
from worker.encryption import Encryption
from worker.errors import DatabaseAway, StorageAway
from worker.services.watchers import watch_loop
from worker.storage import Storage
from worker.store.api import ApiStore
from worker.store.api_data import DataStore
from worker.store.api_keys import KeyStore
from worker.store.audit import AuditStore, Subject
from worker.store.database import Database
from worker.store.tidying import TidyStore
from worker.store.webhooks import PURPOSE, WebhookStore
from worker.tracing import TracedRequests, open_tracing

_LOG: Final = structlog.get_logger("api")
_BESIDE: Final = 3
"""Database connections of what runs beside requests: webhooks and tidying."""
_UNAUDITED: Final = frozenset({"read_log", "read_report", "base_languages", "caller"})
"""Reads of an operator's key that its handler has written down itself, or that show nothing of a customer's."""
_PAGE_POLICY: Final = (
    # The console shows reports in a frame, which inherits this policy: their one style sheet is allowed by its digest.
    f"default-src 'none'; script-src 'self'; style-src 'self' '{report.style_digest()}'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def create_app(settings: ApiSettings, storage: Storage) -> FastAPI:
    """The API as an ASGI application; its lifespan opens the database and runs what runs beside requests.

    Args:
        settings: the API's own.
        storage: where training data, logs and artifacts lie; the caller closes it.
    """
    url = settings.database_url.get_secret_value()
    limits = limits_of(settings)
    metrics = ApiMetrics()
    database = Database(
        url,
        size=settings.api_database_connections,
        name="api",
        settings=_bounded(settings.api_statement_timeout_s),
        shares=limits.database,
        waited=metrics.pool_wait_s.observe,
    )
    # What runs beside requests has no customer to wait for it, and statements of its own length.
    beside_database = Database(url, size=_BESIDE, name="api-beside")
    models = ApiStore(database)
    wrong = WrongKeys(settings.api_wrong_keys_per_s, settings.api_wrong_keys_burst)
    keyring = Keyring(KeyStore(database), url, wrong)
    audit = AuditStore(beside_database)
    log, trail = RequestLog(metrics, reads=settings.api_log_reads), Trail(audit, metrics)
    api = Api(
        settings=settings,
        limits=limits,
        keyring=keyring,
        database=database,
        storage=storage,
        models=models,
        data=DataStore(database),
        webhooks=WebhookStore(database),
        watcher=Watcher(models),
        encryption=Encryption(settings.encryption_keys, PURPOSE),
        outward=Outward(
            private=settings.api_webhook_private,
            refused=parse_networks(settings.api_webhook_refused_networks),
            proxy=parse_proxy(settings.api_webhook_proxy.get_secret_value()),
            nameservers=parse_nameservers(settings.api_webhook_nameservers),
        ),
        audit=AuditStore(database),
        trail=trail,
        registrations=Registrations(time.monotonic),
    )
    _show(metrics, api)
    keyring.on_change(api.watcher.wake)
    webhooks = WebhookStore(beside_database)
    beside = (
        keyring.listen,
        api.watcher.look,
        Sender(webhooks, api.encryption, api.outward, metrics).run,
        Tidying(TidyStore(beside_database), storage, webhooks, api.encryption).run,
        partial(keep_for_days, audit, settings.api_audit_days),
        log.run,
        trail.run,
        partial(watch_loop, metrics),
    )

    app = FastAPI(
        title="Custom Models",
        lifespan=_lifespan(api, (database, beside_database), beside),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.api, app.state.metrics, app.state.log, app.state.keyring = api, metrics, log, keyring
    for path in dict.fromkeys(endpoint.path for endpoint in ENDPOINTS):
        here = {endpoint.method: endpoint for endpoint in ENDPOINTS if endpoint.path == path}
        app.add_route(PREFIX + path, _handler(api, here), list(here))
    app.add_route(f"{PREFIX}/openapi.json", _openapi, ["GET"])
    console = _Console(directory=str(files("worker.api").joinpath("console")))
    app.add_route("/", console.index, ["GET"], include_in_schema=False)
    app.mount("/console", console)
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    limiter = Limiter(settings.api_rate_per_s, settings.api_burst, time.monotonic)
    app.add_middleware(
        Door, keyring=keyring, limiter=limiter, models=models, settings=settings, limits=limits, metrics=metrics
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "If-None-Match",
                "Idempotency-Key",
                "Upload-Offset",
                "Range",
            ],
            expose_headers=["ETag", "Retry-After", "Content-Range", "X-Request-Id"],
            max_age=600,
        )
    app.state.tracing = open_tracing(settings.traces_url, "speech-training-api")
    if settings.traces_url:
        app.add_middleware(TracedRequests, tracing=app.state.tracing, route_of=route_of)
    app.state.proxies = proxies = Proxies(settings.trusted_proxies)
    app.add_middleware(AccessLog, log=log, trail=trail, proxies=proxies, metrics=metrics)  # outermost
    return app


def _bounded(limit_s: float) -> dict[str, str]:
    """A session whose statements, waits for locks and silences inside a transaction end in time."""
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    return dict.fromkeys(names, f"{limit_s * 1000:.0f}ms")


def _show(metrics: ApiMetrics, api: Api) -> None:
    """Gauges that are read where they are kept, when somebody asks."""
    metrics.uploads.set_function(lambda: api.limits.slots.taken)
    metrics.watchers.set_function(api.watcher.watching)
    for state in POOL_STATES:
        metrics.pool.labels(state).set_function(partial(_connections, api.database, state))


def _connections(database: Database, state: str) -> float:
    return database.usage()[state]


def _lifespan(
    api: Api, databases: tuple[Database, ...], beside: tuple[Callable[[], Awaitable[None]], ...]
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            # Here, not after the server has ended: uvicorn raises SIGTERM again then, and nothing of ours runs on.
            stack.push_async_callback(asyncio.to_thread, app.state.tracing.close)
            for database in databases:
                await database.open()
                stack.push_async_callback(database.close)
            stack.push_async_callback(api.readers.close)
            stack.push_async_callback(api.outward.aclose)
            running = [asyncio.ensure_future(_for_ever(run)) for run in beside]

            async def end() -> None:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

            stack.push_async_callback(end)
            yield

    return lifespan


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    """What runs beside requests goes on after a fault of ours; requests must not suffer from it."""
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001 - logged, and begun again
            _LOG.exception("begun again", what=getattr(run, "__qualname__", str(run)))
            await asyncio.sleep(1)


def _handler(api: Api, methods: Mapping[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    """One route for a path, so that a wrong method is told all the right ones."""

    async def handle(request: Request) -> Response:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        key = require(request.scope["key"], endpoint.right)
        answer = await endpoint.handler(api, key, request)
        if key.organization_id is None and endpoint.method == "GET" and endpoint.name not in _UNAUDITED:
            await api.trail.read(key, _subject(request), endpoint.name)
        return answer

    return handle


def _subject(request: Request) -> Subject:
    """The model and run that a path names, where a handler has found them."""
    model, run = request.path_params.get("id"), request.path_params.get("run_id")
    return Subject(None, None if model is None else int(model), None if run is None else UUID(run))


@cache
def _openapi_text() -> bytes:
    """Made once: it takes milliseconds, and whoever has no key may ask for it."""
    return to_json(document())


async def _openapi(request: Request) -> Response:  # noqa: ARG001 - a route
    return Response(_openapi_text(), media_type=JSON)


class _Console(StaticFiles):
    """The console's files: nothing from elsewhere, and asked for again after an update."""

    async def index(self, request: Request) -> Response:
        """The page itself."""
        return await self.get_response("index.html", request.scope)

    async def get_response(self, path: str, scope: Any) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Content-Security-Policy"] = _PAGE_POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cache-Control"] = "no-cache"
        return answer


async def _refused(request: Request, error: Exception) -> Response:  # noqa: ARG001 - as starlette calls it
    assert isinstance(error, Refused)
    return error.response()


async def _away(request: Request, error: Exception) -> Response:
    record = request.scope["record"]
    _LOG.warning("away", request=record.request_id, path=record.path, error=str(error))
    return unavailable().response()


async def _http_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - as starlette calls it
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
    return Refused(
        code, "There is no such address." if code == "not_found" else error.detail, headers=error.headers
    ).response()


async def _fault(request: Request, error: Exception) -> Response:
    record = request.scope["record"]
    _LOG.error("fault", request=record.request_id, path=record.path, method=record.method, exc_info=error)
    answer = Refused("internal", "This should not have happened; it is logged.").response()
    answer.headers[REQUEST_ID.decode()] = record.request_id
    return answer


_ANSWERS: Final[dict[Any, Any]] = {
    Refused: _refused,
    DatabaseAway: _away,
    StorageAway: _away,
    HTTPException: _http_error,
    Exception: _fault,
}
