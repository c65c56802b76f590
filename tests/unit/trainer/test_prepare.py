"""Every row gets its verdict, one bad file never voids the rest, and no text is on two sides."""

import json

import numpy as np
import pytest
import soundfile

from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer import prepare
from worker.trainer.failures import StepStoppedError
from worker.trainer.verdicts import fingerprint


def prepared(tmp_path, rows, **parameters):
    run, events = tiny.step_run(
        Step.PREPARE, tmp_path / "out", {"manifest": tiny.manifest(tmp_path / "m.jsonl", rows)}, **parameters
    )
    prepare.run(run)
    verdicts = [json.loads(line) for line in (run.output / "verdicts.jsonl").read_text().splitlines()]
    return run.output / "dataset", verdicts, tiny.read_events(events)[-1]


def reasons(verdicts):
    return [one["reason_code"] for one in verdicts]


def test_every_kind_of_bad_recording_is_refused_with_its_reason_and_the_good_one_is_kept(tmp_path):
    good = tiny.recording(tmp_path / "good.wav", 2.0)
    copy = tmp_path / "copy.wav"
    copy.write_bytes(good.read_bytes())
    silent, clipped, text = tmp_path / "silent.wav", tmp_path / "clipped.wav", tmp_path / "text.mp3"
    soundfile.write(silent, np.zeros(32_000), 16_000)
    soundfile.write(clipped, np.sign(np.random.default_rng(0).normal(size=32_000)), 16_000)
    text.write_text("this is no sound")
    empty = tmp_path / "empty.wav"
    empty.touch()
    rows = [
        tiny.row(0, good, "the new dose"),
        tiny.row(1, tmp_path / "nowhere.wav", "the dose"),
        tiny.row(2, empty, "the dose today"),
        tiny.row(3, text, "the dose again"),
        tiny.row(4, good, "  ... "),
        tiny.row(5, tiny.recording(tmp_path / "short.wav", 0.1, 1), "stop"),
        tiny.row(6, tiny.recording(tmp_path / "long.wav", 31.0, 2), "start", source="jsonl"),
        tiny.row(7, tiny.recording(tmp_path / "untimed.wav", 31.0, 3), "start"),
        tiny.row(8, tiny.recording(tmp_path / "fast.wav", 1.0, 4), "metolazone " * 30),
        tiny.row(9, silent, "after lunch"),
        tiny.row(10, clipped, "lunch again"),
        tiny.row(11, copy, "the new dose today"),
    ]
    _, verdicts, result = prepared(tmp_path, rows)
    assert reasons(verdicts) == [
        None, "missing_file", "unreadable_audio", "unreadable_audio", "empty_transcript", "too_short", "too_long",
        "untimed_long_recording", "transcript_too_long_for_audio", "silent", "clipped", "duplicate",
    ]  # fmt: skip
    assert all(one["reason"].endswith(".") for one in verdicts[1:])
    assert result["figures"]["accepted"] == 1
    assert result["figures"]["rejected"]["unreadable_audio"] == 2


def test_when_nothing_is_usable_the_result_counts_the_reasons(tmp_path):
    rows = [tiny.row(0, tmp_path / "a.wav", "start"), tiny.row(1, tmp_path / "b.wav", "stop")]
    _, verdicts, result = prepared(tmp_path, rows)
    assert reasons(verdicts) == ["missing_file"] * 2
    assert result["figures"]["accepted"] == 0
    assert result["figures"]["rejected"] == {"missing_file": 2}


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 44_100), ("flac", 8_000), ("ogg", 48_000), ("mp3", 44_100)])
def test_formats_and_rates_become_16_khz_of_the_same_length(tmp_path, suffix, rate):
    audio = tmp_path / f"a.{suffix}"
    soundfile.write(audio, np.random.default_rng(0).normal(0, 0.05, (2 * rate, 2)), rate)
    dataset, verdicts, _ = prepared(tmp_path, [tiny.row(0, audio, "the new dose")])
    assert verdicts[0]["verdict"] == "accepted"
    assert (dataset / "audio.i16").stat().st_size / 2 / 16_000 == pytest.approx(2.0, abs=0.1)


def test_what_is_16_khz_int16_already_is_kept_to_the_bit(tmp_path):
    sound = np.random.default_rng(7).integers(-20_000, 20_000, 32_000, dtype=np.int16)
    sound[:2] = -32_768, 32_767
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="PCM_16")
    dataset, _, _ = prepared(tmp_path, [tiny.row(0, tmp_path / "a.wav", "the dose")])
    assert np.array_equal(np.fromfile(dataset / "audio.i16", "<i2"), sound)


def test_two_channels_become_their_mean(tmp_path):
    left, right = np.random.default_rng(8).integers(-20_000, 20_000, (2, 32_000), dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="PCM_16")
    dataset, _, _ = prepared(tmp_path, [tiny.row(0, tmp_path / "a.wav", "the dose")])
    mean = np.rint((left.astype(float) + right) / 2)
    assert np.array_equal(np.fromfile(dataset / "audio.i16", "<i2"), mean)


