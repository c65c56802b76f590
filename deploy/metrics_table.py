# ruff: noqa: E501 - a table's row is a line
"""Writes ``deploy/metrics.md`` from the metrics themselves: ``python -m deploy.metrics_table``. A test compares."""

from __future__ import annotations

from pathlib import Path

from worker.metrics import Metrics

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
    lines = ["| metric | type | labels | what |\n", "|---|---|---|---|\n"]
    for name, kind, labels, told in rows():
        shown = "; ".join(f"{label}: {', '.join(values)}" for label, values in labels.items())
        whose = " *(everybody's)*" if name in _EVERYBODYS else ""
        lines.append(f"| `{name}` | {kind} | {shown} | {told}{whose} |\n")
    return _HEAD + "".join(lines)


def rows() -> list[tuple[str, str, dict[str, list[str]], str]]:
    """Name as a query writes it, type, the labels' known values, meaning; in order of the names."""
    found = []
    for family in Metrics().registry.collect():
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
