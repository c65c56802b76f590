# ruff: noqa: E501 - a table's row is a line
"""Writes ``deploy/metrics.md`` from the metrics themselves: ``python -m deploy.metrics_table``. A test compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from worker.api.metrics import ApiMetrics
from worker.metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Row = tuple[str, str, dict[str, list[str]], str]
TARGET = Path(__file__).parent / "metrics.md"
_HEAD = """\
# Metrics

Made by `python -m deploy.metrics_table` from `worker/metrics.py`; a test compares. Served at `/metrics` on
`WORKER_OBSERVE_HOST:WORKER_OBSERVE_PORT` (9108), beside `/healthz` (the loop turns) and `/readyz` (what is missing).

No label holds an identifier: who waits or fails is a question for `python -m worker runs`, not for a time series.
Gauges marked *everybody's* are counted in the database, so every worker exports the same number: use `max`, not `sum`.
Counters and histograms are this process's own: use `sum(rate(…))`. A histogram also has `_bucket` and `_count`, and
`_sum` unless it can be negative. Each series exists from the start, at zero, so that `absent` means absent.

| question | ask |
|---|---|
| What waits, for what? | `max by (cause) (training_runs_waiting)` |
| For how long, through our fault? | `max(training_oldest_waiting_seconds{cause="slot"})` |
| For whom: one organization or many? | `max(training_organizations_waiting)`, `max(training_longest_organization_queue)` |
| How soon do runs start? | `histogram_quantile(0.95, sum by (le) (rate(training_start_seconds_bucket[1h])))` |
| What runs, in which phase, how far? | `sum by (phase) (training_runs_in_phase)`, `max by (phase) (training_phase_progress_ratio)` |
| How stale is the stalest? | `max(training_oldest_progress_seconds)` |
| What failed, by class? | `sum by (failure_class) (increase(training_runs_ended_total{end="failed"}[1d]))` |
| How good did models get? | `sum by (model) (rate(training_word_error_rate_sum[1d])) / sum by (model) (rate(training_word_error_rate_count[1d]))` |
| Audio seconds trained per second? | `sum(rate(training_audio_seconds_total[10m]))` |
| Slots and devices in use? | `sum(training_slots_used) / sum(training_slots)`, `sum(training_devices_used) / sum(training_devices)` |
| Leases renewed late or lost? | `sum by (result) (rate(training_lease_renewals_total{result!="answered"}[5m]))` |
| Does anything block the loop? | `histogram_quantile(0.99, sum by (le) (rate(training_loop_lag_seconds_bucket[5m])))` |
| Is anything untold or undeliverable? | `max(training_outbox_oldest_seconds)`, `max(training_dead_letters)` |

"""
_API_HEAD = """
## The API

Each API process serves its own at `/metrics` on `WORKER_API_METRICS_HOST:WORKER_API_METRICS_PORT` (9109), from
`worker/api/metrics.py`, beside `/healthz` and `/readyz` (`database`: it hears of revoked keys). Never show this port to customers.
`route` is a route's template as in `schemas/openapi.json`, or `other`: never a path that somebody sent. `status` is the answer's,
or `none`; `code` is the problem document's. Who was refused is a question for the log (`request`, `requests refused`) and
for `python -m worker audit --action refused`.

- Who is refused, for what? `sum by (code) (rate(training_api_refusals_total[5m]))`
- How many answers are our fault? `sum(rate(training_api_requests_total{status=~"5.."}[5m])) / sum(rate(training_api_requests_total[5m]))`
- How long do reads take? `histogram_quantile(0.99, sum by (le) (rate(training_api_request_seconds_bucket{method="GET"}[5m])))`
- Is there room? `training_api_connections`, `training_api_requests_in_flight`, `training_api_database_connections{state="waiting"}`
- Does anything block the loop? `histogram_quantile(0.99, sum by (le) (rate(training_api_loop_lag_seconds_bucket[5m])))`

"""
_OPEN_LISTS = {
    "method": "as the route has it, or other",
    "route": "each route's template, or other",
    "status": "each that the route has",
}
_EVERYBODYS = frozenset(
    {
        "training_runs_waiting",
        "training_oldest_waiting_seconds",
        "training_organizations_waiting",
        "training_longest_organization_queue",
        "training_runs_running",
        "training_expired_leases",
        "training_workers",
        "training_slots_of_all_workers",
        "training_outbox_rows",
        "training_outbox_oldest_seconds",
        "training_dead_letters",
    }
)


def render() -> str:
    """The whole file."""
    return _HEAD + _table(rows()) + _API_HEAD + _table(api_rows())


def _table(found: list[Row]) -> str:
    lines = ["| metric | type | labels | what |\n", "|---|---|---|---|\n"]
    for name, kind, labels, told in found:
        shown = "; ".join(f"{label}: {_OPEN_LISTS.get(label) or ', '.join(values)}" for label, values in labels.items())
        whose = " *(everybody's)*" if name in _EVERYBODYS else ""
        lines.append(f"| `{name}` | {kind} | {shown} | {told}{whose} |\n")
    return "".join(lines)


def rows() -> list[Row]:
    """The worker's: name as a query writes it, type, the labels' known values, meaning; in order of the names."""
    return _rows(Metrics().registry)


def api_rows() -> list[Row]:
    """The API's, likewise."""
    return _rows(ApiMetrics().registry)


def _rows(registry: CollectorRegistry) -> list[Row]:
    found = []
    for family in registry.collect():
        labels: dict[str, set[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label not in {"le", "version"}:
                    labels.setdefault(label, set()).add(value)
        name = {"counter": f"{family.name}_total", "info": f"{family.name}_info"}.get(family.type, family.name)
        found.append(
            (name, family.type, {label: sorted(values) for label, values in labels.items()}, family.documentation)
        )
    return sorted(found)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
