"""The processes that decode strangers' recordings: what they reach, and what a recording that takes one over costs."""

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from tests.launchers import unprivileged
from tests.unit.trainer import tiny
from tests.unit.trainer.test_prepare import prepared, reasons
from worker import confinement
from worker.trainer import audio, decoder, decoders, media
from worker.trainer.audio import UnreadableAudioError

av = pytest.importorskip("av")
ROOT = Path(__file__).parent.parent.parent.parent
WORDS = ["CRASH", "BURN.", "GREED", "LIES1", "LIES2", "LIES3", "LIES4", "LIES5", "WORDS"]

needs_landlock = pytest.mark.skipif(not confinement.means().enough, reason=str(confinement.means()))

# What a taken-over decoder would try; each is a line of Python that must fail.
TRIES = {
    "read a file": "open('/etc/passwd').read()",
    "list a folder": "os.listdir('/')",
    "write a file": "open(TARGET, 'w')",
    "remove a file": "os.unlink(TARGET + '.there')",
    "the parent's environment": "open(f'/proc/{PARENT}/environ').read()",
    "the parent's memory": "open(f'/proc/{PARENT}/mem').read(1)",
    "trace the parent": "traced(PARENT)",
    "its own environment by file": "open('/proc/self/environ').read()",
    "open its recording for writing": "os.open(f'/proc/self/fd/{RECORDING}', os.O_RDWR)",
    "shorten its recording": "os.ftruncate(RECORDING, 0)",
    "Postgres": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "a name": "socket.getaddrinfo('example.org', 80)[0][99]",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "a Unix socket": "socket.socket(socket.AF_UNIX)",
    "another program": "os.execv('/bin/true', ['true'])",
    "another process": "os.fork()",
    "a thread": "threading.Thread(target=print).start()",
    "kill the parent": "os.kill(PARENT, 0)",
    "a larger limit": "resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))",
    "io_uring": "called(425)",
    "memory without end": "bytearray(3 << 30)",
}
PROGRAM = """
import ctypes, json, os, resource, socket, sys, threading, traceback
from worker.trainer import decoder
TARGET, PORT, PARENT = sys.argv[1], int(sys.argv[2]), os.getppid()
RECORDING = os.open(TARGET + '.there', os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
def called(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), 'refused')
def traced(pid):
    if libc.ptrace(0x4206, pid, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), 'refused')
tries = json.loads(sys.argv[3])
if sys.argv[4] == 'confined':
    decoder._warm_up()
    decoder._give_up_everything()
found = {}
for name, code in tries.items():
    try:
        eval(code)
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        found[name] = f'refused: {error!r}'
    else:
        found[name] = 'done'
os.write(1, json.dumps(found).encode())
"""


