"""Prometheus metrics of an API process: a registry of its own, closed label lists, no identifier in a label.

Served on a port of its own (``WORKER_API_METRICS_PORT``), never on the one that customers reach.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from worker import __version__
from worker.api.endpoints import ENDPOINTS, EVERYWHERE
from worker.api.problems import KINDS
from worker.api.routes import METHODS, OTHER, PREFIX
from worker.api.tallies import Tally, Times

NO_ANSWER: Final = "none"
"""Status of a request that got no answer: its client left, or the process ended."""
CONNECTION_ENDS: Final = (
    "malformed",
    "too_large",
    "head",
    "idle",
    "leftover",
    "stalled",
    "closing",
    "full",
    "address",
    "refused",
)
"""Why this process ended a connection, or refused its bytes before there was a request: no HTTP; a head that is too
large, or too slow; nothing asked for long; a body nobody waits for; an answer nobody takes; no end of closing; too many
connections in all, or of one address (the oldest went); or no room for this one."""
LIMITS: Final = ("key", "address")
DELIVERIES: Final = ("delivered", "retried", "failed")
POOL_STATES: Final = ("used", "idle", "waiting")
_MOMENTS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ApiMetrics:
    """Every metric of the API. ``deploy/metrics.md`` lists them; a test compares."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = self.registry
        Info("training_api_build", "Version of this API process", registry=own).info({"version": __version__})
        self._requests(own)
        self._limits(own)
        self._health(own)
        self._show_every_label()

    def _requests(self, own: CollectorRegistry) -> None:
        """What was asked and answered."""
        self.requests = Tally(
            "training_api_requests",
            "Requests answered; status none: the client left before",
            ["method", "route", "status"],
            own,
        )
        self.seconds = Times(
            "training_api_request_seconds",
            "Time until an answer began; an upload's includes the time its sender took",
            ["method", "route"],
            _MOMENTS,
            own,
        )
        self.in_flight = Gauge("training_api_requests_in_flight", "Requests that are being answered", registry=own)
        self.received = Counter("training_api_received_bytes", "Bytes of requests' bodies taken in", registry=own)
        self.sent = Counter("training_api_sent_bytes", "Bytes of answers' bodies", registry=own)
        self.uploads = Gauge("training_api_uploads_under_way", "Uploads that are being taken in", registry=own)
        self.watchers = Gauge("training_api_watchers", "Open streams of a model's changes", registry=own)
        self.deliveries = Counter(
            "training_api_webhook_deliveries",
            "Tries to deliver an event to a webhook, by result",
            ["result"],
            registry=own,
        )

    def _limits(self, own: CollectorRegistry) -> None:
        """What was refused, and what an attack shows in."""
        self.refusals = Counter("training_api_refusals", "Requests refused, by problem code", ["code"], registry=own)
        self.rate_limited = Counter(
            "training_api_rate_limited",
            "Requests refused for their rate: too many with one key, or too many wrong keys from one address",
            ["limit"],
            registry=own,
        )
        self.connections = Gauge("training_api_connections", "Open connections of clients", registry=own)
        self.connections_ended = Counter(
            "training_api_connections_ended",
            "Connections this process ended, or refused, by why; no request came of their last bytes",
            ["cause"],
            registry=own,
        )
        self.suppressed = Counter(
            "training_api_log_lines_suppressed",
            "Lines of refused requests that were summed up",
            registry=own,
        )
        self.audit_failures = Counter(
            "training_api_audit_failures",
            "Times that the database took no entries of the audit trail",
            registry=own,
        )

    def _health(self, own: CollectorRegistry) -> None:
        """Whether this process is well."""
        self.pool = Gauge(
            "training_api_database_connections",
            "Connections to the database: used, idle; waiting: statements that wait for one",
            ["state"],
            registry=own,
        )
        self.pool_wait_s = Times(
            "training_api_database_wait_seconds", "Wait for a connection of the pool", [], _MOMENTS, own
        )
        self.pool_wait_s.show(())
        self.loop_lag_s = Histogram(
            "training_api_loop_lag_seconds", "How late the event loop turns", buckets=_MOMENTS, registry=own
        )

    def _show_every_label(self) -> None:
        """A series that is not there cannot be alerted on: begin each list at zero."""
        for endpoint in ENDPOINTS:
            route = PREFIX + endpoint.path
            self.seconds.show((endpoint.method, route))
            statuses = {endpoint.status, *(KINDS[code].status for code in (*endpoint.codes, *EVERYWHERE))}
            for status in sorted(statuses | ({304} if endpoint.polled else set())):
                self.requests.add((endpoint.method, route, status), 0)
        for method in METHODS:
            self.requests.add((method, OTHER, 404), 0)
        for code in (*KINDS, OTHER):
            self.refusals.labels(code)
        for metric, values in (
            (self.rate_limited, LIMITS),
            (self.connections_ended, CONNECTION_ENDS),
            (self.deliveries, DELIVERIES),
            (self.pool, POOL_STATES),
        ):
            for value in values:
                metric.labels(value)

    def ended(self, method: str, route: str, status: int | None, seconds: float | None, code: str | None) -> None:
        """A request is over.

        Args:
            method: one of ``METHODS`` or other.
            route: one of ``ROUTES``.
            status: of the answer; None: there was none.
            seconds: until the answer began; None: there was none.
            code: of the problem, where it was refused.
        """
        self.requests.add((method, route, NO_ANSWER if status is None else status))
        if seconds is not None:
            self.seconds.observe(seconds, (method, route))
        if code is not None:
            self.refusals.labels(code if code in KINDS else OTHER).inc()

    def connection_ended(self, cause: str) -> None:
        """A connection was ended before a request came of it; an unknown cause counts as malformed."""
        self.connections_ended.labels(cause if cause in CONNECTION_ENDS else "malformed").inc()
