"""Uploads as they arrive: multipart parsed piece by piece, files on disk and never whole in memory.

Every limit is checked on the way. Whatever happens, nothing stays behind.
"""

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from worker.api.api import Api
from worker.api.bodies import chunks
from worker.api.contents import (
    Content,
    RefusedContent,
    check_names,
    check_size,
    checked_kind,
    checked_name,
    look_inside,
)
from worker.api.limits import Limits, Room, room_for
from worker.api.problems import Refused, invalid
from worker.api.quotas import too_much
from worker.api.settings import ApiSettings
from worker.data.text_reader import TextReaders
from worker.storage.disk import writing_errors

# The parser would log a line for every malformed body; its sender is told, and nobody else has use for it.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_log = structlog.get_logger("api")
_LONGEST_FIELD: Final = 100
_LONGEST_CONTENT_TYPE: Final = 1_000
"""Characters. Each semicolon of tens of thousands would be taken for a parameter."""
_FRAMING_BYTES: Final = 1 << 20
"""Of a multipart body, what may be no file's."""
_FURTHER_FIELDS: Final = 20
_PIECE_BYTES: Final = 4096
_HELD_BYTES: Final = 4096
_AT_A_TIME_S: Final = 0.002
"""Of the event loop's time, before somebody else has a turn."""
_SPLITS: Final = ("train", "dev", "test")
Buffer = bytes  # a name of its own where a field is called bytes


@dataclass
class Arrived:
    """A file that lies in the spool folder, or will: `look_at` writes what is held."""

    name: str
    path: Path
    split: str | None
    bytes: int = 0
    sha256: str = ""
    content: Content = field(default_factory=Content)
    held: Buffer | None = None
    """All of a small file, not written yet: making a file takes longer than all else that is done for it here."""


@dataclass(frozen=True)
class Turned:
    """A file that was not taken."""

    name: str
    code: str
    reason: str


@dataclass
class Incoming:
    """Everything one request brought."""

    arrived: list[Arrived] = field(default_factory=list)
    turned: list[Turned] = field(default_factory=list)

    def refuse_if_nothing(self) -> None:
        """Raise where not one file can be kept.

        Raises:
            Refused: with the first file's code, and every file named.
        """
        if self.arrived:
            return
        if not self.turned:
            raise Refused("no_files", "Send one or more files as multipart/form-data.")
        first = self.turned[0]
        faults = [(turned.name, turned.code, turned.reason) for turned in self.turned]
        raise Refused(first.code, first.reason, errors=faults)

    def digest(self) -> bytes:
        """What was sent, for comparing with a repeat."""
        lines = [f"{file.sha256} {file.split} {file.name}" for file in self.arrived]
        lines += [f"{turned.code} {turned.name}" for turned in self.turned]
        return "\n".join(lines).encode("utf-8", "surrogateescape")


