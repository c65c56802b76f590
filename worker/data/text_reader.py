"""Reads strangers' texts in a child process with limits, so that no text stops the process that renews leases.

One file at a time. A file that takes too much time or memory, or ends the child, gets a `TextError` of its own; the
next file gets a new child.
"""

import asyncio
import base64
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, Self, TypeVar
from weakref import WeakValueDictionary

import structlog
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

import worker
from worker.confinement import decoder_filter, means
from worker.data.manifest_lines import LONGEST_PATH, LONGEST_SPEAKER
from worker.data.text_child import DATA, END, HEADER, MEMORY_EXIT, REQUEST, VALUES
from worker.data.text_tasks import MOST_NAMES
from worker.data.transcripts import MOST_CUES, TextError
from worker.domain.data import LONGEST_NAME

_ROOT: Final = str(Path(worker.__file__).parent.parent)
# -I -S: neither site nor environment nor working directory; the standard library and our own folder only
_PROGRAM: Final = (
    sys.executable,
    "-IS",
    "-c",
    f"import sys; sys.path.insert(0, {_ROOT!r}); from worker.data.text_child import main; main()",
)
_PASSED: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
"""All of our environment that the child sees: no credential."""
_TOO_MUCH: Final = "Is it really a text of speech? Export it again, or cut it into smaller files."
_OUR_ERROR: Final = "The file could not be read because of an error of ours, which is logged for the operator."
_KILLED: Final = "the child that reads customers' texts was killed from outside, perhaps for the host's memory"
_CHUNK_BYTES: Final = 64 << 10
_MOST_VALUES: Final = 2 * max(MOST_CUES, MOST_NAMES)
"""Of one file, in memory: no task gives so many."""
_LONGEST_FRAME: Final = 4 << 20
"""One value may be a text of a whole segment; a child that sends more has lost its way."""
_log = structlog.get_logger(__name__)

_Text = Annotated[str, Field(max_length=1 << 20)]
_Sentence = Annotated[str, Field(max_length=10_000)]
_Milliseconds = Annotated[int, Field(ge=0, le=10**12)]
_Seconds = Annotated[float, Field(ge=0, le=1e6)]
_Speaker = Annotated[str, Field(max_length=LONGEST_SPEAKER)]


class Fault(NamedTuple):
    """One place of a text that cannot be used."""

    line: Annotated[int, Field(ge=1)]
    code: Annotated[str, Field(max_length=100)]
    sentence: _Sentence


class Segment(NamedTuple):
    """Words of a transcript, and when they are said; None where it does not say."""

    start_ms: _Milliseconds | None
    end_ms: _Milliseconds | None
    text: _Text
    speaker: _Speaker | None


class SegmentOrFault(NamedTuple):
    """One result of the task ``transcript``: exactly one of the two."""

    segment: Segment | None
    fault: Fault | None


class Line(NamedTuple):
    """What a manifest's line says."""

    audio_filepath: Annotated[str, Field(max_length=LONGEST_PATH)]
    text: _Text
    offset_s: _Seconds | None
    duration_s: _Seconds | None
    speaker: _Speaker | None
    split: Literal["train", "dev", "test"] | None


class LineOrFault(NamedTuple):
    """One result of the task ``manifest``: exactly one of the first two."""

    line: Line | None
    fault: Fault | None
    number: Annotated[int, Field(ge=1)]
    """Of the line, counted from 1."""


Value = TypeVar("Value")


@dataclass(frozen=True)
class Task(Generic[Value]):
    """A task of ``worker.data.text_tasks``, and the type of its values."""

    name: str
    values: TypeAdapter[list[Value]]


TRANSCRIPT: Final = Task("transcript", TypeAdapter(list[SegmentOrFault]))
MANIFEST: Final = Task("manifest", TypeAdapter(list[LineOrFault]))
CHECK_TRANSCRIPT: Final[Task[Any]] = Task("check_transcript", TypeAdapter(list[Any]))
AUDIO_NAMES: Final = Task("audio_names", TypeAdapter(list[Annotated[str, Field(max_length=LONGEST_NAME)]]))


@dataclass(frozen=True)
class ReadingLimits:
    """What one file may cost. Honest files take a twentieth of it."""

    memory_bytes: int = 256 << 20
    """Of the child's address space, of which it has 20 MB before it reads anything."""
    cpu_s: float = 2.0
    """Processor time for any file, in seconds."""
    cpu_s_per_mib: float = 4.0
    """And for each MiB of it."""
    silence_factor: float = 10.0
    """A child hangs that neither takes nor gives a byte for so many times its processor time and half a minute."""

    def seconds(self, size: int) -> float:
        """Processor time for a file of this size in bytes."""
        return self.cpu_s + self.cpu_s_per_mib * size / (1 << 20)

    def silence_s(self, size: int) -> float:
        """Seconds of the wall's clock that a child may be silent for, with a file of this size in bytes."""
        return 30.0 + self.silence_factor * self.seconds(size)


