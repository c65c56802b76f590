"""The application on its port: connections with limits, metrics on another port, and the service manager told."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from worker.api.app import create_app
from worker.api.connections import Connections, Patience, protocol_for
from worker.api.limits import Limits, raise_open_files
from worker.api.settings import ApiSettings
from worker.health import HealthServer
from worker.loop_guard import LoopGuard
from worker.service_manager import ServiceManager
from worker.storage import Storage

_LOG: Final = structlog.get_logger("api")
_CAUSED_BY_STRANGERS: Final = (
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected.",
)
"""Beginnings of lines; what becomes of each such request is in the log of requests."""


async def serve(settings: ApiSettings, storage: Storage) -> None:
    """Serve until SIGTERM or SIGINT; requests under way end first.

    Raises:
        DatabaseAway: nobody answers there.
        SystemExit: the port is taken.
    """
    raise_open_files(settings)
    app = create_app(settings, storage)
    _tell_limits(settings, app.state.api.limits)
    manager = ServiceManager()
    server = _Server(server_config(app), manager)
    async with _observed(app, settings), LoopGuard(settings.api_frozen_limit_s, manager):
        await server.serve()


def server_config(app: FastAPI, patience: Patience | None = None) -> uvicorn.Config:
    """How the application is served. Who the client is behind proxies is found out by ``AccessLog``, not by uvicorn.

    Args:
        app: from `create_app`.
        patience: with connections; None: as customers get it.
    """
    settings: ApiSettings = app.state.api.settings
    limits: Limits = app.state.api.limits
    logging.getLogger("uvicorn.error").addFilter(_not_a_strangers)
    connections = Connections(
        limits.connections,
        limits.per_address,
        app.state.proxies,
        patience,
        ended=app.state.log.connection_ended,
    )
    app.state.connections = connections
    app.state.metrics.connections.set_function(lambda: len(connections))
    return uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        http=protocol_for(connections),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
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


def _not_a_strangers(record: logging.LogRecord) -> bool:
    """Uvicorn's own lines for these say neither who nor how many, and a flood of them would fill the log."""
    return not record.getMessage().startswith(_CAUSED_BY_STRANGERS)


class _Server(uvicorn.Server):
    """Tells the service manager when it listens, and when it begins to stop."""

    def __init__(self, config: uvicorn.Config, manager: ServiceManager) -> None:
        super().__init__(config)
        self._manager = manager

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._manager.started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._manager.stopping()
        await super().shutdown(sockets)


@asynccontextmanager
async def _observed(app: FastAPI, settings: ApiSettings) -> AsyncIterator[None]:
    """Metrics on a port of their own. A port that is taken costs the metrics, not the service: an alert misses them."""
    host, port = settings.api_metrics_host, settings.api_metrics_port
    keyring = app.state.keyring
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
