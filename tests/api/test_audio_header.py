"""Durations from headers: right for what encoders write, bounded and calm for what nobody should send."""

import contextlib
import random
import struct

import pytest

from tests.api.conftest import wav
from worker.api.audio_header import NotAudio, duration_s
from worker.api.contents import RefusedContent, checked_name, look_inside
from worker.data.text_reader import TextReaders

SECONDS = 7.0


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """The same seven seconds in every format, by the encoders people use."""
    soundfile = pytest.importorskip("soundfile")
    av = pytest.importorskip("av")
    numpy = pytest.importorskip("numpy")
    folder = tmp_path_factory.mktemp("audio")
    sound = (numpy.sin(numpy.arange(int(16_000 * SECONDS)) * 0.05) * 0.3).astype("float32")
    for suffix, how in (
        ("wav", {}),
        ("flac", {}),
        ("mp3", {}),
        ("ogg", {}),
        ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ):
        soundfile.write(folder / f"a.{suffix}", sound, 16_000, **how)
    for suffix, container in (("m4a", "ipod"), ("aac", "adts")):
        with av.open(str(folder / f"a.{suffix}"), "w", format=container) as out:
            stream = out.add_stream("aac", rate=16_000, layout="mono")
            for at in range(0, len(sound), 1024):
                part = numpy.zeros((1, 1024), "float32")
                part[0, : len(sound[at : at + 1024])] = sound[at : at + 1024]
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16_000, at
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return folder


def test_every_format_tells_its_length(encoded):
    for file in sorted(encoded.iterdir()):
        assert duration_s(file) == pytest.approx(SECONDS, abs=0.2), file.name


def test_a_flac_stream_without_a_length_is_measured_at_its_end(encoded, tmp_path):
    data = bytearray((encoded / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert duration_s(tmp_path / "a.flac") == pytest.approx(SECONDS, abs=0.3)


def test_a_tag_in_front_of_the_sound_is_skipped(encoded, tmp_path):
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 7, 104]) + bytes(1000)
    (tmp_path / "a.mp3").write_bytes(tag + (encoded / "a.mp3").read_bytes())
    assert duration_s(tmp_path / "a.mp3") == pytest.approx(SECONDS, abs=0.2)


def test_damaged_files_are_no_audio_or_have_some_length_and_never_anything_else(encoded, tmp_path):
    dice = random.Random(5)
    for file in sorted(encoded.iterdir()):
        data = file.read_bytes()
        for _ in range(60):
            spoiled = bytearray(data[: dice.randrange(1, len(data))])
            for _ in range(20):
                spoiled[dice.randrange(min(len(spoiled), 200))] = dice.randrange(256)
            (tmp_path / "x").write_bytes(spoiled)
            with contextlib.suppress(NotAudio):
                assert duration_s(tmp_path / "x") > 0


def test_headers_that_lead_in_circles_or_far_away_end(tmp_path):
    box = struct.pack(">I4s", 8, b"free")
    for data in (
        b"\0\0\0\x18ftypM4A " + bytes(12) + box * 5_000,
        b"\0\0\0\x18ftypM4A " + bytes(12) + struct.pack(">I4s", 0xFFFF_FFFF, b"moov"),
        b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 5_000,
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        b"OggS" * 10_000,
        b"",
    ):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(NotAudio):
            duration_s(tmp_path / "x")


def test_a_wav_that_was_cut_lasts_as_long_as_its_bytes(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(2)[: 44 + 16_000])
    assert duration_s(tmp_path / "a.wav") == 1.0


@pytest.fixture
async def readers():
    made = TextReaders()
    yield made
    await made.close()


async def test_transcripts_and_names_are_judged_at_the_door(tmp_path, readers):
    for name, content, code in (
        ("a.txt", b"\xff\xfe", "unreadable_transcript"),
        ("a.vtt", b"WEBVTT\n", "unreadable_transcript"),
        ("a.srt", b"", "empty_transcript"),
        ("a.jsonl", b"\n\n", "unreadable_manifest"),
        ("a.exe", b"x", "unsupported_media"),
    ):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(RefusedContent) as refused:
            await look_inside(tmp_path / "x", name, 3600, readers, 1)
        assert refused.value.code == code
    for name in ("..", "", "a/../b.wav", "/a.wav", "a\x00.wav", "C:\\a.wav"):
        with pytest.raises(RefusedContent) as refused:
            checked_name(name)
        assert refused.value.code == "bad_file_name"
