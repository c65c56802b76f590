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


@pytest.fixture(scope="module")
def extremes(tmp_path_factory):
    """What honest encoders make the least and the most bytes of: silence and noise, at the ends of what people use."""
    soundfile = pytest.importorskip("soundfile")
    av = pytest.importorskip("av")
    numpy = pytest.importorskip("numpy")
    folder = tmp_path_factory.mktemp("extremes")
    dice = numpy.random.default_rng(7)
    for rate, channels in ((8_000, 1), (48_000, 2)):
        silence = numpy.zeros((rate * 20, channels), "float32")
        noise = (dice.random((rate * 4, channels)) * 2 - 1).astype("float32")
        for sound, name in ((silence, "silence"), (noise, "noise")):
            for suffix, how in (
                ("wav", {}), ("flac", {}), ("flac", {"subtype": "PCM_24"}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"}),
                ("mp3", {}), ("wav", {"subtype": "IMA_ADPCM"}), ("wav", {"subtype": "ULAW"}), ("wav", {"subtype": "FLOAT"}),
                ("wav", {"subtype": "MS_ADPCM"}), ("wav", {"subtype": "GSM610"}),
            ):  # fmt: skip
                if how.get("subtype") == "GSM610" and channels > 1:
                    continue
                kind = how.get("subtype", "")
                soundfile.write(folder / f"{name}-{rate}-{kind}.{suffix}", sound, rate, **how)
            for codec, suffix, container in (("aac", "m4a", "ipod"), ("alac", "m4a", "ipod"), ("aac", "aac", "adts")):
                with av.open(str(folder / f"{name}-{rate}-{codec}.{suffix}"), "w", format=container) as out:
                    stream = out.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
                    layout, form = ("mono", "stereo")[channels - 1], stream.format.name
                    plane = (
                        sound.T if form == "fltp" else (sound.T * 32767).astype("int16" if form == "s16p" else "int32")
                    )
                    frame = av.AudioFrame.from_ndarray(numpy.ascontiguousarray(plane), format=form, layout=layout)
                    frame.sample_rate = rate
                    for piece in av.AudioResampler(
                        format=form, layout=layout, rate=rate, frame_size=stream.frame_size
                    ).resample(frame):
                        out.mux(stream.encode(piece))
                    out.mux(stream.encode(None))
    return folder


def test_silence_and_noise_of_honest_encoders_are_never_refused(extremes):
    found = sorted(extremes.iterdir())
    assert len(found) > 40
    for file in found:
        seconds = 20 if file.name.startswith("silence") else 4
        assert duration_s(file) == pytest.approx(seconds, rel=0.05, abs=0.3), file.name


def _m4a(scale: int, length: int, media: int) -> bytes:
    mvhd = struct.pack(">I4s", 108, b"mvhd") + bytes(12) + struct.pack(">II", scale, length) + bytes(80)
    hdlr = struct.pack(">I4s", 33, b"hdlr") + bytes(8) + b"soun" + bytes(13)
    moov = struct.pack(">I4s", 8 + len(mvhd) + len(hdlr), b"moov") + mvhd + hdlr
    return (
        struct.pack(">I4s", 24, b"ftyp")
        + b"M4A "
        + bytes(12)
        + moov
        + struct.pack(">I4s", 8 + media, b"mdat")
        + bytes(media)
    )


def _flac(samples: int, block: int, sound: int) -> bytes:
    info = (
        struct.pack(">HH", block, block)
        + bytes(6)
        + ((16_000 << 44) | (15 << 36) | samples).to_bytes(8, "big")
        + bytes(16)
    )
    return b"fLaC\x80\0\0\x22" + info + bytes(sound)


def _wav_of(rate: int, channels: int, sound: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels, channels, 8)
    return b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", sound) + bytes(sound)


def _mp3_of(encoded, frames: int, size: int) -> bytes:
    data = bytearray((encoded / "a.mp3").read_bytes())
    at = max(data.find(b"Xing"), data.find(b"Info"))
    data[at + 8 : at + 12] = struct.pack(">I", frames)
    return bytes(data) + bytes(max(0, size - len(data)))


def _ogg_until(encoded, granule: int, name: str) -> bytes:
    data = bytearray((encoded / name).read_bytes())
    at = data.rfind(b"OggS")
    data[at + 6 : at + 14] = struct.pack("<Q", granule)
    return bytes(data)


def test_a_length_that_the_bytes_cannot_have_is_refused_in_plain_words(encoded, tmp_path):
    lies = {
        "few": [
            _wav_of(1, 1, 21_600),  # six hours of a byte a second
            _m4a(1_000, 6 * 3_600_000, 1_000),
            _flac(6 * 3_600 * 16_000, 4_096, 1_000),
            _mp3_of(encoded, 900_000, 0),
            _ogg_until(encoded, 6 * 3_600 * 48_000, "a.opus"),
            _ogg_until(encoded, 6 * 3_600 * 16_000, "a.ogg"),
        ],
        "many": [
            _wav_of(2**28, 8, 1 << 20),
            _m4a(2**32 - 1, 1, 8 << 20),
            _flac(10, 4_096, 8 << 20),
            _mp3_of(encoded, 1, 8 << 20),
        ],
    }
    for word, files in lies.items():
        for number, content in enumerate(files):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(NotAudio) as told:
                duration_s(tmp_path / "x")
            assert word in str(told.value) or "no speech" in str(told.value), (word, number, str(told.value))


def test_pictures_and_tags_are_not_taken_for_sound(encoded, tmp_path):
    data = (encoded / "a.flac").read_bytes()
    picture = b"\x06" + (12 << 20).to_bytes(3, "big") + bytes(12 << 20)
    (tmp_path / "a.flac").write_bytes(data[:4] + b"\0" + data[5:42] + picture + data[42:])
    assert duration_s(tmp_path / "a.flac") == pytest.approx(SECONDS, abs=0.2)
    (tmp_path / "a.m4a").write_bytes(
        (encoded / "a.m4a").read_bytes() + struct.pack(">I4s", 8 + (12 << 20), b"free") + bytes(12 << 20)
    )
    assert duration_s(tmp_path / "a.m4a") == pytest.approx(SECONDS, abs=0.2)


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
