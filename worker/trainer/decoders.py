"""Recordings opened in other processes, so that a fault of a decoder reaches nothing: see ``decoder.py``."""

import atexit
import fcntl
import json
import math
import mmap
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

import worker
from schemas.failures import FailureClass
from schemas.steps import ATTEMPT_MARK
from worker.trainer.audio import Recording, Samples, UnreadableAudioError
from worker.trainer.decoder import MEMORY_BYTES, MOST_READ_S
from worker.trainer.failures import StepFailureError

_PROGRAM = "worker.trainer.decoder"
_SOURCE: Final = str(Path(worker.__file__).parent.parent)
_ANSWER_S: Final = 300.0
"""Of waiting for one answer. The processor's time is limited in the decoder; this is for one that sleeps."""
_ANSWER_S_PER_MB: Final = 4.0
_LOOK_S: Final = 1.0
_START_S: Final = 120.0
_RECORDINGS_EACH: Final = 2_000
"""After so many a decoder makes room for a new one."""
_MOST_ANSWER: Final = 4_096
_MOST_WORDS: Final = 200
_PASSED: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", ATTEMPT_MARK)
_Answer = TypeVar("_Answer")
_ENDED: Final = "it makes the decoder fail"


class _DecoderLostError(Exception):
    """It ended, said nothing for too long, or what it said makes no sense."""


