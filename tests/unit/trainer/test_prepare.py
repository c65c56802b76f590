"""Every row gets its verdict, one bad file never voids the rest, and no text is on two sides."""

import json
import tracemalloc

import numpy as np
import pytest
import soundfile

from schemas.steps import Step
from tests.unit.trainer import tiny
from worker.trainer import audio, prepare
from worker.trainer.failures import StepStoppedError
from worker.trainer.verdicts import fingerprint


def prepared(tmp_path, rows, base=None, **parameters):
    inputs = {"manifest": tiny.manifest(tmp_path / "m.jsonl", rows)} | ({"base": base} if base else {})
    run, events = tiny.step_run(Step.PREPARE, tmp_path / "out", inputs, **parameters)
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


def test_a_transcript_that_the_base_cannot_write_costs_only_itself(tmp_path, base):
    audio = [tiny.recording(tmp_path / f"{number}.wav", 20.0, number) for number in range(3)]
    letters = 439  # and a blank in front: the tiny base writes a token for each byte
    rows = [
        tiny.row(0, audio[0], ("dose " * 100)[:letters], source="jsonl"),
        tiny.row(1, audio[1], "வணக்கம் நோயாளிக்கு " * 9, source="jsonl"),
        tiny.row(2, audio[2], ("stop " * 100)[: letters + 1] + "p", source="jsonl"),
    ]
    _, verdicts, _ = prepared(tmp_path, rows, base)
    assert reasons(verdicts) == [None, "transcript_too_long", "transcript_too_long"]
    assert verdicts[2]["reason"] == "The transcript takes 442 of the model's tokens; a segment can have at most 440."


def test_a_text_with_a_line_separator_of_its_own_is_one_text(tmp_path):
    pytest.importorskip("torch")
    from worker.trainer.dataset import Dataset  # noqa: PLC0415 - torch is loaded only where a test needs it

    text = "the new dose\u2028after lunch"
    dataset, *_ = prepared(tmp_path, [tiny.row(0, tiny.recording(tmp_path / "a.wav", 2.0), text)])
    assert [one.text for one in Dataset(dataset).utterances] == [text]


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


@pytest.mark.parametrize(("suffix", "channels"), [("wav", 1), ("wav", 2), ("flac", 6), ("ogg", 6), ("mp3", 2)])
def test_what_is_decoded_in_blocks_is_the_same_sound(tmp_path, monkeypatch, suffix, channels):
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.05, (132_301, channels)), 44_100)
    with audio.opened(file) as recording:
        whole = recording.read(0.5, 30.0)
    monkeypatch.setattr(audio, "_BLOCK", 50_000)
    with audio.opened(file) as recording:
        assert np.array_equal(recording.read(0.5, 30.0), whole)
        assert len(recording.read(1.0, 0.0)) == 0


@pytest.mark.parametrize(("channels", "rate"), [(17, 16_000), (1, 800_000)])
def test_more_channels_and_higher_rates_than_anybody_speaks_in_are_unreadable(tmp_path, channels, rate):
    """80 KB of Ogg can hold 2 GiB of silence."""
    good = tiny.row(1, tiny.recording(tmp_path / "good.wav", 2.0), "the dose")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.05, (rate, channels)), rate)
    _, verdicts, _ = prepared(tmp_path, [tiny.row(0, tmp_path / "a.wav", "start again"), good])
    assert reasons(verdicts) == ["unreadable_audio", None]


