"""Recordings of any length, written down piece by piece; bad ones are named and the others go on."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from tests.unit.trainer import tiny
from worker.trainer import transcribe
from worker.trainer.audio import opened
from worker.trainer.transcribe import Problem, Window, heard, windows

pytestmark = pytest.mark.trainer
RATE = 16_000


def noise(seconds: float, loudness: float = 0.1) -> np.ndarray:
    return np.random.default_rng(round(1000 * seconds)).normal(0, loudness, round(seconds * RATE))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE))


def cut(folder, *pieces: np.ndarray, rate: int = RATE, channels: int = 1) -> list[Window]:
    path = folder / "r.wav"
    sound = np.concatenate(pieces)
    soundfile.write(path, np.stack([sound] * channels, 1) if channels > 1 else sound, rate, subtype="PCM_16")
    with opened(path) as recording:
        return list(windows(recording, "r.wav"))


def test_a_short_recording_is_one_window(tmp_path):
    (only,) = cut(tmp_path, noise(2.5))
    assert (only.start_s, only.seconds) == (0.0, 2.5)


def test_windows_are_cut_in_pauses(tmp_path):
    found = cut(tmp_path, noise(5), silence(1), noise(6), silence(0.5), noise(4))
    assert [one.start_s for one in found] == pytest.approx([0, 5.5, 12.25], abs=0.2)
    assert sum(one.seconds for one in found) == pytest.approx(16.5)


def test_a_breath_within_a_word_is_no_pause(tmp_path):
    assert len(cut(tmp_path, noise(5), silence(0.1), noise(6))) == 1


def test_without_a_pause_a_window_ends_where_it_is_quietest_and_never_after_30_s(tmp_path):
    found = cut(tmp_path, noise(20), noise(0.5, 0.06), noise(50))
    assert all(one.seconds <= 30 for one in found)
    assert found[0].seconds == pytest.approx(20.25, abs=0.3)
    assert sum(one.seconds for one in found) == pytest.approx(70.5)


def test_long_silence_is_not_given_to_the_model(tmp_path):
    found = cut(tmp_path, noise(5), silence(200), noise(5))
    assert sum(one.seconds for one in found) < 70
    assert found[-1].start_s + found[-1].seconds == pytest.approx(210)


def test_no_sample_is_lost_or_heard_twice_at_other_rates(tmp_path):
    found = cut(tmp_path, *(noise(12), silence(1)) * 4, rate=44_100, channels=2)
    assert all(np.isclose(one.start_s + one.seconds, following.start_s) for one, following in pairwise(found))
    assert found[-1].start_s + found[-1].seconds == pytest.approx(52 * RATE / 44_100, abs=0.01)


def test_bad_recordings_are_named_and_the_others_go_on(tmp_path):
    (tmp_path / "text.mp3").write_text("no sound")
    soundfile.write(tmp_path / "still.wav", silence(3), RATE)
    soundfile.write(tmp_path / "cut.flac", noise(40), RATE)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    good = tiny.recording(tmp_path / "good.wav", 2)
    names = ["text.mp3", "nowhere.wav", "still.wav", "cut.flac", good.name]
    found = list(heard(tmp_path / name for name in names))
    told = {one.file.rpartition("/")[2]: one.sentence for one in found if isinstance(one, Problem)}
    assert told == {
        "text.mp3": "cannot be read: it is cut off, damaged, or no audio file",
        "nowhere.wav": "there is no such file",
        "still.wav": "nothing can be heard in it",
        "cut.flac": "cannot be read to its end: it is cut off or damaged",
    }
    assert isinstance(found[-1], Window)
    assert found[-1].file == str(good)


def test_the_program_writes_down_what_it_can_and_says_what_it_cannot(tmp_path, base, capsys):
    good = tiny.recording(tmp_path / "good.wav", 2)
    assert transcribe.main([str(base), str(good)]) == 0
    capsys.readouterr()
    assert transcribe.main(["--json", str(base), str(tmp_path / "gone.wav"), str(good)]) == 1
    said = capsys.readouterr()
    lost, written = (json.loads(line) for line in said.out.splitlines())
    assert lost == {"file": str(tmp_path / "gone.wav"), "error": "there is no such file"}
    assert (written["file"], written["start"], written["end"]) == (str(good), 0.0, 2.0)
    assert isinstance(written["text"], str)
    assert "gone.wav: there is no such file" in said.err
