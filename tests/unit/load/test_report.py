"""What became of a run's data."""

import hashlib
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.failures import FailureClass
from schemas.steps import Verdict
from worker.clock import Clock
from worker.domain.run import RunInputs
from worker.errors import StepFailed, TooLarge
from worker.metrics import Metrics
from worker.pipeline import phases
from worker.pipeline.failures import outcome_of
from worker.pipeline.report import SHOWN, check_floor, merge_verdicts
from worker.pipeline.steps import Made
from worker.storage import FileStorage


def accepted(ids, seconds, split="train"):
    return Verdict(data_ids=ids, file="f", verdict="accepted", duration_s=seconds, split=split)


def rejected(ids, code, file="f", reason="Because."):
    return Verdict(data_ids=ids, file=file, verdict="rejected", reason_code=code, reason=reason)


def test_a_file_is_accepted_when_any_of_its_segments_is():
    report = merge_verdicts(
        [rejected([2], "too_long", "a.vtt, line 9")], [accepted([1, 2], 4.0), rejected([1, 2], "silent")]
    )
    audio, transcript = report.items
    assert (audio.data_ids, audio.verdict, audio.duration_s) == ([1, 2], "accepted", 4.0)
    assert (transcript.data_ids, transcript.verdict, transcript.duration_s) == ([2], "accepted", None)
    assert "1 silent" in transcript.reason
    assert report.counts == {"silent": 1, "too_long": 1}


def test_a_recording_keeps_its_own_length_beside_what_is_used_of_it():
    told = {"recording_s": 600.0}
    one = accepted([1, 2], 4.0).model_copy(update=told)
    report = merge_verdicts([], [one, rejected([1, 2], "silent").model_copy(update=told), rejected([3, 2], "silent")])
    assert [(item.duration_s, item.recording_s) for item in report.items] == [(4.0, 600.0), (None, None), (None, None)]


def test_a_file_of_which_nothing_is_left_says_why():
    report = merge_verdicts([], [rejected([1], "silent"), rejected([1], "too_short"), rejected([1], "silent")])
    assert report.items[0].reason_code == "silent"
    assert report.items[0].reason == "Nothing of it can be used: 2 silent, 1 too short. The first: f: Because."


def test_waiting_files_go_on_waiting():
    waiting = Verdict(
        data_ids=[3], file="x.wav", verdict="waiting_for_pair", reason_code="waiting_for_pair", reason="No."
    )
    report = merge_verdicts([waiting], [])
    assert report.items == [waiting]
    assert report.summary()["files"] == {"accepted": 0, "rejected": 0, "waiting_for_pair": 1}


def test_the_summary_spells_out_the_first_rejections_and_counts_all():
    report = merge_verdicts((rejected([n], "silent") for n in range(SHOWN + 50)), [accepted([999], 70, "dev")])
    summary = report.summary()
    assert len(summary["rejections"]) == SHOWN
    assert (summary["rejections_total"], summary["counts"]) == (SHOWN + 50, {"silent": SHOWN + 50})
    assert summary["seconds"] == {"dev": 70.0}
    assert summary["reasons"]["silent"]["remedy"]


def test_below_the_floor_the_run_fails_with_the_counts():
    report = merge_verdicts(
        [rejected([1], "silent"), rejected([2], "silent")], [rejected([3], "clipped"), accepted([4], 59)]
    )
    with pytest.raises(StepFailed) as failed:
        check_floor(report, 60)
    assert (failed.value.failure_class, failed.value.code) == (FailureClass.DATA, "too_little_usable_audio")
    assert failed.value.reason == (
        "Only 59 s of the audio can be used; at least 60 s are needed. Not used: 2 silent, 1 overdriven."
    )
    check_floor(report, 59)


def test_nothing_to_train_on_is_said_so():
    with pytest.raises(StepFailed, match="none is left to train on"):
        check_floor(merge_verdicts([], [accepted([1], 100, "test")]), 60)


def test_a_verdict_may_stand_for_many():
    rest = rejected([1], "bad_manifest_line").model_copy(update={"count": 500})
    report = merge_verdicts([rejected([1], "bad_manifest_line"), rejected([1], "silent"), rest], [])
    assert report.counts == {"bad_manifest_line": 501, "silent": 1}
    assert "501 manifest lines not understood, 1 silent" in report.items[0].reason


async def test_verdicts_are_read_without_holding_them(tmp_path, monkeypatch):
    """However many segments a run has: a million of them have 250 MB of verdicts."""
    storage = FileStorage(tmp_path)
    lines = accepted([1, 2], 1.0).model_dump_json().encode() + b"\n"
    await storage.put_bytes("load.jsonl", b"")
    await storage.put_bytes("made/verdicts.jsonl", lines * 40_000)
    await storage.put_bytes("m", b"")
    inputs = RunInputs(
        manifest="m", manifest_sha256=hashlib.sha256(b"").hexdigest(), rows=1, base_language_id=1, base_key="en", base_weights="/base",
        base_version="1", recipe="whisper", recipe_version="1", seed=0, load_verdicts="load.jsonl",
    )  # fmt: skip

    async def made(*_: Any, **__: Any) -> Made:
        return Made("/made", "made", "0", {}, reused=False)

    async def nothing(*_: Any) -> None:
        return

    monkeypatch.setattr(phases, "manifest_for_step", nothing)
    monkeypatch.setattr(phases, "run_step", made)
    parts: Any = SimpleNamespace(
        storage=storage, clock=Clock(), metrics=Metrics(), minimum_audio_s=60.0,
        data=SimpleNamespace(set_verdicts=nothing, keep_splits=nothing), runs=SimpleNamespace(record_data_report=nothing),
    )  # fmt: skip
    attempt: Any = SimpleNamespace(fence=None, run=SimpleNamespace(custom_model_id=1))
    tracemalloc.start()
    try:
        prepared = await phases.prepare(attempt, parts, inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    await storage.aclose()
    assert prepared.report.segments == {"train": 40_000}
    assert peak < len(lines) * 40_000 / 2


def test_what_is_larger_than_its_reader_allows_is_named():
    failed = outcome_of(TooLarge("runs/1/1/verdicts.jsonl has more than 100 bytes"))
    assert (failed.failure_class, failed.code) == (FailureClass.INFRASTRUCTURE, "artifact_too_large")
