"""The API put together: the only file that knows all its parts."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, Final
from uuid import UUID

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker.api import report
from worker.api.access import Keyring, Limiter, WrongKeys, require
from worker.api.access_log import REQUEST_ID, AccessLog
from worker.api.addresses import UNKNOWN, Proxies, networks
from worker.api.api import Api
from worker.api.door import Door, unavailable
from worker.api.endpoints import ENDPOINTS, Endpoint
from worker.api.metrics import POOL_STATES, ApiMetrics
from worker.api.openapi import document
from worker.api.problems import Refused
from worker.api.request_log import RequestLog
from worker.api.routes import PREFIX, route_of
from worker.api.settings import ApiSettings
from worker.api.tidy import Tidying
from worker.api.trail import Trail, keep_for_days
from worker.api.watch import Watcher
from worker.api.webhooks import Sender
from worker.errors import DatabaseAway, StorageAway
from worker.health import HealthServer
from worker.services.watchers import watch_loop
from worker.storage import Storage
from worker.store.api import ApiStore
from worker.store.api_data import DataStore
from worker.store.api_keys import KeyStore
from worker.store.audit import AuditStore, Subject
from worker.store.database import Database
from worker.store.tidying import TidyStore
from worker.store.webhooks import WebhookStore
from worker.tracing import TracedRequests, open_tracing

_LOG: Final = structlog.get_logger("api")
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
    dsn = settings.database_url.get_secret_value()
    metrics = ApiMetrics()
    database = Database(dsn, size=settings.api_database_connections, name="api", waited=metrics.pool_wait_s.observe)
    models = ApiStore(database)
    wrong = WrongKeys(settings.api_wrong_keys_per_s, settings.api_wrong_keys_burst)
    keyring = Keyring(KeyStore(database), dsn, wrong)
    audit = AuditStore(database)
    log, trail = RequestLog(metrics, reads=settings.api_log_reads), Trail(audit, metrics)
    api = Api(
        settings=settings,
        database=database,
        storage=storage,
        models=models,
        data=DataStore(database),
        webhooks=WebhookStore(database),
        watcher=Watcher(models),
        audit=audit,
        trail=trail,
    )
    _show(metrics, api)
    beside = (
        keyring.listen,
        api.watcher.look,
        Sender(api.webhooks, private=settings.api_webhook_private, metrics=metrics).run,
        Tidying(TidyStore(database), storage).run,
        partial(keep_for_days, audit, settings.api_audit_days),
        log.run,
        trail.run,
        partial(watch_loop, metrics),
    )

    app = FastAPI(
        title="Custom Models", lifespan=_lifespan(database, beside), docs_url=None, redoc_url=None, openapi_url=None
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
    app.add_middleware(Door, keyring=keyring, limiter=limiter, models=models, settings=settings, metrics=metrics)
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
    proxies = Proxies(networks(settings.api_trusted_proxies))
    app.add_middleware(AccessLog, log=log, trail=trail, proxies=proxies, metrics=metrics)  # outermost
    return app


def _show(metrics: ApiMetrics, api: Api) -> None:
    """Gauges that are read where they are kept, when somebody asks."""
    metrics.uploads.set_function(api.uploads.total)
    metrics.watchers.set_function(api.watcher.watching)
    for state in POOL_STATES:
        metrics.pool.labels(state).set_function(partial(_connections, api.database, state))


def _connections(database: Database, state: str) -> float:
    return database.usage()[state]


def _lifespan(database: Database, beside: tuple[Callable[[], Awaitable[None]], ...]) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await database.open()
        async with AsyncExitStack() as stack:
            # Here, not after the server has ended: uvicorn raises SIGTERM again then, and nothing of ours runs on.
            stack.push_async_callback(asyncio.to_thread, app.state.tracing.close)
            stack.push_async_callback(database.close)
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


async def _openapi(request: Request) -> Response:  # noqa: ARG001 - a route
    from worker.api.present import JSON, to_json  # noqa: PLC0415 - asked for once in a blue moon

    return Response(to_json(document()), media_type=JSON)


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


def server_config(app: FastAPI) -> uvicorn.Config:
    """How the application is served. Who the client is behind proxies is found out by ``AccessLog``, not by uvicorn."""
    settings: ApiSettings = app.state.api.settings
    logging.getLogger("uvicorn.error").addFilter(_not_malformed)
    return uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        http=_protocol(app.state.log),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=30,
        lifespan="on",
    )


def _protocol(log: RequestLog) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol; bytes that are no request are told of, too."""

    class Told(HttpToolsProtocol):
        def send_400_response(self, msg: str) -> None:
            log.connection_ended("malformed", self.client[0] if self.client else UNKNOWN)
            super().send_400_response(msg)

    return Told


def _not_malformed(record: logging.LogRecord) -> bool:
    """Uvicorn's own line for these says neither who nor how many, and a flood of them would fill the log."""
    return record.getMessage() != "Invalid HTTP request received."


async def serve(settings: ApiSettings, storage: Storage) -> None:
    """Serve until SIGTERM or SIGINT; requests under way end first.

    Raises:
        DatabaseAway: nobody answers there.
        SystemExit: the port is taken.
    """
    app = create_app(settings, storage)
    server = uvicorn.Server(server_config(app))
    app.state.metrics.connections.set_function(lambda: len(server.server_state.connections))
    async with _observed(app, settings):
        await server.serve()


@asynccontextmanager
async def _observed(app: FastAPI, settings: ApiSettings) -> AsyncIterator[None]:
    """Metrics on a port of their own. A port that is taken costs the metrics, not the service: an alert misses them."""
    host, port = settings.api_metrics_host, settings.api_metrics_port
    keyring: Keyring = app.state.keyring
    observer = HealthServer(app.state.metrics.registry, lambda: {"database": keyring.listening}, host, port)
    opened = False
    if port:
        try:
            taken = await observer.open()
        except OSError as error:
            _LOG.error("no metrics", host=host, port=port, error=str(error))
        else:
            opened = True
            _LOG.info("metrics", host=host, port=taken)
    try:
        yield
    finally:
        if opened:
            await observer.close()