class _Spool:
    """The parser's callbacks: one part after another, into files."""

    def __init__(self, folder: Path, settings: ApiSettings, into: Incoming) -> None:
        self._folder = folder
        self._settings = settings
        self._into = into
        self._headers: dict[bytes, bytes] = {}
        self._names: set[str] = set()
        """Of the files that arrived."""
        self._parts = 0
        self._name = b""
        self._value = b""
        self._file: BinaryIO | None = None
        self._held = bytearray()
        self._digest = hashlib.sha256()
        self._arriving: Arrived | None = None
        self._field: str | None = None
        self._field_value = b""
        self._split: str | None = None
        self.ended = False

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._all_ends,
        }

    def _part_begins(self) -> None:
        self._parts += 1
        # Each file may have a field "split" of its own before it, and a form some more.
        if self._parts > 2 * self._settings.api_most_files + _FURTHER_FIELDS:
            raise Refused("too_many_files", "The form has too many parts.")
        self._headers = {}
        self._arriving = self._field = None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data":
            raise Refused("malformed_multipart", "A part has no Content-Disposition of form-data.")
        if b"filename" in options:
            self._begin_file(options[b"filename"])
        else:
            self._field = options.get(b"name", b"").decode("utf-8", "replace")
            self._field_value = b""

    def _begin_file(self, raw: bytes) -> None:
        files = len(self._into.arrived) + len(self._into.turned)
        if files >= self._settings.api_most_files:
            raise Refused("too_many_files", f"One request brings at most {self._settings.api_most_files} files.")
        shown = raw.decode("utf-8", "replace")[:200]
        try:
            name = checked_name(raw.decode("utf-8"))
            checked_kind(name)
        except UnicodeDecodeError:
            self._into.turned.append(Turned(shown, "bad_file_name", "The file name is not UTF-8."))
        except RefusedContent as refused:
            self._into.turned.append(Turned(shown, refused.code, refused.reason))
        else:
            if name in self._names:
                self._into.turned.append(Turned(name, "bad_file_name", "Two files of this upload have this name."))
                return
            self._names.add(name)
            self._arriving = Arrived(name, self._folder / str(files), self._split)
            self._held.clear()
            self._digest = hashlib.sha256()

    def _data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._arriving is not None:
            self._arriving.bytes += len(piece)
            try:
                check_size(self._arriving.name, self._arriving.bytes, self._settings.api_largest_file_bytes)
            except RefusedContent as refused:
                self._drop(refused.code, refused.reason)
                return
            self._digest.update(piece)
            self._keep(piece, self._arriving.path)
        elif self._field is not None:
            self._field_value += piece
            if len(self._field_value) > _LONGEST_FIELD:
                raise invalid(self._field[:50], "too_long", "A form field that is no file is short.")

    def _keep(self, piece: bytes, path: Path) -> None:
        if self._file is None and len(self._held) + len(piece) <= _HELD_BYTES:
            self._held += piece
            return
        if self._file is None:
            self._file = path.open("xb")
            self._file.write(self._held)
            self._held.clear()
        self._file.write(piece)

    def _drop(self, code: str, reason: str) -> None:
        assert self._arriving is not None
        self._into.turned.append(Turned(self._arriving.name, code, reason))
        self._names.discard(self._arriving.name)
        self.close()
        self._arriving.path.unlink(missing_ok=True)
        self._arriving = None

    def _part_ends(self) -> None:
        if self._arriving is not None:
            if self._file is None:
                self._arriving.held = bytes(self._held)
            self.close()
            self._arriving.sha256 = self._digest.hexdigest()
            self._into.arrived.append(self._arriving)
        elif self._field == "split":
            self._split = checked_split(self._field_value.decode("utf-8", "replace"))
        self._arriving = self._field = None

    def _all_ends(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Close the file that is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None


def checked_split(text: str) -> str | None:
    """The side that the following files are marked for; empty: none.

    Raises:
        Refused: another word.
    """
    if text and text not in _SPLITS:
        raise invalid("split", "unknown", "split is one of: train, dev, test.")
    return text or None


def _boundary(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "")
    if len(content_type) > _LONGEST_CONTENT_TYPE:
        raise Refused("malformed_multipart", f"A Content-Type has at most {_LONGEST_CONTENT_TYPE} characters.")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise Refused("unsupported_media", "Send files as multipart/form-data.")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Refused("malformed_multipart", "The Content-Type names no boundary.")
    return boundary


@asynccontextmanager
async def spool_folder(settings: ApiSettings) -> AsyncIterator[Path]:
    """A folder that is gone afterwards."""
    with writing_errors():
        settings.api_upload_folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="upload-", dir=settings.api_upload_folder))
    try:
        yield folder
    finally:
        # In a thread: a thousand files would hold up everybody. Shielded: a cancelled request cleans up, too.
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


