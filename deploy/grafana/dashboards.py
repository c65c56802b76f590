# ruff: noqa: E501 - a query stays on one line
"""The dashboards, as code: ``python -m deploy.grafana.dashboards`` writes ``deploy/grafana/dashboards/*.json``.

A test runs every query against a live Prometheus that scrapes a live worker: each returns a series.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.grafana.panels import bars, dashboard, lines, rows_of, stat

TARGET = Path(__file__).parent / "dashboards"
RATE = "$__rate_interval"


def _quantile(quantile: float, metric: str, by: str = "", window: str = RATE) -> str:
    groups = f"{by}, le" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({groups}) (rate({metric}_bucket[{window}])))"


def _mean(metric: str, by: str = "", window: str = RATE) -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}_sum[{window}])) / sum{grouped} (rate({metric}_count[{window}]))"


def _started_in_time() -> str:
    in_time = f'sum(rate(training_start_seconds_bucket{{le=~"300(\\\\.0)?"}}[{RATE}]))'
    return f"{in_time} / sum(rate(training_start_seconds_count[{RATE}]))"


def overview() -> dict[str, Any]:
    """What an operator looks at first."""
    red = (1.0, "red")
    return dashboard(
        "training-overview",
        "Training: overview",
        "What waits, what runs, what became of it, and whether anything needs a person.",
        [
            stat("Waiting for a slot", "Runs that more slots would start at once.", 'max(training_runs_waiting{cause="slot"})'),
            stat("Running", "All workers.", "max(training_runs_running)"),
            stat("Workers", "Those that gave a sign of life.", "max(training_workers)", thresholds=()),
            stat("Slots in use", "Of all slots.", "sum(training_slots_used) / sum(training_slots)", "percentunit"),
            stat("Success of valid runs", "Over a day; refused data does not count.",
                 'sum(increase(training_runs_ended_total{end="success"}[1d]))'
                 ' / sum(increase(training_runs_ended_total{end=~"success|failed", failure_class!="data"}[1d]))',
                 "percentunit"),
            stat("Dead letters", "Messages that somebody must look at.", "max(training_dead_letters)", thresholds=(red,)),
            lines("What waits, and for what", "A cap is its organization's own affair; a slot is ours.",
                  ("max by (cause) (training_runs_waiting)", "{{cause}}"), stack=True),
            lines("How long the oldest has waited", "Since it was due.",
                  ("max by (cause) (training_oldest_waiting_seconds)", "{{cause}}"), unit="s"),
            lines("For whom", "Many organizations, or one with a long queue?",
                  ("max(training_organizations_waiting)", "organizations waiting"),
                  ("max(training_longest_organization_queue)", "longest queue of one")),
            lines("What runs, by phase", "All workers.", ("sum by (phase) (training_runs_in_phase)", "{{phase}}"), stack=True),
            lines("Runs that ended", "A second, by end.",
                  (f"sum by (end) (rate(training_runs_ended_total[{RATE}]))", "{{end}}"), unit="cps"),
            bars("Failed runs of a day, by class", "See deploy/runbook.md for each class.",
                 'sum by (failure_class) (increase(training_runs_ended_total{end="failed"}[1d]))', "{{failure_class}}"),
            lines("Promise: started within 5 minutes", "Share of runs; the promise is 99 %.", (_started_in_time(), "started in time"), unit="percentunit", most=1),
            lines("How long until the first start", "From accepted to claimed.",
                  (_quantile(0.5, "training_start_seconds"), "half of the runs"),
                  (_quantile(0.95, "training_start_seconds"), "95 %"), unit="s"),
            lines("Audio trained a second", "Seconds of audio worked through in each second, all workers.",
                  (f"sum(rate(training_audio_seconds_total[{RATE}]))", "audio seconds a second")),
        ],
    )  # fmt: skip


def life() -> dict[str, Any]:
    """From message to model: all runs stage by stage, and one run by its id."""
    run = {"name": "run", "type": "textbox", "label": "run id", "query": "00000000-0000-0000-0000-000000000000",
           "current": {"value": "00000000-0000-0000-0000-000000000000"}}  # fmt: skip
    return dashboard(
        "training-life",
        "Training: one run's life",
        "Each stage of a run's life over all runs; below, one run by its id (from Postgres: no metric holds an id).",
        [
            lines("Messages taken in", "By what became of them; anything but accepted and duplicate is a dead letter.",
                  (f"sum by (verdict) (rate(training_messages_total[{RATE}]))", "{{verdict}}"), unit="cps"),
            lines("Transitions", "Moves made by workers, by where to.",
                  (f"sum by (to) (rate(training_transitions_total[{RATE}]))", "{{to}}"), unit="cps"),
            lines("Attempts, by how they ended", "Handed over is a shutdown; lost is work repeated elsewhere.",
                  (f"sum by (outcome) (rate(training_attempts_ended_total[{RATE}]))", "{{outcome}}"), unit="cps"),
            lines("How long a phase takes, half of them", "By phase.", (_quantile(0.5, "training_phase_seconds", "phase"), "{{phase}}"), unit="s"),
            lines("How long a phase takes, 95 %", "By phase.", (_quantile(0.95, "training_phase_seconds", "phase"), "{{phase}}"), unit="s"),
            lines("How long a run takes", "From claim to end.", (_quantile(0.5, "training_run_seconds", "to"), "half, to {{to}}"),
                  (_quantile(0.95, "training_run_seconds", "to"), "95 %, to {{to}}"), unit="s"),
            lines("How far runs are", "On average, by phase.", ("max by (phase) (training_phase_progress_ratio)", "{{phase}}"), unit="percentunit", most=1),
            lines("How stale the stalest is", "Seconds since any sign of progress, by worker.",
                  ("max by (instance) (training_oldest_progress_seconds)", "{{instance}}"), unit="s"),
            lines("Longest rest of a phase", "As estimated.", ("max(training_longest_eta_seconds)", "longest"), unit="s"),
            lines("Checkpoints, rescues, losses", "A second.",
                  (f"sum(rate(training_checkpoints_total[{RATE}]))", "checkpoints"),
                  (f"sum(rate(training_rescued_runs_total[{RATE}]))", "dead leases rescued"),
                  (f"sum(rate(training_lost_runs_total[{RATE}]))", "runs lost to others"), unit="cps", width=24),
            rows_of("One run", "Where it stands.",
                    "select r.id, r.custom_model_id as model, r.status, r.phase, r.percent, r.eta_s, r.attempt, r.failures, r.hand_overs,"
                    " r.worker_id, now() - r.progress_at as since_progress, r.gate, r.failure_class, r.failure_code"
                    " from training_runs r where r.id = ${run:sqlstring}::uuid", height=5),
            rows_of("Its history", "Every move with its time.",
                    "select sequence, at, from_status, to_status, attempt, worker_id, reason_code,"
                    " at - lag(at) over (order by sequence) as after"
                    " from run_transitions where run_id = ${run:sqlstring}::uuid order by sequence", width=14),
            rows_of("Its checkpoints", "What a next attempt would begin from.",
                    "select steps_done, attempt, bytes, created_at from run_checkpoints"
                    " where run_id = ${run:sqlstring}::uuid order by steps_done desc, attempt desc", width=10),
        ],
        (run,),
    )  # fmt: skip


def data_quality() -> dict[str, Any]:
    """What customers bring, and how good their models get."""
    return dashboard(
        "training-quality",
        "Training: data and models",
        "What customers' data is like, why files are refused, and what training is worth.",
        [
            stat("Files refused", "Share over a day.",
                 'sum(increase(training_files_total{verdict="rejected"}[1d])) / sum(increase(training_files_total[1d]))',
                 "percentunit", ((0.2, "orange"), (0.5, "red"))),
            stat("Error reduction", "Mean part of the base's word errors that went away, over a day; weighted by buckets.",
                 _quantile(0.5, "training_error_reduction_ratio", window="1d"), "percentunit"),
            stat("Models in use", "Share of successful runs whose model was published, over a day.",
                 'sum(increase(training_gates_total{gate="published"}[1d])) / sum(increase(training_gates_total[1d]))', "percentunit"),
            lines("Files of prepared runs", "Accepted and rejected, a second.",
                  (f"sum by (verdict) (rate(training_files_total[{RATE}]))", "{{verdict}}"), unit="cps"),
            bars("Why files and segments are refused", "Over a day, by reason.",
                 "topk(10, sum by (reason) (increase(training_rejected_files_total[1d])))", "{{reason}}"),
            lines("Usable audio of a run", "Half of the runs have less than this.",
                  (_quantile(0.5, "training_usable_audio_seconds"), "half"), (_quantile(0.1, "training_usable_audio_seconds"), "a tenth"), unit="s"),
            lines("Word error rate before and after", "Mean on the runs' own test sets.",
                  (_mean("training_word_error_rate", "model"), "{{model}}"), unit="percentunit"),
            lines("Error reduction", "Part of the base's word errors that the custom model no longer makes.",
                  (_quantile(0.5, "training_error_reduction_ratio"), "half of the models"),
                  (_quantile(0.1, "training_error_reduction_ratio"), "worst tenth"), unit="percentunit"),
            lines("What the gate said", "Successful runs, a second.",
                  (f"sum by (gate) (rate(training_gates_total[{RATE}]))", "{{gate}}"), unit="cps"),
            lines("Failed attempts by class", "A second.",
                  (f"sum by (failure_class) (rate(training_failures_total[{RATE}]))", "{{failure_class}}"), unit="cps"),
        ],
    )  # fmt: skip


def saturation() -> dict[str, Any]:
    """What is full, late or away."""
    return dashboard(
        "training-saturation",
        "Training: saturation",
        "What is full, late or away: slots, devices, disks, leases, loop, Postgres, RabbitMQ.",
        [
            stat("Postgres", "1 while it answers every worker.", "min(training_database_up)", thresholds=()),
            stat("Queue consumed", "By how many workers.", "sum(training_intake_up)"),
            stat("Expired leases", "Runs without an owner.", "max(training_expired_leases)", thresholds=((1, "red"),)),
            stat("Outbox", "Events not yet told.", "max(training_outbox_rows)", thresholds=((1_000, "orange"),)),
            stat("Oldest event", "Untold for so long.", "max(training_outbox_oldest_seconds)", "s", ((60, "orange"), (300, "red"))),
            stat("Counted", "How long ago somebody counted what waits.", "time() - max(training_backlog_seen_timestamp_seconds)", "s", ((300, "orange"),)),
            lines("Slots", "In use, of these workers, and of all that gave a sign of life.",
                  ("sum(training_slots_used)", "in use"), ("sum(training_slots)", "scraped"), ("max(training_slots_of_all_workers)", "all")),
            lines("Devices", "Held by anybody on the hosts, and there; none where they are not limited.",
                  ("sum(training_devices_used)", "held"), ("sum(training_devices)", "there")),
            lines("Room on scratch disks", "Free share, by worker.",
                  ("training_scratch_free_bytes / training_scratch_size_bytes", "{{instance}}"), unit="percentunit", most=1),
            lines("Lease renewals", "A second, by result; late, unanswered and lost should be nothing.",
                  (f"sum by (result) (rate(training_lease_renewals_total[{RATE}]))", "{{result}}"), unit="cps"),
            lines("How long a renewal takes", "99 % of them.", (_quantile(0.99, "training_lease_renewal_seconds"), "99 %"),
                  ("max(training_lease_renewal_age_seconds)", "oldest renewal"), unit="s"),
            lines("Trainers paused", "Share of a second that they stood still for want of a lease.",
                  (f"sum(rate(training_trainer_paused_seconds_total[{RATE}]))", "paused")),
            lines("How late the event loop is", "99 % of its turns, by worker.", (_quantile(0.99, "training_loop_lag_seconds", "instance"), "{{instance}}"), unit="s"),
            lines("Processor", "Cores, of workers and of ended trainers.",
                  (f'sum(rate(process_cpu_seconds_total{{job=~".*worker.*"}}[{RATE}]))', "workers"),
                  (f"sum(rate(training_trainer_cpu_seconds_total[{RATE}]))", "trainers")),
            lines("Memory of workers", "Resident, trainers not counted.", ('process_resident_memory_bytes{job=~".*worker.*"}', "{{instance}}"), unit="bytes"),
            lines("Broker connections lost", "A second.", (f"sum by (instance) (rate(training_broker_reconnects_total[{RATE}]))", "{{instance}}"), unit="cps"),
            lines("Events told", "A second.", (f"sum(rate(training_events_sent_total[{RATE}]))", "confirmed"), unit="cps"),
            lines("Trainer events dropped", "Progress and metrics only, a second.",
                  (f"sum(rate(training_trainer_events_dropped_total[{RATE}]))", "dropped"), unit="cps"),
        ],
    )  # fmt: skip


def all_of_them() -> dict[str, dict[str, Any]]:
    """File name to dashboard."""
    return {made["uid"] + ".json": made for made in (overview(), life(), data_quality(), saturation())}


def written(made: dict[str, Any]) -> str:
    """A dashboard as its file's text."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for name, made in all_of_them().items():
        (TARGET / name).write_text(written(made), encoding="utf-8")