def test_m4a_is_read_by_the_other_decoder(tmp_path):
    av = pytest.importorskip("av")
    audio = tmp_path / "a.m4a"
    sound = (np.random.default_rng(0).normal(0, 0.05, (1, 96_000)) * 32_767).astype(np.int16)
    with av.open(str(audio), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        for start in range(0, 96_000, 1_024):
            frame = av.AudioFrame.from_ndarray(sound[:, start : start + 1_024], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    rows = [
        tiny.row(0, audio, "the new dose", offset_s=0.0, duration_s=0.8, source="cue"),
        tiny.row(1, audio, "after lunch", offset_s=1.0, duration_s=0.8, source="cue"),
    ]
    dataset, verdicts, _ = prepared(tmp_path, rows)
    assert reasons(verdicts) == [None, None]
    assert (dataset / "audio.i16").stat().st_size == 2 * 2 * 12_800


def test_cues_become_segments_at_their_times(tmp_path):
    audio = tmp_path / "long.wav"
    sound = np.concatenate([np.full(16_000, (second + 1) / 100) for second in range(40)])
    soundfile.write(audio, sound, 16_000, subtype="PCM_16")
    rows = [
        tiny.row(number, audio, f"{tiny.spoken(number)}", offset_s=float(at), duration_s=1.0, source="cue")
        for number, at in enumerate((3, 39, 17))
    ]
    dataset, verdicts, _ = prepared(tmp_path, rows)
    assert reasons(verdicts) == [None] * 3
    samples = np.fromfile(dataset / "audio.i16", "<i2").reshape(3, 16_000)
    assert [round(float(part.mean()) / 327.67) for part in samples] == [4, 40, 18]


def test_a_cue_past_the_end_of_the_recording_costs_only_itself(tmp_path):
    audio = tiny.recording(tmp_path / "a.wav", 5.0)
    rows = [
        tiny.row(number, audio, tiny.spoken(number), offset_s=at, duration_s=2.0, source="cue")
        for number, at in enumerate((0.0, 9.0))
    ]
    assert reasons(prepared(tmp_path, rows)[1]) == [None, "too_short"]


def test_a_text_that_is_tested_is_never_trained_on(tmp_path):
    audio = [tiny.recording(tmp_path / f"{number}.wav", 2.0, number) for number in range(3)]
    rows = [
        tiny.row(0, audio[0], "The new dose.", split="test", source="jsonl"),
        tiny.row(1, audio[1], "the NEW dose", split="train", source="jsonl"),
        tiny.row(2, audio[2], "the new dose"),
    ]
    _, verdicts, _ = prepared(tmp_path, rows)
    assert reasons(verdicts) == [None, "on_two_sides", None]
    assert verdicts[2]["split"] == "test"


def test_the_dataset_does_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    rows = [tiny.row(n, tiny.recording(tmp_path / f"{n}.wav", 1.5, n, 22_050), tiny.spoken(n)) for n in range(80)]
    folders = []
    for threads in (1, 5):
        monkeypatch.setattr(prepare, "cores", lambda threads=threads: threads)
        (tmp_path / str(threads)).mkdir()
        folders.append(prepared(tmp_path / str(threads), rows)[0])
    assert (folders[0] / "audio.i16").read_bytes() == (folders[1] / "audio.i16").read_bytes()
    assert (folders[0] / "index.jsonl").read_bytes() == (folders[1] / "index.jsonl").read_bytes()


def test_a_finished_dataset_is_used_again(tmp_path):
    rows = [tiny.row(0, tiny.recording(tmp_path / "a.wav", 2.0), "the new dose")]
    dataset, _, first = prepared(tmp_path, rows)
    written = (dataset / "audio.i16").stat().st_mtime_ns
    _, _, second = prepared(tmp_path, rows)
    assert (dataset / "audio.i16").stat().st_mtime_ns == written
    assert first["artifacts"] == second["artifacts"]


def test_prepare_stops_when_asked(tmp_path):
    rows = [tiny.row(n, tiny.recording(tmp_path / f"{n}.wav", 0.5, n), tiny.spoken(n)) for n in range(40)]
    listed = tiny.manifest(tmp_path / "m.jsonl", rows)
    run, _ = tiny.step_run(Step.PREPARE, tmp_path / "out", {"manifest": listed}, tiny.StopAfter(0))
    with pytest.raises(StepStoppedError):
        prepare.run(run)
    assert not (run.output / "dataset").exists()


def test_sound_that_differs_in_one_sample_is_no_duplicate():
    sound = np.random.default_rng(0).integers(-20_000, 20_000, 64_003).astype(np.int16)
    for place in (0, 7, 31, 64_001):
        other = sound.copy()
        other[place] += 1
        assert fingerprint(other) != fingerprint(sound), place
    assert fingerprint(sound.copy()) == fingerprint(sound)
    assert fingerprint(sound[:-1]) != fingerprint(sound)


def test_a_transcript_that_holds_a_line_separator_is_one_utterance(tmp_path):
    pytest.importorskip("torch")
    from worker.trainer.dataset import Dataset  # noqa: PLC0415 - loads torch

    texts = ["the new\u2028dose", "the dose\x85again", "after\x0blunch"]
    rows = [tiny.row(n, tiny.recording(tmp_path / f"{n}.wav", 1.0, n), text) for n, text in enumerate(texts)]
    dataset, _, _ = prepared(tmp_path, rows)
    assert [one.text for one in Dataset(dataset).utterances] == texts
