"""What a file of training data is, told from its name and a look inside: the verdict at the door."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.api.audio_header import NotAudio, duration_s
from worker.domain.data import AUDIO_SUFFIXES, MANIFEST_SUFFIXES, TRANSCRIPT_SUFFIXES, Kind, clean_name, kind_of

_SUFFIXES: Final = (*AUDIO_SUFFIXES, *TRANSCRIPT_SUFFIXES, *MANIFEST_SUFFIXES)

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


def checked_name(name: str) -> str:
    """A file name as it is kept; folders are part of it.

    Raises:
        RefusedContent: it is none, leads out of its folder, or has characters that no name has.
    """
    try:
        return clean_name(name)
    except ValueError as error:
        raise RefusedContent("bad_file_name", str(error)) from None


def checked_kind(name: str) -> Kind:
    """audio, transcript or manifest, by the suffix.

    Raises:
        RefusedContent: another suffix.
    """
    kind = kind_of(name)
    if kind is None:
        raise RefusedContent("unsupported_media", f"Files end in one of: {', '.join(_SUFFIXES)}.")
    return kind


def look_inside(path: Path, name: str, longest_audio_s: float) -> Content:
    """What the file holds. Blocking, with bounded reads: call it in a thread.

    Raises:
        RefusedContent: it is not what its name says, is empty, or is too long.
    """
    kind = checked_kind(name)
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


def check_names(names: int) -> None:
    """Names that the manifests of one request hold together: they are in memory until they are stored.

    Raises:
        RefusedContent: too many.
    """
    if names > _MOST_ROWS:
        raise RefusedContent("too_large", f"Manifests sent together name at most {_MOST_ROWS} recordings.")


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
        return checked_name(audio.replace("\\", "/").rpartition("/")[2]) if isinstance(audio, str) else None
    except (ValueError, RecursionError, RefusedContent):
        return None
