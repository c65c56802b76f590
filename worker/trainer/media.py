"""The formats that libsndfile does not read (m4a, aac), through FFmpeg."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import av
import numpy as np

from worker.trainer.audio import SAMPLE_RATE, Samples, UnreadableAudioError

CONTAINERS: Final = ("wav", "w64", "aiff", "caf", "flac", "mp3", "aac", "mp4", "mov", "matroska", "webm", "ogg", "amr")
"""All that FFmpeg may take a file for: sound, and films for the sake of theirs. None of these leads to other files."""
CODECS: Final = (
    *("aac", "aac_latm", "alac", "amrnb", "amrwb", "flac", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
    *("ac3", "eac3", "opus", "vorbis", "gsm", "gsm_ms", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "g722"),
    *("pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
    *("pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
"""All that FFmpeg may decode: no pictures, though a film has them."""


@contextmanager
def opened_media(descriptor: int) -> Iterator["Media"]:
    """Open a recording with FFmpeg, which gets an open file, and may open nothing else.

    Raises:
        UnreadableAudioError: FFmpeg cannot decode it either.
    """
    options = {
        "fd": str(descriptor),
        "protocol_whitelist": "fd",
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
    }
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)  # libsndfile has read in it
        with av.open("fd:", options=options, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UnreadableAudioError("it has no sound in it")
            codec = container.streams.audio[0].codec_context.codec.name
            if codec not in CODECS:
                raise UnreadableAudioError(f"its sound is {codec}, which is not taken")
            yield Media(container)
    except av.FFmpegError as error:
        raise UnreadableAudioError(error.strerror or "it is damaged") from error
    except (ValueError, IndexError) as error:
        raise UnreadableAudioError("it is damaged") from error


class Media:
    """A file that FFmpeg reads, front to back: pieces are best asked for in order."""

    def __init__(self, container: "av.container.InputContainer") -> None:
        self._container = container
        self._stream = container.streams.audio[0]
        self._rewind()
        length = self._stream.duration
        self.duration_s = float(length * self._stream.time_base) if length else (container.duration or 0) / av.time_base

    def _rewind(self) -> None:
        self._container.seek(0)
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        self._frames = self._decoded()
        self._kept = np.zeros(0, np.int16)
        self._kept_from = 0  # sample position of the first kept sample

    def _decoded(self) -> Iterator[Samples]:
        for frame in self._container.decode(self._stream):
            frame.pts = None  # gaps in the time stamps are no reason to stop
            for piece in self._resampler.resample(frame):
                yield piece.to_ndarray()[0]
        for piece in self._resampler.resample(None):
            yield piece.to_ndarray()[0]

    def read(self, offset_s: float, duration_s: float) -> Samples:
        """16 kHz mono samples; see `audio.Recording`."""
        start = round(offset_s * SAMPLE_RATE)
        end = start + round(duration_s * SAMPLE_RATE)
        if start < self._kept_from:
            self._rewind()
        pieces, have = [self._kept], self._kept_from + len(self._kept)
        while have < end:
            piece = next(self._frames, None)
            if piece is None:
                break
            have += len(piece)
            if have <= start:  # before what is wanted: forget it at once
                pieces, self._kept_from = [], have
                continue
            pieces.append(piece)
        self._kept = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
        wanted = self._kept[max(0, start - self._kept_from) : max(0, end - self._kept_from)].copy()
        drop = min(len(self._kept), max(0, end - self._kept_from))
        self._kept, self._kept_from = self._kept[drop:].copy(), self._kept_from + drop
        return wanted