@asynccontextmanager
async def incoming(
    request: Request, api: Api, organization_id: int, quota_bytes: int | None
) -> AsyncIterator[Incoming]:
    """The files of a multipart request, spooled and looked into; gone when the block ends.

    Args:
        request: not read yet.
        api: with the limits of one request, and of everything that is under way.
        organization_id: who sends it.
        quota_bytes: what the organization may still store, where that counts here; its files are counted exactly
            before they are stored.

    Raises:
        Refused: not multipart, broken off, over a limit, too slow, no room, or not one file that can be kept.
    """
    boundary = _boundary(request)
    async with spool_folder(api.settings) as folder:
        with room_for(api.limits, organization_id, folder) as room:
            promised = request.headers.get("content-length", "0")
            if promised.isdigit():
                _check_size(int(promised), api.limits, quota_bytes)
                room.expect(int(promised))
            into = Incoming()
            spool = _Spool(folder, api.settings, into)
            try:
                await _feed(request, boundary, spool, room, api, quota_bytes)
            finally:
                spool.close()
            await look_at(into, api.settings, api.readers, organization_id)
            into.refuse_if_nothing()
            yield into


def upload_chunks(request: Request, settings: ApiSettings) -> AsyncIterator[bytes]:
    """The body of an upload, from a sender who is fast enough to hold a slot."""
    return chunks(request, settings.api_least_upload_bytes_per_s, settings.api_longest_upload_s)


async def _feed(  # noqa: PLR0913 - a request, where it goes, and what limits it
    request: Request, boundary: bytes, spool: _Spool, room: Room, api: Api, quota_bytes: int | None
) -> None:
    received = 0
    try:
        parser = MultipartParser(boundary, spool.callbacks())  # type: ignore[arg-type]  # a TypedDict of the same
        async for chunk in upload_chunks(request, api.settings):
            received += len(chunk)
            _check_size(received, api.limits, quota_bytes)
            room.take(len(chunk))
            await _parse(parser, chunk)
        with writing_errors():
            parser.finalize()
    except FormParserError:
        raise Refused("malformed_multipart", "The body is not multipart form data.") from None
    if not spool.ended:
        raise Refused("malformed_multipart", "The multipart body breaks off before its end.")


async def _parse(parser: MultipartParser, chunk: bytes) -> None:
    """Give the parser a chunk in pieces, and others a turn between them."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for start in range(0, len(chunk), _PIECE_BYTES):
        with writing_errors():
            parser.write(chunk[start : start + _PIECE_BYTES])
        if loop.time() - began > _AT_A_TIME_S:
            await asyncio.sleep(0)
            began = loop.time()


async def look_at(into: Incoming, settings: ApiSettings, readers: TextReaders, organization_id: int) -> None:
    """Look inside every file that arrived, and turn away what is not what it says.

    Raises:
        Refused: texts cannot be read at the moment.
    """
    longest_s = settings.api_longest_audio_s
    with writing_errors():
        await asyncio.to_thread(_write_held, into.arrived)
    kept = []
    names = 0
    for file in into.arrived:
        try:
            file.content = await look_inside(file.path, file.name, longest_s, readers, organization_id)
            check_names(names + len(file.content.audio_names))
        except OSError as error:
            _log.error("no process to read texts in", error=str(error))
            raise Refused("unavailable", "Files cannot be read at the moment.", headers={"Retry-After": "5"}) from error
        except RefusedContent as refused:
            file.content = Content()
            into.turned.append(Turned(file.name, refused.code, refused.reason))
        else:
            names += len(file.content.audio_names)
            kept.append(file)
    into.arrived = kept


def _write_held(files: Iterable[Arrived]) -> None:
    for file in files:
        if file.held is not None:
            file.path.write_bytes(file.held)
            file.held = None


def _check_size(size: int, limits: Limits, quota_bytes: int | None) -> None:
    if size > limits.largest_request_bytes:
        raise Refused("too_large", f"One request has at most {limits.largest_request_bytes} bytes.")
    if quota_bytes is not None and size > quota_bytes + _FRAMING_BYTES:
        raise too_much(quota_bytes)
