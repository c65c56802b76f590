"""What became of a run's data."""

import pytest

from schemas.failures import FailureClass
from schemas.steps import Verdict
from worker.errors import StepFailed
from worker.pipeline.report import SHOWN, check_floor, merge_verdicts


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