@pytest.fixture
def postgres_port():
    """Somebody who listens, as Postgres does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def tried(tmp_path: Path, port: int, how: str, names=TRIES) -> dict[str, str]:
    (tmp_path / "file.there").write_bytes(b"0123456789")
    told = [str(tmp_path / "file"), str(port), json.dumps({name: TRIES[name] for name in names}), how]
    return json.loads(unprivileged.run("-c", PROGRAM, *told, cwd=ROOT).stdout)


@needs_landlock
def test_a_decoder_that_is_taken_over_reaches_nothing(tmp_path, postgres_port):
    found = tried(tmp_path, postgres_port, "confined")
    assert {name: how for name, how in found.items() if not how.startswith("refused")} == {}
    assert (tmp_path / "file.there").read_bytes() == b"0123456789"


def test_before_it_gives_everything_up_the_same_tries_succeed(tmp_path, postgres_port):
    """Or the test above would be green where nothing works at all."""
    there = ["read a file", "list a folder", "write a file", "Postgres", "UDP", "a Unix socket", "kill the parent"]
    assert set(tried(tmp_path, postgres_port, "open", there).values()) == {"done"}


@pytest.fixture
def taken_over(monkeypatch):
    """Decoders that recordings can take over."""
    monkeypatch.setattr(decoders, "_PROGRAM", "tests.unit.trainer.taken_over")
    own = decoders.Decoders()
    monkeypatch.setattr("worker.trainer.segments.DECODERS", own)
    yield own
    own.close()


def test_recordings_that_end_their_decoders_cost_their_own_rows_and_no_others(tmp_path, taken_over):
    """By a crash, an endless loop, all the memory, and by lies of five kinds; good recordings lie between them."""
    rows = []
    for number, word in enumerate(WORDS):
        (tmp_path / f"{word}wav").write_bytes(word.encode() + b" and then nothing")
        good = tiny.recording(tmp_path / f"{number}.wav", 2.0, number)
        rows.append(tiny.row(2 * number, tmp_path / f"{word}wav", tiny.spoken(2 * number)))
        rows.append(tiny.row(2 * number + 1, good, tiny.spoken(2 * number + 1)))
    _, verdicts, _ = prepared(tmp_path, rows)
    assert reasons(verdicts) == ["unreadable_audio", None] * len(WORDS)


def test_a_decoder_that_sleeps_is_given_up(tmp_path, taken_over, monkeypatch):
    monkeypatch.setattr(decoders, "_ANSWER_S", 0.2)
    monkeypatch.setattr(decoders, "_LOOK_S", 0.1)
    (tmp_path / "bad.wav").write_bytes(b"SLEEP")
    with pytest.raises(UnreadableAudioError), taken_over.opened(tmp_path / "bad.wav"):
        pass
    monkeypatch.setattr(decoders, "_ANSWER_S", 60.0)
    with taken_over.opened(tiny.recording(tmp_path / "a.wav", 2.0)) as recording:
        assert len(recording.read(0.0, 3.0)) == 32_000


def test_what_a_decoder_says_is_cleaned_before_a_customer_reads_it(tmp_path, taken_over):
    (tmp_path / "bad.wav").write_bytes(b"WORDS")
    with pytest.raises(UnreadableAudioError) as told, taken_over.opened(tmp_path / "bad.wav"):
        pass
    assert str(told.value).isprintable()
    assert len(str(told.value)) <= 200


def test_a_decoder_that_dies_of_something_else_is_replaced_in_the_middle_of_a_recording(tmp_path):
    own = decoders.Decoders()
    sound = tiny.recording(tmp_path / "a.wav", 4.0)
    with audio.opened(sound) as recording:
        whole = recording.read(2.0, 1.0)
    with own.opened(sound, (0.0, 1.0)) as recording:
        recording.read(0.0, 1.0)
        (decoder,) = own._all
        decoder._process.kill()
        assert np.array_equal(recording.read(2.0, 1.0), whole)
    own.close()


def test_a_decoder_that_cannot_start_is_no_recordings_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "_PROGRAM", "worker.no_such_program")
    own = decoders.Decoders()
    with pytest.raises(decoders.StepFailureError) as told, own.opened(tiny.recording(tmp_path / "a.wav", 1.0)):
        pass
    assert told.value.failure_class == "infrastructure"
    assert "no_such_program" in told.value.detail


def test_a_decoder_ends_with_the_process_that_asked_it(tmp_path):
    sound = tiny.recording(tmp_path / "a.wav", 1.0)
    program = f"""
import os
from pathlib import Path
from worker.trainer.decoders import DECODERS
with DECODERS.opened(Path({str(sound)!r})):
    (decoder,) = DECODERS._all
    print(decoder._process.pid, flush=True)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        os.sched_yield()


def _m4a(path: Path, container: str = "ipod", codec: str = "aac", rate: int = 16_000) -> None:
    sound = np.random.default_rng(0).normal(0, 0.05, (1, 3 * rate)).astype(np.float32)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        for start in range(0, sound.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(sound[:, start : start + 960], format="fltp", layout="mono")
            frame.rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


FORMATS = {
    "wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "ulaw.wav": ("WAV", "ULAW"), "ima.wav": ("WAV", "IMA_ADPCM"),
    "flac": ("FLAC", "PCM_24"), "mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"), "caf": ("CAF", "PCM_16"), "w64": ("W64", "PCM_16"),
}  # fmt: skip
MEDIA = {
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac"),
    "aac": ("adts", "aac"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "aac"),
}


@pytest.mark.parametrize("suffix", [*FORMATS, *MEDIA])
def test_every_format_is_decoded_the_same_in_another_process_under_any_name(tmp_path, suffix):
    made = tmp_path / f"made.{suffix}"
    if suffix in FORMATS:
        kind, subtype = FORMATS[suffix]
        sound = np.random.default_rng(0).normal(0, 0.05, (3 * 44_100, 2))
        soundfile.write(made, sound, 48_000 if suffix == "opus" else 44_100, subtype, format=kind)
    else:
        _m4a(made, *MEDIA[suffix], rate=48_000)
    nameless = made.rename(tmp_path / "recording")
    with audio.opened(nameless) as ours, decoders.DECODERS.opened(nameless, (0.5, 1.0)) as theirs:
        assert theirs.duration_s == ours.duration_s > 2.5
        for place in ((0.5, 1.0), (0.0, 2.0), (2.0, 30.0)):
            assert np.array_equal(theirs.read(*place), ours.read(*place))


