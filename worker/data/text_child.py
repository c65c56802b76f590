"""The child process that reads strangers' texts, one file at a time. Standard library only.

It limits itself before the first byte of a stranger arrives: memory, processor time for each file, no files, no
sockets, no children, no core file, and where the host has seccomp no system call but those that reading takes. A file
that is too much for it ends this process and nobody else's.

Requests come on standard input and results go to standard output, in frames: one byte that says what it is, four
bytes of length, the body::

    R {"task": …, "cpu_s": …, "options": {…}}   D bytes of the file, any number of times   E
    ◀── V [value, …] any number of times        ◀── E {} or {"code": …, "sentence": …} or {"failed": …}
"""

import base64
import codecs
import io
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from schemas.text import normalized
from worker.data.text_tasks import TASKS
from worker.data.transcripts import TextError
from worker.hardening import allow_processor, confine, end_with, go_first, limit, yield_processor

HEADER: Final = struct.Struct(">cI")
REQUEST, DATA, END, VALUES = b"R", b"D", b"E", b"V"
MEMORY_EXIT: Final = 3
"""The exit code of a child for which a file was too large in memory."""
_INPUT, _OUTPUT = 0, 1
_BUFFER_BYTES: Final = 64 << 10
_BATCH_LETTERS: Final = 16 << 10
"""Values are sent when they are this much together, so that the owner never computes on much at once."""
_NICENESS: Final = 5


def give_up_everything(owner: int, memory_bytes: int, program: bytes) -> None:
    """Give up what reading a text does not need.

    Args:
        owner: the process that started this one; this one ends with it.
        memory_bytes: of address space.
        program: a seccomp filter; empty where the host has none.
    """
    end_with(owner)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the owner decides, who is told to stop at the same time
    yield_processor(_NICENESS)
    go_first()
    _load_what_is_loaded_late()
    limit(resource.RLIMIT_AS, memory_bytes)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        limit(kind, 0)  # descriptors that are open stay open; no other can be opened
    confine(None, program)  # limits do not bind root, and keep nobody from removing files or from other processes


def _load_what_is_loaded_late() -> None:
    """Codecs and tables that Python would open files for, or build, at their first use."""
    for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "ascii"):
        codecs.lookup(name)
    normalized("\u00e9", "NFC")


class Serving:
    """Reads one file after another until the owner closes our input."""

    def __init__(self) -> None:
        self._input = io.BufferedReader(io.FileIO(_INPUT, closefd=False), _BUFFER_BYTES)
        self._output = bytearray()

    def run(self) -> None:
        """Until the end of our input."""
        while (frame := self._frame()) is not None:
            kind, body = frame
            if kind != REQUEST:
                os._exit(1)
            self._read_file(json.loads(body))

    def _read_file(self, request: dict[str, Any]) -> None:
        allow_processor(request["cpu_s"])
        chunks = self._chunks()
        try:
            self._send_values(TASKS[request["task"]](chunks, **request["options"]))
        except TextError as error:
            end = {"code": error.code, "sentence": error.sentence}
        except MemoryError:
            os._exit(MEMORY_EXIT)
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this file and no other
            end = {"failed": _where(error)}
        else:
            end = {}
        for _ in chunks:  # what the task did not want to see
            pass
        self._add(END, json.dumps(end).encode())
        self._flush()

    def _chunks(self) -> Iterator[bytes]:
        """The bytes of one file."""
        while (frame := self._frame()) is not None:
            kind, body = frame
            if kind == END:
                return
            yield body
        os._exit(0)  # the owner is gone, or does not want this file any more

    def _send_values(self, values: Iterator[Any]) -> None:
        batch: list[str] = []
        size = 0
        for value in values:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            batch.append(text)
            size += len(text)
            if size >= _BATCH_LETTERS:
                self._add(VALUES, f"[{','.join(batch)}]".encode())
                self._flush()
                batch, size = [], 0
        if batch:
            self._add(VALUES, f"[{','.join(batch)}]".encode())

    def _frame(self) -> tuple[bytes, bytes] | None:
        header = self._input.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        kind, length = HEADER.unpack(header)
        body = self._input.read(length)
        return None if len(body) < length else (kind, body)

    def _add(self, kind: bytes, body: bytes) -> None:
        self._output += HEADER.pack(kind, len(body)) + body

    def _flush(self) -> None:
        rest = memoryview(bytes(self._output))
        self._output.clear()
        while rest:
            rest = rest[os.write(_OUTPUT, rest) :]


def _where(error: BaseException) -> str:
    """What was raised and where; not what it says, which may quote the file."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")  # noqa: PTH119
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(places[-6:])}"[:500]


def main() -> None:
    """Arguments: the owner's process id, the bytes of memory that this process may have, a seccomp filter in base64."""
    give_up_everything(int(sys.argv[1]), int(sys.argv[2]), base64.b64decode(sys.argv[3]))
    with suppress(BrokenPipeError, ConnectionError):
        Serving().run()
