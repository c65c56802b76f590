"""The formats that libsndfile does not read (m4a, aac), through FFmpeg."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from worker.trainer.audio import SAMPLE_RATE, Samples, UnreadableAudioError


@contextmanager
def opened_media(path: Path, reason: str) -> Iterator["Media"]:
    """Open a recording with FFmpeg.

    Args:
        path: the file.
        reason: why libsndfile refused it, for the message when FFmpeg refuses it too.

    Raises:
        UnreadableAudioError: FFmpeg cannot decode it either.
    """
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UnreadableAudioError("it has no sound in it")
            yield Media(container)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise UnreadableAudioError(f"{error}; {reason}") from error


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
