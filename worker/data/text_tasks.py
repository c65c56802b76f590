"""What a reading child does with one file: bytes in, small JSON values out. Standard library only.

Each task is a generator of values; `worker.data.text_reader` has the same shapes as types and checks them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from worker.data.cues import pieces_of
from worker.data.manifest_lines import LONGEST_LINE, LineError, lines_of, understood
from worker.data.transcripts import TextError, TranscriptError, cues_of, utterance
from worker.domain.data import clean_name

MOST_NAMES: Final = 200_000
"""Lines of a manifest that is sent to the API."""


def transcript(chunks: Iterable[bytes], *, timed: bool, longest_s: float) -> Iterator[list[Any]]:
    """Segments and faults of one transcript; a .txt is one segment without times.

    A value is ``[[start_ms, end_ms, text, speaker], null]`` or ``[null, [line, code, sentence]]``.

    Raises:
        TranscriptError: nothing in it can be used.
    """
    data = b"".join(chunks)
    if not timed:
        yield [[None, None, utterance(data), None], None]
        return
    cues, faults = cues_of(data)
    pieces, too_long = pieces_of(cues, longest_s)
    for piece in pieces:
        yield [[piece.start_ms, piece.end_ms, piece.text, piece.speaker], None]
    for fault in sorted(faults + too_long, key=lambda fault: fault.line):
        yield [None, [fault.line, fault.code, fault.sentence]]


def manifest(chunks: Iterable[bytes]) -> Iterator[list[Any]]:
    """Lines of a manifest in their order.

    A value is ``[[path, text, offset_s, duration_s, speaker, split], null, number]`` or
    ``[null, [number, code, sentence], number]``.
    """
    for number, line in lines_of(chunks):
        try:
            told = understood(line)
        except LineError as error:
            yield [None, [number, error.code, error.sentence], number]
        else:
            fields = [told.audio_filepath, told.text, told.offset_s, told.duration_s, told.speaker, told.split]
            yield [fields, None, number]


def check_transcript(chunks: Iterable[bytes], *, timed: bool) -> Iterator[list[Any]]:
    """The first look at an upload: text at all, and times where there should be some. Gives nothing.

    Raises:
        TranscriptError: it is not.
    """
    try:
        text = b"".join(chunks).decode("utf-8-sig")
    except ValueError:
        raise TranscriptError("unreadable_transcript", "The transcript is not UTF-8 text.") from None
    if "\x00" in text:
        raise TranscriptError("unreadable_transcript", "The transcript is not text.")
    if not text.strip():
        raise TranscriptError("empty_transcript", "The transcript is empty.")
    if timed and "-->" not in text:
        raise TranscriptError("unreadable_transcript", "The transcript has no timed cues.")
    yield from ()


def audio_names(chunks: Iterable[bytes]) -> Iterator[str]:
    """The recordings that the usable lines of an uploaded manifest name, each once.

    A bad line is for the run's report, not for the first look.

    Raises:
        TextError: too many lines or too long ones, or not one that names a recording.
    """
    names: set[str] = set()
    for number, line in lines_of(chunks):
        if line is None or number > MOST_NAMES:
            sentence = f"A manifest has at most {MOST_NAMES} lines of at most {LONGEST_LINE >> 20} MiB."
            raise TextError("too_large", sentence)

        name = _audio_name(line)
        if name is not None and name not in names:
            names.add(name)
            yield name
    if not names:
        raise TextError("unreadable_manifest", "No line of the manifest is a JSON object with audio_filepath.")


def _audio_name(line: bytes) -> str | None:
    try:
        row = json.loads(line)
        written = row.get("audio_filepath") if isinstance(row, dict) else None
        return clean_name(written.replace("\\", "/").rpartition("/")[2]) if isinstance(written, str) else None
    except (ValueError, RecursionError):
        return None


TASKS: Final[dict[str, Callable[..., Iterator[Any]]]] = {
    task.__name__: task for task in (transcript, manifest, check_transcript, audio_names)
}
