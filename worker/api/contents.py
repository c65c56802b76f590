"""What a file of training data is, told from its name and a look inside: the verdict at the door."""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.api.audio_header import NotAudio, duration_s

KINDS: Final = {
    "wav": "audio", "flac": "audio", "mp3": "audio", "m4a": "audio", "aac": "audio", "ogg": "audio", "opus": "audio",
    "txt": "transcript", "vtt": "transcript", "srt": "transcript", "jsonl": "manifest",
}  # fmt: skip
LONGEST_NAME: Final = 200
LARGEST_TEXT_BYTES: Final = 16 << 20
"""Of a transcript or a manifest."""
_LONGEST_LINE: Final = 1 << 20
_MOST_ROWS: Final = 200_000


@dataclass(frozen=True)
class RefusedContent(Exception):  # noqa: N818 - a verdict
    """A file that is not taken: a code of the problem documents, and a sentence for its owner."""

    code: str
    reason: str


@dataclass(frozen=True)
class Content:
    """What a look inside a file told."""

    duration_s: float | None = None
    audio_names: tuple[str, ...] = ()


def clean_name(name: str) -> str:
    """A file name as it is kept.

    Raises:
        RefusedContent: it is empty, too long, a path, or has characters that no name has.
    """
    clean = unicodedata.normalize("NFC", name)
    if not clean.strip() or clean != clean.strip() or len(clean) > LONGEST_NAME:
        raise RefusedContent("bad_file_name", f"A file name has 1 to {LONGEST_NAME} characters.")
    if "/" in clean or "\\" in clean or not clean.isprintable() or clean.strip(".") == "":
        raise RefusedContent("bad_file_name", "A file name holds no path and no control characters.")
    return clean


def kind_of(name: str) -> str:
    """audio, transcript or manifest, by the suffix.

    Raises:
        RefusedContent: another suffix.
    """
    kind = KINDS.get(name.rpartition(".")[2].lower())
    if kind is None or "." not in name:
        raise RefusedContent("unsupported_media", f"Files end in one of: {', '.join(KINDS)}.")
    return kind


def look_inside(path: Path, name: str, longest_audio_s: float) -> Content:
    """What the file holds. Blocking, with bounded reads: call it in a thread.

    Raises:
        RefusedContent: it is not what its name says, is empty, or is too long.
    """
    kind = kind_of(name)
    if kind == "audio":
        try:
            seconds = duration_s(path)
        except NotAudio as error:
            raise RefusedContent("unreadable_audio", str(error)) from error
        if seconds > longest_audio_s:
            hours = longest_audio_s / 3600
            raise RefusedContent(
                "too_long", f"The recording says it lasts {seconds / 3600:.1f} h; at most {hours:g} h."
            )
        return Content(duration_s=round(seconds, 3))
    if path.stat().st_size > LARGEST_TEXT_BYTES:
        raise RefusedContent("too_large", f"A transcript has at most {LARGEST_TEXT_BYTES >> 20} MiB.")
    if kind == "transcript":
        _check_transcript(path, name)
        return Content()
    return Content(audio_names=_names_in_manifest(path))


def _check_transcript(path: Path, name: str) -> None:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError:
        raise RefusedContent("unreadable_transcript", "The transcript is not UTF-8 text.") from None
    if "\x00" in text:
        raise RefusedContent("unreadable_transcript", "The transcript is not text.")
    timed = not name.lower().endswith(".txt")
    if timed and text.strip() and "-->" not in text:
        raise RefusedContent("unreadable_transcript", "The transcript has no timed cues.")
    if not text.strip():
        raise RefusedContent("empty_transcript", "The transcript is empty.")


def _names_in_manifest(path: Path) -> tuple[str, ...]:
    """The audio that a manifest's usable lines name; a bad line is for the run's report, not for the door."""
    names: dict[str, None] = {}
    rows = 0
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE + 1):
            rows += 1
            if len(line) > _LONGEST_LINE or rows > _MOST_ROWS:
                raise RefusedContent("too_large", f"A manifest has at most {_MOST_ROWS} lines of at most 1 MiB.")
            name = _audio_name(line)
            if name is not None:
                names[name] = None
    if not names:
        raise RefusedContent("unreadable_manifest", "No line of the manifest is a JSON object with audio_filepath.")
    return tuple(names)


def _audio_name(line: bytes) -> str | None:
    try:
        row = json.loads(line)
        audio = row.get("audio_filepath") if isinstance(row, dict) else None
        return clean_name(audio.replace("\\", "/").rpartition("/")[2]) if isinstance(audio, str) else None
    except (ValueError, RecursionError, RefusedContent):
        return None
