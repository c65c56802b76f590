"""The API put together: the only file that knows all its parts."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from worker.api import report
from worker.api.access import Keyring, Limiter, require
from worker.api.api import Api
from worker.api.connections import Connections, Patience, protocol_for
from worker.api.door import PREFIX, Door, unavailable
from worker.api.endpoints import ENDPOINTS, Endpoint
from worker.api.limits import Limits, limits_of, raise_open_files
from worker.api.openapi import document
from worker.api.present import JSON, to_json
from worker.api.problems import Refused
from worker.api.settings import ApiSettings
from worker.api.tidy import Tidying
from worker.api.watch import Watcher
from worker.api.webhooks import Sender
from worker.errors import DatabaseAway, StorageAway
from worker.storage import Storage
from worker.store.api import ApiStore
from worker.store.api_data import DataStore
from worker.store.api_keys import KeyStore
from worker.store.database import Database
from worker.store.tidying import TidyStore
from worker.store.webhooks import WebhookStore
from worker.tracing import TracedRequests, open_tracing

_LOG: Final = structlog.get_logger("api")
_BESIDE: Final = 3
"""Database connections of what runs beside requests: webhooks and tidying."""
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
    database = Database(
        url,
        size=settings.api_database_connections,
        name="api",
        settings=_bounded(settings.api_statement_timeout_s),
        shares=limits.database,
    )
    # What runs beside requests has no customer to wait for it, and statements of its own length.
    beside_database = Database(url, size=_BESIDE, name="api-beside")
    models = ApiStore(database)
    keyring = Keyring(KeyStore(database), url)
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
    )
    keyring.on_change(api.watcher.wake)
    beside = (
        keyring.listen,
        api.watcher.look,
        Sender(WebhookStore(beside_database), private=settings.api_webhook_private).run,
        Tidying(TidyStore(beside_database), storage).run,
    )

    app = FastAPI(
        title="Custom Models",
        lifespan=_lifespan((database, beside_database), beside),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.api = api
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
    app.add_middleware(Door, keyring=keyring, limiter=limiter, models=models, settings=settings, limits=limits)
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
            expose_headers=["ETag", "Retry-After", "Content-Range"],
            max_age=600,
        )
    app.state.tracing = open_tracing(settings.traces_url, "speech-training-api")
    if settings.traces_url:
        app.add_middleware(TracedRequests, tracing=app.state.tracing)
    return app


def _bounded(limit_s: float) -> dict[str, str]:
    """A session whose statements, waits for locks and silences inside a transaction end in time."""
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    return dict.fromkeys(names, f"{limit_s * 1000:.0f}ms")


def _lifespan(
    databases: tuple[Database, ...], beside: tuple[Callable[[], Awaitable[None]], ...]
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for database in databases:
                await database.open()
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
        return await endpoint.handler(api, key, request)

    return handle


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
    _LOG.warning("away", path=request.url.path, error=str(error))
    return unavailable().response()


async def _http_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - as starlette calls it
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
    return Refused(
        code, "There is no such address." if code == "not_found" else error.detail, headers=error.headers
    ).response()


async def _fault(request: Request, error: Exception) -> Response:
    _LOG.error("fault", path=request.url.path, method=request.method, exc_info=error)
    return Refused("internal", "This should not have happened; it is logged.").response()


_ANSWERS: Final[dict[Any, Any]] = {
    Refused: _refused,
    DatabaseAway: _away,
    StorageAway: _away,
    HTTPException: _http_error,
    Exception: _fault,
}


def server_config(app: FastAPI, patience: Patience | None = None) -> uvicorn.Config:
    """How the application is served: address, limits, and whose word on clients is taken.

    Args:
        app: from `create_app`.
        patience: with connections; None: as customers get it.
    """
    settings: ApiSettings = app.state.api.settings
    limits: Limits = app.state.api.limits
    proxies = settings.trusted_proxies
    app.state.connections = Connections(limits.connections, limits.per_address, proxies, patience)
    return uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        http=protocol_for(app.state.connections),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=30,
        lifespan="on",
    )


def _tell_limits(settings: ApiSettings, limits: Limits) -> None:
    """What counts, where the system or another setting allows less than a setting asks for."""
    for name, wanted, counts in (
        ("WORKER_API_CONNECTIONS", settings.api_connections, limits.connections),
        ("WORKER_API_CONNECTIONS_PER_ADDRESS", settings.api_connections_per_address, limits.per_address),
        ("WORKER_API_LARGEST_REQUEST_BYTES", settings.api_largest_request_bytes, limits.largest_request_bytes),
    ):
        if counts < wanted:
            _LOG.warning("less than the setting asks for", setting=name, wanted=wanted, counts=counts)


async def serve(settings: ApiSettings, storage: Storage) -> None:
    """Serve until SIGTERM or SIGINT; requests under way end first.

    Raises:
        DatabaseAway: nobody answers there.
        SystemExit: the port is taken.
    """
    raise_open_files(settings)
    app = create_app(settings, storage)
    _tell_limits(settings, app.state.api.limits)
    config = server_config(app)
    try:
        await uvicorn.Server(config).serve()
    finally:
        await asyncio.to_thread(app.state.tracing.close)
