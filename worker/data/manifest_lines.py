"""Lines of a customer's .jsonl manifest: read as a stream, each line for itself."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from schemas.text import TextTooLong
from worker.data.transcripts import TextError, has_words, tidy, too_long_to_say

Split = Literal["train", "dev", "test"]

LONGEST_LINE: Final = 1 << 20
"""Bytes."""
LONGEST_PATH: Final = 4_096
"""Characters of ``audio_filepath``: no system opens a longer one."""
LONGEST_SPEAKER: Final = 200
"""Characters that are kept."""
_SPLITS: Final[dict[str, Split]] = {"train": "train", "dev": "dev", "test": "test"}
_NO_LETTER: Final = re.compile("[\0\ud800-\udfff\ufffd]")
_LATEST_S: Final = 1e6
"""No recording is longer than eleven days."""


class LineError(TextError):
    """A line that cannot be used."""


@dataclass(frozen=True)
class ManifestLine:
    """One understood line."""

    audio_filepath: str
    text: str
    offset_s: float | None
    duration_s: float | None
    speaker: str | None
    split: Split | None


def lines_of(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Number (from 1) and bytes of each line that is not empty, as UTF-8; None for one longer than ``LONGEST_LINE``."""
    number, rest, skipping = 0, b"", False
    for chunk in _as_utf8(chunks):
        *whole, rest_of_chunk = chunk.split(b"\n")
        for piece in whole:
            number += 1
            line, rest = rest + piece, b""
            if skipping or len(line) > LONGEST_LINE:
                yield number, None
            elif line.strip():
                yield number, line
            skipping = False
        rest += rest_of_chunk
        if len(rest) > LONGEST_LINE:
            rest, skipping = b"", True
    if skipping:
        yield number + 1, None
    elif rest.strip():
        yield number + 1, rest


def _as_utf8(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The stream without its byte order mark; UTF-16 becomes UTF-8."""
    head = b""
    decoder: codecs.IncrementalDecoder | None = None
    begun = False
    for chunk in chunks:
        piece = chunk
        if not begun:
            head += chunk
            if len(head) < len(codecs.BOM_UTF8):
                continue
            begun = True
            if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                decoder = codecs.getincrementaldecoder("utf-16")(errors="replace")
            piece = head.removeprefix(codecs.BOM_UTF8)
        yield piece if decoder is None else decoder.decode(piece).encode()
    if not begun:
        yield head


def understood(line: bytes | None) -> ManifestLine:
    """One line, as `lines_of` gives it, as what it says.

    Raises:
        LineError: why it cannot be used.
    """
    if line is None:
        raise _bad("it is longer than 1 MB")
    fields = _object(line)
    audio_filepath = fields.get("audio_filepath")
    if not isinstance(audio_filepath, str) or not audio_filepath.strip():
        raise _bad("audio_filepath is missing or is no text")
    if len(audio_filepath) > LONGEST_PATH:
        raise _bad(f"audio_filepath has {len(audio_filepath):,} characters; at most {LONGEST_PATH:,} are possible")
    text = _text(fields)
    speaker = _speaker(fields)
    if _NO_LETTER.search(f"{text}{audio_filepath}{speaker or ''}"):
        raise _bad("it holds letters that do not exist")
    marked = fields.get("split")
    if marked is not None and not (isinstance(marked, str) and marked in _SPLITS):
        shown = repr(marked[:40]) if isinstance(marked, str) else "something else"
        raise _bad(f"split is train, dev or test, not {shown}")
    offset_s, duration_s = _seconds(fields, "offset"), _seconds(fields, "duration")
    if duration_s == 0:
        raise _bad("duration is 0")
    if not has_words(text):
        raise LineError("empty_transcript", "The text has no words.")
    return ManifestLine(
        audio_filepath.strip(),
        text,
        offset_s,
        duration_s,
        speaker,
        _SPLITS[marked] if marked is not None else None,
    )


def _text(fields: dict[str, Any]) -> str:
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise _bad("text is no text")
    try:
        return tidy(text or "")
    except TextTooLong as error:
        raise LineError("transcript_too_long", too_long_to_say(error)) from None


def _speaker(fields: dict[str, Any]) -> str | None:
    speaker = fields.get("speaker")
    if speaker is None:
        return None
    if not isinstance(speaker, str | int):
        raise _bad("speaker is no text")
    try:
        return tidy(str(speaker))[:LONGEST_SPEAKER] or None
    except TextTooLong as error:
        raise _bad(f"speaker has {error.length:,} characters") from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _bad("it is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _bad("it is not JSON") from error
    if not isinstance(value, dict):
        raise _bad("it is not a JSON object")
    return value


def _seconds(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(f"{name} is not a number")
    if not 0 <= value <= _LATEST_S:  # false for NaN as well
        raise _bad(f"{name} is {value:.6g}" if isinstance(value, float) else f"{name} is out of range")
    return round(float(value), 6)


def _bad(what: str) -> LineError:
    return LineError("bad_manifest_line", f"The line cannot be understood: {what}.")
