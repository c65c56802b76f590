"""Metrics: named by the conventions, documented, closed label sets, nothing that could hurt a run."""

import asyncio
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest

from deploy.metrics_table import TARGET, render, rows
from schemas.failures import FailureClass
from schemas.status import TrainingStatus
from worker.clock import Clock
from worker.domain.outcome import Cancelled, Failed, HandedOver, Lost, Succeeded
from worker.errors import BrokerAway
from worker.metrics import CAUSES, OUTCOMES, Metrics
from worker.pipeline.runner import _OUTCOMES
from worker.services.watchers import devices_held, next_look_s, show_backlog, watch_dead_letters
from worker.store.watching import Backlog


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_the_table_is_made_from_the_metrics():
    assert TARGET.read_text(encoding="utf-8") == render(), "run `python -m deploy.metrics_table`"


def test_names_follow_the_conventions():
    for name, kind, _, told in rows():
        assert re.fullmatch(r"(training|process)_[a-z_]+", name), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|minutes|hours|percent|mb|kb)(_|$)", name), name
        assert told, name


def test_no_label_can_hold_an_identifier():
    allowed = {
        "cause",
        "phase",
        "to",
        "outcome",
        "end",
        "failure_class",
        "gate",
        "model",
        "verdict",
        "reason",
        "result",
        "kept_from",
    }
    for name, _, labels, _ in rows():
        assert set(labels) <= allowed, name
    assert next(labels["model"] for name, _, labels, _ in rows() if name == "training_word_error_rate") == [
        "base",
        "custom",
    ]


def test_promtool_finds_nothing_to_say(tmp_path: Path):
    promtool = Path("/usr/bin/promtool")
    if not promtool.exists():
        pytest.skip("promtool is not here")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(Metrics().registry), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_apps_in_one_process_do_not_share_a_registry():
    one, other = Metrics(), Metrics()
    one.lost_runs.inc()
    assert value(one, "training_lost_runs_total") == 1
    assert value(other, "training_lost_runs_total") == 0


def test_a_run_is_counted_when_it_is_over_for_good_and_not_before():
    metrics = Metrics()
    metrics.run_ended(TrainingStatus.READY_TO_RUN, FailureClass.CRASHED)
    metrics.run_ended(TrainingStatus.FAILED, FailureClass.CRASHED)
    metrics.run_ended(TrainingStatus.SUCCESS, FailureClass.LOST_WORKER)
    assert value(metrics, "training_runs_ended_total", end="failed", failure_class="crashed") == 1
    assert value(metrics, "training_runs_ended_total", end="success", failure_class="none") == 1
    assert value(metrics, "training_runs_ended_total", end="failed", failure_class="lost_worker") == 0


def test_every_outcome_has_its_label():
    assert set(_OUTCOMES) == {Succeeded, Failed, HandedOver, Cancelled, Lost}
    assert set(_OUTCOMES.values()) == set(OUTCOMES)


def test_a_reason_nobody_knows_makes_no_series_of_its_own():
    metrics = Metrics()
    metrics.data_prepared({"accepted": 3, "rejected": 1}, {"made up by a recipe": 1, "silent": 2}, 120.0)
    assert value(metrics, "training_rejected_files_total", reason="other") == 1
    assert value(metrics, "training_rejected_files_total", reason="silent") == 2
    assert value(metrics, "training_usable_audio_seconds_sum") == 120


def test_error_reduction_is_relative_and_a_perfect_base_divides_nothing():
    metrics = Metrics()
    metrics.evaluated(0.20, 0.15)
    metrics.evaluated(0.0, 0.0)
    assert value(metrics, "training_error_reduction_ratio_count") == 1
    assert value(metrics, "training_error_reduction_ratio_bucket", le="0.3") == 1
    assert value(metrics, "training_error_reduction_ratio_bucket", le="0.2") == 0


def test_a_cause_that_no_run_waits_for_any_more_goes_back_to_zero():
    metrics = Metrics()
    counted = {
        "organizations_waiting": 1,
        "longest_queue": 2,
        "running": 0,
        "expired_leases": 0,
        "workers": 1,
        "slots": 1,
    }
    show_backlog(metrics, Backlog(waiting={"slot": (2, 30.0)}, **counted))
    assert value(metrics, "training_runs_waiting", cause="slot") == 2
    assert value(metrics, "training_oldest_waiting_seconds", cause="slot") == 30
    show_backlog(metrics, Backlog(waiting={}, **counted))
    assert [value(metrics, "training_runs_waiting", cause=cause) for cause in CAUSES] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("took_s", "workers", "expected_s"), [(0.001, 1, 5.0), (0.001, 1000, 20.0), (0.5, 10, 100.0), (5, 1000, 300.0)]
)
def test_looks_become_rarer_the_more_workers_look_and_the_longer_a_look_takes(took_s, workers, expected_s):
    assert next_look_s(took_s, workers, 5.0) == pytest.approx(expected_s)


def test_held_devices_are_counted_without_touching_their_locks(tmp_path: Path):
    import fcntl  # noqa: PLC0415 - only here

    assert devices_held(tmp_path, []) == (0, 0)
    assert devices_held(tmp_path, ["0", "1"]) == (2, 0)
    with (tmp_path / "device-0.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "device-1.lock").touch()
        assert devices_held(tmp_path, ["0", "1"]) == (2, 1)
    assert devices_held(tmp_path, ["0", "1"]) == (2, 0)


async def test_a_watcher_ends_when_cancelled_although_its_look_swallows_the_cancel():
    looking = asyncio.Event()

    async def count() -> int:
        looking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise BrokerAway("what aiormq makes of it") from error
        return 0

    watching = asyncio.create_task(watch_dead_letters(count, Metrics(), every_s=60, clock=Clock()))
    await looking.wait()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
