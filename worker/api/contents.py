"""What a file of training data is, told from its name and a look inside: the verdict at the door.

Texts are read in a child process: whatever they hold, the process that answers everybody goes on.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.api.audio_header import NotAudio, duration_s
from worker.data.text_reader import AUDIO_NAMES, CHECK_TRANSCRIPT, TextReaders
from worker.data.text_tasks import MOST_NAMES
from worker.data.transcripts import TextError
from worker.domain.data import (
    AUDIO_SUFFIXES,
    MANIFEST_SUFFIXES,
    TRANSCRIPT_SUFFIXES,
    Kind,
    clean_name,
    is_timed,
    kind_of,
    largest_transcript_bytes,
)

_SUFFIXES: Final = (*AUDIO_SUFFIXES, *TRANSCRIPT_SUFFIXES, *MANIFEST_SUFFIXES)

LARGEST_MANIFEST_BYTES: Final = 16 << 20
_PIECE: Final = 256 << 10


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


def check_size(name: str, size: int, largest_bytes: int) -> None:
    """How large a file may be, which depends on its kind.

    Args:
        name: as its owner calls it, with a known suffix.
        size: bytes that it has, or has so far.
        largest_bytes: of any file.

    Raises:
        RefusedContent: it is larger.
    """
    kind = checked_kind(name)
    if kind != "audio":
        most = LARGEST_MANIFEST_BYTES if kind == "manifest" else largest_transcript_bytes(name)
        if size > most:
            raise RefusedContent("too_large", f"A {Path(name).suffix.lower()} file has at most {most >> 20} MiB.")
    if size > largest_bytes:
        raise RefusedContent("too_large", f"A file has at most {largest_bytes} bytes.")


async def look_inside(
    path: Path, name: str, longest_audio_s: float, readers: TextReaders, organization_id: int
) -> Content:
    """What the file holds, by bounded reads.

    Args:
        path: where it lies.
        name: what its owner calls it.
        longest_audio_s: seconds that a recording may last.
        readers: of texts.
        organization_id: whose file it is; an organization has one text read at a time.

    Raises:
        RefusedContent: it is not what its name says, is empty, too long, or too much to read.
        OSError: the host has no process left to read it in.
    """
    kind = checked_kind(name)
    if kind == "audio":
        return Content(duration_s=await asyncio.to_thread(_audio_s, path, longest_audio_s))
    size = (await asyncio.to_thread(path.stat)).st_size
    check_size(name, size, size)
    try:
        async with readers.turn(organization_id) as reader:
            if kind == "manifest":
                names = await reader.all_of(AUDIO_NAMES, size, _pieces(path), reason_code="unreadable_manifest")
                return Content(audio_names=tuple(names))
            code, options = "unreadable_transcript", {"timed": is_timed(name)}
            await reader.all_of(CHECK_TRANSCRIPT, size, _pieces(path), reason_code=code, options=options)
            return Content()
    except TextError as error:
        raise RefusedContent(error.code, error.sentence) from None


def _audio_s(path: Path, longest_s: float) -> float:
    try:
        seconds = duration_s(path)
    except NotAudio as error:
        raise RefusedContent("unreadable_audio", str(error)) from error
    if seconds > longest_s:
        raise RefusedContent(
            "too_long", f"The recording says it lasts {seconds / 3600:.1f} h; at most {longest_s / 3600:g} h."
        )
    return round(seconds, 3)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


def check_names(names: int) -> None:
    """Names that the manifests of one request hold together: they are in memory until they are stored.

    Raises:
        RefusedContent: too many.
    """
    if names > MOST_NAMES:
        raise RefusedContent("too_large", f"Manifests sent together name at most {MOST_NAMES} recordings.")
