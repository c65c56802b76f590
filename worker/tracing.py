"""Traces (extra ``otel``): one for each run, from the request through the message and each phase to the terminal write.

Off unless ``WORKER_TRACES_URL`` is set; then spans go to an OTLP/HTTP collector, in the background. Observers watch and
never hurt: a collector that is away loses spans and nothing else.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from worker import __version__
from worker.errors import WorkerError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

Value = str | int | float | bool
_FLUSH_MS: Final = 3_000


class ExtraMissing(WorkerError):  # noqa: N818 - as the other states of the world
    """Traces are asked for, but the extra is not installed."""


def trace_of(run_id: UUID, traceparent: str | None) -> str:
    """The trace that a run belongs to: its request's, else one whose id is the run's, so that attempts share it."""
    return traceparent or f"00-{run_id.hex}-{run_id.hex[:16]}-01"


class Tracing:
    """Makes spans, or nothing where traces are off.

    Args:
        provider: None: off.
    """

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("speech-training-worker", __version__) if provider else None

    @contextlib.contextmanager
    def span(self, name: str, parent: str | None = None, **attributes: Value) -> Iterator[None]:
        """A span around a block, a child of the one around it, or of ``parent`` (a ``traceparent``)."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, context=_context(parent), attributes=_named(attributes)):
            yield

    def note(self, **attributes: Value) -> None:
        """Say more about the span around this."""
        if self._tracer is not None:
            from opentelemetry import trace  # noqa: PLC0415 - an extra

            trace.get_current_span().set_attributes(_named(attributes))

    def record(self, name: str, begin: datetime, parent: str | None = None, **attributes: Value) -> None:
        """A span that is over: from ``begin`` until now."""
        if self._tracer is not None:
            begin_ns = min(int(begin.timestamp() * 1e9), time.time_ns())
            self._tracer.start_span(
                name, context=_context(parent), attributes=_named(attributes), start_time=begin_ns
            ).end()

    def current(self) -> str | None:
        """The ``traceparent`` of the span around this, for whoever goes on elsewhere."""
        if self._tracer is None:
            return None
        from opentelemetry.propagate import inject  # noqa: PLC0415

        carrier: dict[str, str] = {}
        inject(carrier)
        return carrier.get("traceparent")

    def close(self) -> None:
        """Send what is left; blocks for some seconds at most. Nothing happens a second time."""
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.force_flush(_FLUSH_MS)
            provider.shutdown()


OFF: Final = Tracing()


def open_tracing(url: str, service: str) -> Tracing:
    """Traces to this OTLP/HTTP address; none where it is empty.

    Raises:
        ExtraMissing: the extra ``otel`` is not installed.
    """
    if not url:
        return OFF
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ExtraMissing(f"WORKER_TRACES_URL is set: pip install 'speech-training-worker[otel]' ({error})") from error
    resource = Resource.create({"service.name": service, "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=5)))
    return Tracing(provider)


class TracedRequests:
    """ASGI middleware: a span for each HTTP request, whose ``traceparent`` what follows from it carries on.

    Args:
        app: what comes behind.
        tracing: makes the spans.
        route_of: names the route of a path, from a closed list: strangers send paths, and names of spans are indexed.
    """

    def __init__(self, app: Any, tracing: Tracing, route_of: Callable[[str], str]) -> None:
        self._app = app
        self._tracing = tracing
        self._route_of = route_of

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        parent = headers.get(b"traceparent", b"").decode("latin-1") or None
        route = self._route_of(scope["path"])
        with self._tracing.span(f"{scope['method']} {route}", parent, **{"http.request.method": scope["method"]}):
            headers[b"traceparent"] = (self._tracing.current() or "").encode()
            scope["headers"] = list(headers.items())

            async def sending(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    self._tracing.note(**{"http.response.status_code": message["status"]})
                await send(message)

            await self._app(scope, receive, sending)


def _context(parent: str | None) -> "Context | None":
    if parent is None:
        return None
    from opentelemetry.propagate import extract  # noqa: PLC0415

    return extract({"traceparent": parent})


def _named(attributes: dict[str, Value]) -> dict[str, Value]:
    return {name if "." in name else f"training.{name}": value for name, value in attributes.items()}
