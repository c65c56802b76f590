"""Decodes a manifest's segments on all cores, in order, with a bounded amount of sound in memory."""

import os
import tempfile
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.recipes import WhisperParameters
from schemas.steps import ManifestRow
from worker.trainer.audio import Recording, Samples, UnreadableAudioError
from worker.trainer.decoders import DECODERS
from worker.trainer.verdicts import Refusal, after_decoding, before_decoding, fingerprint, too_long_recording

_PORTION_ROWS: Final = 8
"""Few, so that threads end together and little is left to write when they do."""
_PORTION_S: Final = 600.0
"""Seconds of sound that one thread may hold: 600 s of int16 are 19 MB."""
_PORTION_MEDIA_S: Final = 2_400.0
"""The same for m4a and aac, which are decoded from their beginning each time."""
_MEDIA: Final = (".m4a", ".aac", ".mp4")


@dataclass(frozen=True)
class Segment:
    """One row, decoded or refused."""

    row: ManifestRow
    samples: Samples | None
    refusal: Refusal | None
    fingerprint: bytes = b""
    """Of the samples; made by the thread that decoded them, while they are at hand."""
    recording_s: float | None = None
    """Seconds of the whole recording: decoded, or as its decoder says where only parts of it were read."""


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoded(rows: Iterable[ManifestRow], parameters: WhisperParameters, threads: int) -> Iterator[Segment]:
    """Every row in its order, decoded by `threads` threads (libsndfile and soxr let go of the interpreter)."""
    DECODERS.start(threads)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[list[Segment]]] = deque()
        try:
            for portion in _portions(rows):
                waiting.append(pool.submit(_decode_portion, portion, parameters))
                if len(waiting) > threads + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _portions(rows: Iterable[ManifestRow]) -> Iterator[list[ManifestRow]]:
    portion: list[ManifestRow] = []
    seconds = 0.0
    for row in rows:
        media = row.file.lower().endswith(_MEDIA) and bool(portion) and portion[-1].audio == row.audio
        full = seconds >= (_PORTION_MEDIA_S if media else _PORTION_S)
        if full or (len(portion) >= _PORTION_ROWS and not media and portion[-1].audio != row.audio):
            yield portion
            portion, seconds = [], 0.0
        portion.append(row)
        seconds += row.duration_s or 0.0
    if portion:
        yield portion


def _decode_portion(portion: list[ManifestRow], parameters: WhisperParameters) -> list[Segment]:
    segments: list[Segment] = []
    start = 0
    while start < len(portion):
        end = start
        while end < len(portion) and portion[end].audio == portion[start].audio:
            end += 1
        segments += _decode_file(portion[start:end], parameters)
        start = end
    return segments


def _decode_file(rows: list[ManifestRow], parameters: WhisperParameters) -> list[Segment]:
    """All rows of one file; whatever is wrong with it, it costs these rows and no other."""
    segments = [Segment(row, None, before_decoding(row, parameters)) for row in rows]
    if all(segment.refusal for segment in segments):
        return segments
    first = _place(next(segment.row for segment in segments if not segment.refusal), parameters)
    try:
        with _on_disk(rows[0].audio) as path, DECODERS.opened(path, first) as recording:
            return [segment if segment.refusal else _read(segment.row, recording, parameters) for segment in segments]
    except FileNotFoundError:
        refusal = Refusal("missing_file", "The recording is not there.")
    except UnreadableAudioError as error:
        print(f"{rows[0].file}: {error}"[:1000], flush=True)  # noqa: T201 - for the log
        refusal = Refusal("unreadable_audio", "The recording cannot be read: it is cut off, damaged, or no audio file.")
    return [segment if segment.refusal else Segment(segment.row, None, refusal) for segment in segments]


def _read(row: ManifestRow, recording: Recording, parameters: WhisperParameters) -> Segment:
    if refusal := too_long_recording(row, recording.duration_s, parameters):
        return Segment(row, None, refusal, recording_s=recording.duration_s)
    try:
        samples = recording.read(*_place(row, parameters))
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return Segment(row, None, Refusal("unreadable_audio", f"The recording cannot be read: {error}."[:500]))
    except UnreadableAudioError as error:
        return Segment(row, None, Refusal("unreadable_audio", f"The recording cannot be read: {error}."[:500]))
    refusal = too_long_recording(row, len(samples) / 16_000, parameters) or after_decoding(row, samples, parameters)
    length_s = _length_s(row, len(samples) / 16_000, recording.duration_s, _longest_s(parameters))
    if refusal:
        return Segment(row, None, refusal, recording_s=length_s)
    return Segment(row, samples, None, fingerprint(samples), length_s)


def _length_s(row: ManifestRow, decoded_s: float, told_s: float, longest_s: float) -> float:
    """A recording's length: what was decoded where that was all of it, else at least as far as it was read."""
    if row.duration_s is None and not row.offset_s and decoded_s < longest_s:
        return decoded_s
    return max(told_s, (row.offset_s or 0.0) + decoded_s)


def _place(row: ManifestRow, parameters: WhisperParameters) -> tuple[float, float]:
    """Offset and duration in seconds of what is read of a row's recording."""
    return row.offset_s or 0.0, row.duration_s or _longest_s(parameters)


def _longest_s(parameters: WhisperParameters) -> float:
    """A header may lie: no more is read than shows it."""
    return parameters.longest_segment_s + 1.0


@contextmanager
def _on_disk(address: str) -> Iterator[Path]:
    """The recording as a file: where it lies, or fetched from its signed address for as long as it is needed."""
    if not address.startswith(("https://", "http://")):
        path = Path(address)
        if not path.is_file():
            raise FileNotFoundError(address)
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=Path(address.partition("?")[0]).suffix) as file:
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - scheme checked above
            while block := answer.read(1 << 20):
                file.write(block)
        file.flush()
        yield Path(file.name)
