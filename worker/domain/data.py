"""A model's training data as its owner named it."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from schemas.text import MOST_MARKS, normalized, without_surplus_marks

Kind = Literal["audio", "transcript", "manifest"]
Split = Literal["train", "dev", "test"]

AUDIO_SUFFIXES: Final = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".mp4", ".ogg", ".oga", ".opus")
TIMED_SUFFIXES: Final = (".vtt", ".srt")
TRANSCRIPT_SUFFIXES: Final = (*TIMED_SUFFIXES, ".txt")
MANIFEST_SUFFIXES: Final = (".jsonl",)

LONGEST_NAME: Final = 400
"""Characters of a file's name, folders included."""
_LONGEST_RAW_NAME: Final = 4 * LONGEST_NAME
"""Before its letters are composed: a letter and its marks become one character."""

LARGEST_PLAIN_BYTES: Final = 1 << 20
"""Of a .txt."""
LARGEST_TIMED_BYTES: Final = 8 << 20
"""Of a .vtt or .srt: one of a whole day has 2 MB, in scripts of three bytes a letter 6 MB."""


@dataclass(frozen=True, slots=True)
class DataItem:
    """One stored file of a model."""

    id: int
    name: str
    """As its owner knows it; may hold folders: ``calls/monday.wav``."""
    stem: str
    kind: Kind
    bytes: int
    sha256: str
    address: str
    """Storage key of the bytes."""
    duration_s: float | None = None
    split: Split | None = None
    speaker: str | None = None


def kind_of(name: str) -> Kind | None:
    """What a file is, by its suffix; None for what we cannot use."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    if suffix in TRANSCRIPT_SUFFIXES:
        return "transcript"
    return "manifest" if suffix in MANIFEST_SUFFIXES else None


def stem_of(name: str) -> str:
    """What audio and transcript must share to be a pair: the name, with its folder, without its suffix.

    ``talk.wav``, ``talk.txt`` and ``talk.wav.vtt`` (as many programs write it) share the stem ``talk``. Letter case
    counts. Manifests pair with nothing; they name their audio.
    """
    path = PurePosixPath(normalized(name, "NFC"))
    if kind_of(name) in {"audio", "transcript"}:
        path = path.with_suffix("")
    if kind_of(name) == "transcript" and path.suffix.lower() in AUDIO_SUFFIXES:
        path = path.with_suffix("")
    return str(path)


def largest_transcript_bytes(name: str) -> int:
    """How many bytes a transcript may have, by its suffix."""
    return LARGEST_TIMED_BYTES if is_timed(name) else LARGEST_PLAIN_BYTES


def is_timed(name: str) -> bool:
    """Whether a transcript holds times: .vtt and .srt do."""
    return PurePosixPath(name).suffix.lower() in TIMED_SUFFIXES


def clean_name(name: str) -> str:
    """A file's name as it is kept: composed letters (macOS sends them apart), forward slashes, no ``./``.

    Raises:
        ValueError: a name that nobody should have to handle, with the reason as a sentence.
    """
    if len(name) > _LONGEST_RAW_NAME:
        raise _name_too_long(name)
    written = name.strip()
    if without_surplus_marks(written) != written:
        raise ValueError(f"The file's name has more than {MOST_MARKS} combining marks in a row.")
    cleaned = normalized(written, "NFC").replace("\\", "/")
    while cleaned.startswith("./"):
        cleaned = cleaned[2:]
    if not cleaned:
        raise ValueError("The file has no name.")
    if len(cleaned) > LONGEST_NAME:
        raise _name_too_long(cleaned)
    if not cleaned.isprintable():
        raise ValueError("The file's name holds characters that cannot be shown.")
    if any(part in {"", ".", ".."} for part in cleaned.split("/")) or cleaned[1:2] == ":":
        raise ValueError("The file's name leads out of its folder.")
    if not PurePosixPath(cleaned).name.strip(". "):
        raise ValueError("The file has no name.")
    return cleaned


def _name_too_long(name: str) -> ValueError:
    return ValueError(f"The file's name has {len(name)} characters; at most {LONGEST_NAME} are possible.")