def _film(path: Path) -> None:
    with av.open(str(path), "w") as out:
        picture = out.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
            out.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.full((1, 32_000), 0.1, np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
        out.mux(picture.encode(None))


def test_of_a_film_its_sound_is_decoded_and_no_picture(tmp_path):
    _film(tmp_path / "film.mp4")
    with decoders.DECODERS.opened(tmp_path / "film.mp4") as recording:
        assert len(recording.read(0.0, 5.0)) == pytest.approx(32_000, abs=2_048)
    assert not [codec for codec in media.CODECS if av.codec.Codec(codec, "r").type != "audio"]


POLYGLOTS = {
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://%s\n#EXT-X-ENDLIST\n",
    "HLS master": b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfile://%s\n",
    "concat": b"ffconcat version 1.0\nfile %s\n",
    "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\na=x:%s\n",
    "DASH": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="1"><BaseURL>file://%s</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "playlist": b"[playlist]\nFile1=file://%s\nNumberOfEntries=1\nVersion=2\n",
    "ASX": b'<asx version="3.0"><entry><ref href="file://%s"/></entry></asx>',
    "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\n%s\n",
    "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR%s",
}


@pytest.mark.parametrize("kind", POLYGLOTS)
def test_what_leads_to_other_files_is_no_recording(tmp_path, kind):
    secret = tiny.recording(tmp_path / "secret.wav", 2.0)
    # some are told by their name alone: decoders get none
    for name in ("a.m3u8", "a.mp4", "a.wav"):
        (tmp_path / name).write_bytes(POLYGLOTS[kind].replace(b"%s", os.fsencode(secret)))
        with pytest.raises(UnreadableAudioError), decoders.DECODERS.opened(tmp_path / name):
            pass


def test_ffmpeg_may_take_a_file_for_the_formats_of_the_contract_and_no_others(tmp_path):
    """A wav that only FFmpeg's list of forbidden containers stands before: au is sound, and not in it."""
    leading = {"concat", "hls", "dash", "sdp", "rtsp", "imf", "tee", "image2", "lavfi", "applehttp", "m3u8"}
    assert not leading & set(media.CONTAINERS)
    assert set(media.CONTAINERS) <= set(av.formats_available)
    assert set(media.CODECS) <= set(av.codecs_available) | {"mp1float"}
    with av.open(str(tmp_path / "a.nut"), "w", format="nut") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ones((1, 16_000), np.int16), format="s16", layout="mono")
        frame.rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(UnreadableAudioError), audio.opened(tmp_path / "a.nut"):
        pass


def test_nothing_that_a_customer_reads_names_a_path_of_the_server(tmp_path, capfd):
    folder = Path(tempfile.mkdtemp(prefix="secret-folder-", dir=tmp_path))
    whole = io.BytesIO()
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.05, 64_000), 16_000, "MPEG_LAYER_III", format="MP3")
    contents = {
        "empty": b"",
        "text": b"this is no sound",
        "cut": whole.getvalue()[:300],
        "m4a": b"\0\0\0\x18ftypM4A " + bytes(40),
    }
    rows = []
    for number, (name, content) in enumerate(contents.items()):
        (folder / f"{name}.mp3").write_bytes(content)
        rows.append(tiny.row(number, folder / f"{name}.mp3", tiny.spoken(number)))
    _, verdicts, _ = prepared(tmp_path, rows)
    told = capfd.readouterr()
    assert "text.mp3: " in told.out
    assert "secret-folder" not in told.out + told.err + json.dumps(verdicts)


def test_a_part_of_pyav_that_cannot_be_loaded_here_stops_no_decoder(monkeypatch):
    """A later PyAV may bring a part whose library a host does not have; no recording needs that then."""
    later = SimpleNamespace(name="av.of_a_later_version")
    monkeypatch.setattr(decoder.pkgutil, "walk_packages", lambda *_: [later])
    decoder._warm_up()