class _End(BaseModel):
    """How the child's reading of a file ended: well, with a verdict on the file, or with an error of ours."""

    code: str | None = Field(default=None, max_length=100)
    sentence: str = Field(default="", max_length=10_000)
    failed: str | None = Field(default=None, max_length=1_000)
    """The kind of the error, and where it was raised. The child ends after this."""


@cache
def _filter() -> str:
    """The child's seccomp filter in base64; empty where this host has none."""
    return base64.b64encode(decoder_filter(means())).decode()


class _ChildLost(Exception):  # noqa: N818 - a state of the world
    """It ended, hangs or sends nonsense; the text says which."""


class _Child:
    """The process, and frames to and from it."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, memory_bytes: int) -> Self:
        """A new one.

        Raises:
            OSError: the host has no process, descriptor or memory left for it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program; starting it takes a millisecond
                    [*_PROGRAM, str(os.getpid()), str(memory_bytes), _filter()],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _PASSED if name in os.environ},
                    cwd="/",
                    start_new_session=True,  # a terminal's Ctrl-C is for us, who decide
                )
        except BaseException:
            ours.close()
            raise
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return cls(process, reader, writer)

    def give(self, *frames: tuple[bytes, bytes]) -> None:
        """Give it frames, without waiting."""
        self._writer.write(b"".join(HEADER.pack(kind, len(body)) + body for kind, body in frames))

    async def taken(self, silence_s: float) -> None:
        """Until it has taken most of what it was given.

        Raises:
            _ChildLost: it has ended, or takes nothing for `silence_s` seconds.
        """
        try:
            async with asyncio.timeout(silence_s):
                await self._writer.drain()
        except (ConnectionError, TimeoutError) as error:
            raise _ChildLost("silent" if isinstance(error, TimeoutError) else "ended") from None

    async def frame(self) -> tuple[bytes, bytes]:
        """Its next frame.

        Raises:
            _ChildLost: it has ended, or sends too much at once.
        """
        try:
            kind, length = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if length > _LONGEST_FRAME:
                raise _ChildLost("nonsense")
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise _ChildLost("ended") from None

    def waits(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def stop(self) -> int:
        """End it, if it has not ended by itself; its exit code."""
        self._writer.close()
        self._process.kill()
        return self._process.wait()  # a moment: it has ended, or was killed


class TextReader:
    """One child process, started when the first file comes and again after one that was too much for it.

    Args:
        limits: what one file may cost.
    """

    def __init__(self, limits: ReadingLimits | None = None) -> None:
        self._limits = limits or ReadingLimits()
        self._child: _Child | None = None
        self._turn = asyncio.Lock()

    async def read(
        self,
        task: Task[Value],
        size: int,
        chunks: AsyncIterable[bytes] | bytes,
        *,
        reason_code: str,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[list[Value], None]:
        """The values of a task, in batches that are small enough to compute on. One file at a time; others wait.

        Callers that may stop early wrap it in ``contextlib.aclosing``.

        Args:
            task: what to do.
            size: bytes of the file, which decide how long it may take.
            chunks: the file, or its bytes. What the chunks raise is raised here.
            reason_code: for a file that is too much for the child.
            options: of the task.

        Raises:
            TextError: the file cannot be used.
            OSError: the host has no process left for the child, or killed it: the file is not to blame.
        """
        request = {"task": task.name, "cpu_s": self._limits.seconds(size), "options": dict(options or {})}
        silence_s = self._limits.silence_s(size)
        async with self._turn:
            child = self._child = await self._ready()
            sending = _send(child, request, chunks, silence_s)
            end: _End | None = None
            try:
                while end is None:
                    got = await _next(child, task, sending, silence_s)
                    if isinstance(got, _End):
                        end = got
                    else:
                        yield got
            except _ChildLost as error:
                exit_code = child.stop()
                if exit_code == -signal.SIGKILL and str(error) == "ended":
                    raise ChildProcessError(errno.ECHILD, _KILLED) from None
                raise TextError(reason_code, self._why_lost(task.name, str(error), exit_code, size)) from None
            finally:
                if end is None or end.failed is not None:  # it is in the middle of something, or does not work
                    self._child = None
                    child.stop()
                if sending is not None:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        if end.failed is not None:
            _log.error("reading a customer's text failed", task=task.name, bytes=size, error=end.failed)
            raise TextError(reason_code, _OUR_ERROR)
        if end.code is not None:
            raise TextError(end.code, end.sentence)

    async def _ready(self) -> _Child:
        """The child that waits for a file, or a new one where the host ended it meanwhile: no file is to blame."""
        if self._child is not None and not self._child.waits():
            self._child.stop()
            self._child = None
        return self._child or await _Child.start(self._limits.memory_bytes)

    async def all_of(
        self,
        task: Task[Value],
        size: int,
        chunks: AsyncIterable[bytes] | bytes,
        *,
        reason_code: str,
        options: Mapping[str, Any] | None = None,
    ) -> list[Value]:
        """Every value of `read`, as a list."""
        values: list[Value] = []
        async with aclosing(self.read(task, size, chunks, reason_code=reason_code, options=options)) as batches:
            async for batch in batches:
                values += batch
                if len(values) > _MOST_VALUES:
                    _log.error("the child that reads customers' texts sends without an end", task=task.name)
                    raise TextError(reason_code, _OUR_ERROR)
        return values

    def _why_lost(self, task: str, how: str, exit_code: int, size: int) -> str:
        """The sentence for a file's owner; the operator's goes to the log."""
        if exit_code == -signal.SIGXCPU:
            seconds = self._limits.seconds(size)
            why = f"Reading the file takes more than {seconds:.0f} s of processor time. {_TOO_MUCH}"
        elif exit_code == MEMORY_EXIT:
            why = f"Reading the file takes more than {self._limits.memory_bytes >> 20} MB of memory. {_TOO_MUCH}"
        else:
            _log.error("the child that reads customers' texts was lost", task=task, bytes=size, how=how, code=exit_code)
            return _OUR_ERROR
        _log.warning("a customer's text was too much to read", task=task, bytes=size, why=why)
        return why

    async def close(self) -> None:
        """End the child."""
        async with self._turn:
            if self._child is not None:
                self._child.stop()
                self._child = None


def _send(
    child: _Child, request: dict[str, Any], chunks: AsyncIterable[bytes] | bytes, silence_s: float
) -> asyncio.Future[None] | None:
    """Give the child a request and its file; what is still being sent, where that takes a while."""
    asked = (REQUEST, json.dumps(request).encode())
    if isinstance(chunks, bytes) and len(chunks) <= _CHUNK_BYTES:  # most transcripts: no task for these
        child.give(asked, (DATA, chunks), (END, b""))
        return None
    child.give(asked)
    return asyncio.ensure_future(_send_file(child, chunks, silence_s))


async def _send_file(child: _Child, chunks: AsyncIterable[bytes] | bytes, silence_s: float) -> None:
    """A child that takes nothing for too long is lost; a slow source is not its fault."""
    async for chunk in _only(chunks) if isinstance(chunks, bytes) else chunks:
        for start in range(0, len(chunk), _CHUNK_BYTES):
            child.give((DATA, chunk[start : start + _CHUNK_BYTES]))
            await child.taken(silence_s)
    child.give((END, b""))
    await child.taken(silence_s)


async def _only(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _next(
    child: _Child, task: Task[Value], sending: asyncio.Future[None] | None, silence_s: float
) -> list[Value] | _End:
    """The next batch of values, checked, or the end.

    Raises:
        _ChildLost: neither came.
    """
    try:
        if sending is None or sending.done():
            if sending is not None:
                sending.result()  # what went wrong with the file after the last values
            async with asyncio.timeout(silence_s):
                kind, body = await child.frame()
        else:
            kind, body = await _frame_while(sending, child, silence_s)
        return task.values.validate_json(body) if kind == VALUES else _End.model_validate_json(body)
    except TimeoutError:
        raise _ChildLost("silent") from None
    except ValidationError:
        raise _ChildLost("nonsense") from None


async def _frame_while(sending: asyncio.Future[None], child: _Child, silence_s: float) -> tuple[bytes, bytes]:
    """The next frame, which may be long in coming while the file still is; what went wrong with the file is raised."""
    frame = asyncio.ensure_future(child.frame())
    try:
        both: tuple[asyncio.Future[Any], ...] = (frame, sending)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not frame.done():
            sending.result()
        async with asyncio.timeout(silence_s):
            return await frame
    finally:
        frame.cancel()


class TextReaders:
    """Some readers for many organizations, of which each gets one at a time.

    So one organization's slow files leave the others a reader, and among those that wait each has one place.

    Args:
        size: child processes; at least two.
        limits: what one file may cost.
    """

    def __init__(self, size: int = 2, limits: ReadingLimits | None = None) -> None:
        self._free = [TextReader(limits) for _ in range(size)]
        self._all = tuple(self._free)
        self._room = asyncio.Semaphore(size)
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, organization_id: int) -> AsyncIterator[TextReader]:
        """A reader for one file.

        Args:
            organization_id: whose file it is.
        """
        lock = self._turns.setdefault(organization_id, asyncio.Lock())
        async with lock, self._room:
            reader = self._free.pop()
            try:
                yield reader
            finally:
                self._free.append(reader)

    async def close(self) -> None:
        """End every child."""
        for reader in self._all:
            await reader.close()