class _Decoder:
    """One process and its two wires."""

    def __init__(self) -> None:
        self.uses = 0
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("samples", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._complaints = os.memfd_create("complaints", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, MEMORY_BYTES)
            # a decoder that could make it smaller would end this process at its next look
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._shared = mmap.mmap(memory, MEMORY_BYTES, prot=mmap.PROT_READ)
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", _PROGRAM, str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                pass_fds=(theirs.fileno(), memory),
                env=_environment(),
                cwd="/",
                start_new_session=True,  # a SIGTERM for the step's group is the step's to answer
            )
        finally:
            theirs.close()
            os.close(memory)
        self._samples = np.frombuffer(self._shared, np.int16)

    def wait_until_ready(self) -> None:
        """Return when it can be asked.

        Raises:
            StepFailureError: it does not start. That is no recording's fault.
        """
        try:
            self._answer(_START_S)
        except _DecoderLostError as error:
            self.end()
            said = os.pread(self._complaints, 2_000, max(0, os.fstat(self._complaints).st_size - 2_000))
            raise StepFailureError(
                FailureClass.INFRASTRUCTURE,
                "decoder_unavailable",
                "Recordings could not be read: a program of ours did not start.",
                said.decode(errors="replace"),
            ) from error

    def ask(self, question: dict[str, Any], size: int, descriptor: int | None = None) -> dict[str, Any]:
        """One answer.

        Args:
            question: see ``decoder.py``.
            size: of the recording in bytes, which decides how long it may take.
            descriptor: the recording, open.

        Raises:
            UnreadableAudioError: the recording cannot be decoded.
            OSError: its disk fails.
            _DecoderLostError: see there.
        """
        try:
            socket.send_fds(self._socket, [json.dumps(question).encode()], [] if descriptor is None else [descriptor])
        except OSError as error:
            raise _DecoderLostError from error
        answer = self._answer(_ANSWER_S + _ANSWER_S_PER_MB * (size >> 20))
        if isinstance(words := answer.get("unreadable"), str):
            raise UnreadableAudioError("".join(filter(str.isprintable, words))[:_MOST_WORDS])
        if isinstance(number := answer.get("errno"), int):
            raise OSError(number, os.strerror(number))
        return answer

    def samples(self, number: Any) -> Samples:
        """What it left in the shared memory, as our own copy.

        Raises:
            _DecoderLostError: it left no such number.
        """
        if not isinstance(number, int) or not 0 <= number <= len(self._samples):
            raise _DecoderLostError
        return self._samples[:number].copy()

    def _answer(self, patience_s: float) -> dict[str, Any]:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        left_s = patience_s
        while True:
            looked = time.monotonic()
            if poller.poll(_LOOK_S * 1_000):
                break
            # a step that stood still has not waited: one look counts for little more than it should take
            left_s -= min(time.monotonic() - looked, 2 * _LOOK_S)
            if left_s <= 0:
                raise _DecoderLostError
        try:
            answer = json.loads(self._socket.recv(_MOST_ANSWER))
        except (OSError, ValueError, RecursionError) as error:  # nothing at all: it is gone
            raise _DecoderLostError from error
        if not isinstance(answer, dict):
            raise _DecoderLostError
        return answer

    def end(self) -> None:
        """Make sure that it is gone."""
        self._socket.close()
        with suppress(OSError):
            self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    # one thread each: there is one decoder for each processor, and it may start no threads once it works
    return environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, (_SOURCE, os.environ.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


class Decoders:
    """As many decoders as are used at once; each is started when it is first needed."""

    def __init__(self) -> None:
        self._free: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        self._all: set[_Decoder] = set()
        self._lock = threading.Lock()
        self._owner = os.getpid()

    @contextmanager
    def opened(self, path: Path, first: tuple[float, float] | None = None) -> Iterator[Recording]:
        """Open a recording for reading piece by piece; ``audio.opened``, in another process.

        Args:
            path: the file.
            first: offset and duration of what will be read first, in seconds: brought along, it saves a question.

        Raises:
            FileNotFoundError: there is none.
            UnreadableAudioError: it cannot be decoded, or a decoder ended of it, twice.
            StepFailureError: no decoder starts.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        recording = _Recording(self, descriptor, first)
        try:
            recording.open()
            yield recording
        finally:
            recording.close()
            os.close(descriptor)

    def take(self) -> _Decoder:
        """A decoder that nobody else uses, for as long as it is not given back."""
        try:
            decoder = self._free.get_nowait()
        except queue.Empty:
            decoder = self._started()
        if decoder.uses == 0:
            decoder.wait_until_ready()
        decoder.uses += 1
        return decoder

    def start(self, count: int) -> None:
        """Have so many of them; returns before they are ready."""
        while len(self._all) < count:
            self._free.put(self._started())

    def _started(self) -> _Decoder:
        decoder = _Decoder()
        with self._lock:
            self._all.add(decoder)
        return decoder

    def give_back(self, decoder: _Decoder) -> None:
        """Let others use it, or end it when it has done enough."""
        if decoder.uses >= _RECORDINGS_EACH:
            self.drop(decoder)
        else:
            self._free.put(decoder)

    def drop(self, decoder: _Decoder) -> None:
        """End it."""
        decoder.end()
        with self._lock:
            self._all.discard(decoder)

    def close(self) -> None:
        """End them all; in a fork that has them from its parent, leave them alone."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            decoders, self._all = self._all, set()
        for decoder in decoders:
            decoder.end()


class _Recording:
    """An open recording; see ``audio.Recording``."""

    def __init__(self, decoders: Decoders, descriptor: int, first: tuple[float, float] | None) -> None:
        self.duration_s = 0.0
        self._decoders, self._descriptor, self._first = decoders, descriptor, first
        self._size = os.fstat(descriptor).st_size
        self._decoder: _Decoder | None = None
        self._brought: Samples | None = None
        self._lost = False

    def open(self) -> None:
        """Find out what it is."""
        self._twice(lambda _: None)

    def read(self, offset_s: float, duration_s: float) -> Samples:
        """16 kHz mono samples; see `audio.Recording`. At most ``decoder.MOST_READ_S`` at once."""
        if duration_s > MOST_READ_S:
            raise ValueError(f"{duration_s} s at once")
        brought, self._brought = self._brought, None
        if brought is not None and self._first == (offset_s, duration_s):
            return brought

        def read(decoder: _Decoder) -> Samples:
            return decoder.samples(decoder.ask({"read": [offset_s, duration_s]}, self._size).get("samples"))

        return self._twice(read)

    def _twice(self, do: Callable[[_Decoder], _Answer]) -> _Answer:
        """Do it with a decoder that has the recording open; once more with a new one, for anything may end one."""
        while True:
            try:
                decoder = self._decoder or self._opened()
                return do(decoder)
            except _DecoderLostError as error:
                if self._decoder is not None:
                    self._decoders.drop(self._decoder)
                    self._decoder = None
                if self._lost:
                    raise UnreadableAudioError(_ENDED) from error
                self._lost = True

    def _opened(self) -> _Decoder:
        self._decoder = decoder = self._decoders.take()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        answer = decoder.ask({"open": self._size, "read": self._first}, self._size, self._descriptor)
        duration_s = answer.get("duration_s")
        if not isinstance(duration_s, int | float) or not math.isfinite(duration_s):
            raise _DecoderLostError
        self.duration_s = float(duration_s)
        self._brought = decoder.samples(answer["samples"]) if "samples" in answer else None
        return decoder

    def close(self) -> None:
        """Let go of the decoder."""
        if self._decoder is not None:
            self._decoders.give_back(self._decoder)
            self._decoder = None


DECODERS: Final = Decoders()
"""Of this process; started by the first recording, and gone with it."""
atexit.register(DECODERS.close)