def test_the_memory_that_a_segment_takes_does_not_grow_with_its_channels(tmp_path):
    rate = 96_000
    soundfile.write(tmp_path / "a.flac", np.zeros((20 * rate, 8), np.int16), rate)
    with audio.opened(tmp_path / "a.flac") as recording:
        tracemalloc.start()
        try:
            recording.read(0.0, 20.0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 * rate * 20 * 2, "all channels of all frames"


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


@pytest.mark.parametrize(
    ("lasts", "reason"), [(5.4, None), (5.6, "too_short"), (0.85, None), (20.9, None), (21.2, "too_short")]
)
def test_a_segment_may_end_only_a_little_behind_its_recording(tmp_path, lasts, reason):
    there = 20.0 if lasts > 20 else 5.0 if lasts > 5 else 0.45
    sound = tiny.recording(tmp_path / "a.wav", there)
    rows = [tiny.row(0, sound, "the new dose", offset_s=0.0, duration_s=lasts, source="cue")]
    assert reasons(prepared(tmp_path, rows)[1]) == [reason]


def test_a_text_that_is_tested_is_never_trained_on(tmp_path):
    audio = [tiny.recording(tmp_path / f"{number}.wav", 2.0, number) for number in range(2)]
    rows = [
        tiny.row(0, audio[0], "Start the new dose.", split="test", source="jsonl"),
        tiny.row(1, audio[1], "start the NEW dose", split="train", source="jsonl"),
    ]
    assert reasons(prepared(tmp_path, rows)[1]) == [None, "on_two_sides"]


def test_a_few_words_that_everybody_says_may_be_tested_and_trained_on(tmp_path):
    audio = [tiny.recording(tmp_path / f"{number}.wav", 2.0, number) for number in range(2)]
    rows = [tiny.row(n, audio[n], "the new dose", split=split) for n, split in enumerate(("test", "train"))]
    assert reasons(prepared(tmp_path, rows)[1]) == [None, None]


def recorded(tmp_path, *rows):
    """Rows of one recording of 6 s."""
    sound = tiny.recording(tmp_path / "one.wav", 6.0)
    return [
        tiny.row(number, sound, tiny.spoken(number), audio_sha256="5" * 64, source="jsonl", **more)
        for number, more in enumerate(rows)
    ]


def test_one_file_with_two_transcripts_is_used_once(tmp_path):
    _, verdicts, _ = prepared(tmp_path, recorded(tmp_path, {}, {}, {}))
    assert reasons(verdicts) == [None, "duplicate", "duplicate"]


def test_a_recording_and_a_piece_of_it_are_never_in_two_splits(tmp_path):
    piece = {"offset_s": 1.0, "duration_s": 2.0}
    _, verdicts, _ = prepared(tmp_path, recorded(tmp_path, {}, piece))
    assert len({one["split"] for one in verdicts} - {None}) == 1


def test_a_mark_binds_what_overlaps_it(tmp_path):
    pieces = [
        {"offset_s": 0.0, "duration_s": 2.0, "split": "test"},
        {"offset_s": 1.0, "duration_s": 2.0},
        {"offset_s": 2.0, "duration_s": 2.0, "split": "train"},
    ]
    _, verdicts, _ = prepared(tmp_path, recorded(tmp_path, *pieces))
    assert [one["split"] for one in verdicts] == ["test", "test", None]
    assert "beside a passage of the same recording" in verdicts[2]["reason"]


def test_what_cannot_be_used_takes_no_other_row_with_it(tmp_path):
    (tmp_path / "bad.wav").write_text("this is no sound")
    rows = [
        tiny.row(0, tiny.recording(tmp_path / "good.wav", 2.0), "the new dose", split="train"),
        tiny.row(1, tmp_path / "bad.wav", "the new dose", split="test"),
    ]
    assert reasons(prepared(tmp_path, rows)[1]) == [None, "unreadable_audio"]


def test_a_sound_that_several_rows_bring_is_kept_once_for_the_one_that_is_used(tmp_path):
    first, second = recorded(tmp_path, {"split": "train"}, {"split": "test"})
    dataset, verdicts, result = prepared(tmp_path, [first, second])
    assert reasons(verdicts) == ["on_two_sides", None]
    assert (dataset / "audio.i16").stat().st_size == 2 * 6 * 16_000
    assert result["figures"]["usable_s"] == 6.0


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


def test_a_verdict_tells_the_length_of_the_whole_recording_as_decoding_found_it(tmp_path):
    long, short = tiny.recording(tmp_path / "long.wav", 12.0), tiny.recording(tmp_path / "short.wav", 2.0, 1)
    untimed = tiny.recording(tmp_path / "untimed.wav", 33.0, 2)
    rows = [
        tiny.row(0, long, "the new dose", offset_s=1.0, duration_s=2.0, source="cue"),
        tiny.row(1, short, "stop"),
        tiny.row(2, untimed, "start"),
        tiny.row(3, tmp_path / "nowhere.wav", "start again"),
    ]
    _, verdicts, _ = prepared(tmp_path, rows)
    assert [one["recording_s"] for one in verdicts] == [12.0, 2.0, 33.0, None]
    assert [one["duration_s"] for one in verdicts[:2]] == [2.0, 2.0]
