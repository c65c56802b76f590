"""Decodes customers' audio to 16 kHz mono: libsndfile for what it reads, PyAV for the rest (m4a, aac).

Only the wanted seconds are ever in memory: a two-hour recording is read cue by cue.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

SAMPLE_RATE: Final = 16_000
"""Hz, mono: what Whisper hears."""
FULL_SCALE: Final = 32_767
_TRUNCATED: Final = 0.95
"""A file that holds less than this share of the frames that its header promises was cut off."""
_SLACK_S: Final = 0.25
_MOST_CHANNELS: Final = 16
_HIGHEST_RATE: Final = 768_000
"""Hz. Nobody records speech with more; a header of a few bytes can ask for gigabytes."""
_BLOCK: Final = 1 << 22
"""Samples of all channels together that are decoded at once: most segments, whole."""
_READY: Final = "PCM_16"
"""How libsndfile names samples that are int16 in the file."""
_WHOLE_NUMBERS: Final = "PCM"
"""How libsndfile names kinds of samples that are always numbers; others can be infinite or none at all."""

Samples = npt.NDArray[np.int16]
_Float = npt.NDArray[np.float32]


class UnreadableAudioError(Exception):
    """The bytes are no audio that we can decode; the message says what is wrong."""


class Recording(Protocol):
    """An open recording."""

    duration_s: float
    """As its header says; it may be wrong."""

    def read(self, offset_s: float, duration_s: float) -> Samples:
        """16 kHz mono samples from `offset_s` on, at most `duration_s` of them; fewer at the end."""


@contextmanager
def opened(path: Path) -> Iterator[Recording]:
    """Open a recording for reading piece by piece, in this process: for what we recorded ourselves, and for tests.

    Raises:
        FileNotFoundError: there is none.
        UnreadableAudioError: it cannot be decoded.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with opened_descriptor(descriptor) as recording:
            yield recording
    finally:
        os.close(descriptor)


@contextmanager
def opened_descriptor(descriptor: int) -> Iterator[Recording]:
    """The same of an open file, which stays open. Its content decides what it is: it has no name here.

    Raises:
        UnreadableAudioError: it cannot be decoded.
    """
    try:
        with soundfile.SoundFile(descriptor, closefd=False) as file:
            if file.samplerate <= 0 or file.channels <= 0:
                raise UnreadableAudioError("it has no sound in it")
            if file.channels > _MOST_CHANNELS or file.samplerate > _HIGHEST_RATE:
                raise UnreadableAudioError(f"it has {file.channels} channels at {file.samplerate} Hz")
            yield _Sound(file)
    except soundfile.LibsndfileError as error:
        if not _is_unknown_format(error):
            raise UnreadableAudioError(_plain(error)) from error
    else:
        return
    from worker.trainer.media import opened_media  # noqa: PLC0415 - FFmpeg is loaded for m4a and aac only

    with opened_media(descriptor) as recording:
        yield recording


def _plain(error: soundfile.LibsndfileError) -> str:
    """What libsndfile says, for a customer: without the name of what was opened."""
    return str(error.error_string).rstrip(".")


def _is_unknown_format(error: soundfile.LibsndfileError) -> bool:
    """Whether libsndfile does not know the format (then another decoder may), not that it broke later."""
    return bool(str(error).startswith("Error opening"))


class _Sound:
    """A file that libsndfile reads."""

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file = file
        self.duration_s = file.frames / file.samplerate

    def read(self, offset_s: float, duration_s: float) -> Samples:
        rate = self._file.samplerate
        start, wanted = round(offset_s * rate), round(duration_s * rate)
        if start >= self._file.frames:
            return np.zeros(0, np.int16)
        if start != self._file.tell():  # even to where it stands, a seek in Opus decodes again
            self._file.seek(start)
        promised = min(wanted, self._file.frames - start)
        # libsndfile takes eight times as long to turn what is int16 already into floats as numpy does.
        ready = self._file.subtype == _READY
        sound = self._mono(promised, "int16" if ready else "float32")
        if len(sound) < _TRUNCATED * promised - _SLACK_S * rate:
            raise UnreadableAudioError("it breaks off before its end")
        if not self._file.subtype.startswith(_WHOLE_NUMBERS) and not np.isfinite(sound).all():
            raise UnreadableAudioError("it holds samples that are no numbers")
        if ready:
            return sound if sound.dtype == np.int16 and rate == SAMPLE_RATE else _resampled(sound, rate)
        return to_samples(sound, rate)

    def _mono(self, promised: int, kind: str) -> npt.NDArray[Any]:
        """The mean of all channels of at most `promised` frames; of the single channels only a block is in memory."""
        most, pieces = _BLOCK // self._file.channels, []
        for start in range(0, max(1, promised), most):
            frames = self._file.read(min(most, promised - start), dtype=kind, always_2d=True)
            pieces.append(frames.mean(axis=1, dtype=np.float32) if frames.shape[1] > 1 else frames[:, 0])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def to_samples(sound: _Float, rate: int) -> Samples:
    """Resample finite mono float sound (full scale 1.0) to 16 kHz int16."""
    return _resampled(np.multiply(sound, FULL_SCALE, dtype=np.float32), rate)


def _resampled(sound: Samples | _Float, rate: int) -> Samples:
    """16 kHz int16 of sound that counts in steps of int16."""
    sound = sound.astype(np.float32, copy=False)
    if rate != SAMPLE_RATE:
        sound = soxr.resample(sound, rate, SAMPLE_RATE, quality="HQ")
    np.rint(sound, out=sound)
    return np.clip(sound, -FULL_SCALE - 1, FULL_SCALE, out=sound).astype(np.int16)
