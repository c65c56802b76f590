"""The process that decodes strangers' recordings: no files, no network, no other programs, little memory.

    python -m worker.trainer.decoder <socket> <memory>      started by ``decoders.py`` only

It gets each recording as an open descriptor over a Unix socket and leaves samples in shared memory. Before the first
one it gives up everything else, for good: whoever takes it over through a fault of a decoder has a processor and
what was already in his own recording. It answers each question with one JSON object:

    {"open": bytes, "read": …} and a descriptor → {"duration_s": seconds, "samples": number}
    {"read": [offset_s, duration_s]} → {"samples": number}
    a recording that cannot be read  → {"unreadable": "why"};  a disk that fails → {"errno": number}
"""

import errno
import importlib
import io
import json
import math
import mmap
import os
import pkgutil
import resource
import socket
import sys
from contextlib import ExitStack, suppress
from typing import Any, Final

import numpy as np
import soundfile

from worker import confinement
from worker.hardening import allow_processor, confine, limit
from worker.trainer.audio import Recording, UnreadableAudioError, opened_descriptor, to_samples
from worker.trainer.memory import keep_freed_memory

MEMORY_BYTES: Final = 4 << 20
"""Of samples that are handed over at once: 131 s."""
MOST_READ_S: Final = 120.0
_MOST_MESSAGE: Final = 4_096
_DATA_BYTES: Final = 1 << 30
"""Most memory of its own; 60 s with 16 channels at 768 kHz take a third of it."""
_ADDRESS_BYTES: Final = 8 << 30
_PROCESSOR_S: Final = 60
_PROCESSOR_S_PER_MB: Final = 2
"""To find the end of a day of AAC (500 MB) one must decode the day."""
_LIFETIME_PROCESSOR_S: Final = 6 * 3_600
_DISK_FAILS: Final = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO)
_NOT_LOADED: Final = ("av.__main__", "av.datasets", "av.device")
"""Of PyAV: all else is loaded at the start, for it loads parts of itself when it meets a kind of stream."""


def main(arguments: list[str]) -> None:
    """Answer until the other end of the socket is closed."""
    asked = socket.socket(fileno=int(arguments[0]))
    shared = mmap.mmap(int(arguments[1]), MEMORY_BYTES)
    os.close(int(arguments[1]))
    keep_freed_memory()
    _warm_up()
    _give_up_everything()
    asked.send(json.dumps({"ready": os.getpid()}).encode())
    _Answers(asked, shared).run()


def _warm_up() -> None:
    """Load now what libraries load with their first file: afterwards nothing can be opened."""
    import av  # noqa: PLC0415 - where a recording is opened in process, FFmpeg is loaded for m4a and aac only

    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name not in _NOT_LOADED:
            with suppress(ImportError):  # what cannot be loaded here cannot be needed later
                importlib.import_module(module.name)
    importlib.import_module("worker.trainer.media")
    sound = np.zeros((1_600, 2), np.float32)
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")):
        file = io.BytesIO()
        soundfile.write(file, sound, 44_100, subtype, format=kind)
        file.seek(0)
        soundfile.read(file)
    to_samples(sound[:, 0], 44_100)


def _give_up_everything() -> None:
    """All limits and rules at once; what the kernel does not know is left out, and the launcher says so."""
    found = confinement.means()
    ruleset, program = confinement.ruleset_of(confinement.Rules(), found), confinement.decoder_filter(found)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),  # it would hold a customer's recording
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_DATA, _DATA_BYTES),
        (resource.RLIMIT_AS, _ADDRESS_BYTES),
        (resource.RLIMIT_CPU, _LIFETIME_PROCESSOR_S),
    ):
        limit(kind, most)
    confine(ruleset, program)
    if ruleset is not None:
        os.close(ruleset)


class _Answers:
    """One question after the other; at most one recording is open."""

    def __init__(self, asked: socket.socket, shared: mmap.mmap) -> None:
        self._socket = asked
        self._samples = np.frombuffer(shared, np.int16)
        self._open = ExitStack()
        self._recording: Recording | None = None

    def run(self) -> None:
        """Until nobody asks any more."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._socket, _MOST_MESSAGE, 1)
            if not message:
                return
            try:
                answer = self._answer(json.loads(message), descriptors)
            except UnreadableAudioError as error:
                answer = {"unreadable": str(error)}
            except MemoryError:
                answer = {"unreadable": "it needs more memory than any recording should"}
            except OSError as error:
                answer = {"errno": error.errno} if error.errno in _DISK_FAILS else {"unreadable": "it is damaged"}
            except (RuntimeError, ValueError):
                answer = {"unreadable": "it is damaged"}
            self._socket.send(json.dumps(answer).encode())

    def _answer(self, question: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        if "open" in question:
            self._open.close()
            self._allow(question["open"])
            descriptor = descriptors[0]
            self._open.callback(os.close, descriptor)
            self._recording = self._open.enter_context(opened_descriptor(descriptor))
            self._bytes = question["open"]
            duration_s = self._recording.duration_s
            told = {"duration_s": duration_s if math.isfinite(duration_s) and duration_s > 0 else 0.0}
            if question.get("read"):
                # what is wrong there belongs to whoever asks for it again, not to the whole recording
                with suppress(UnreadableAudioError, RuntimeError, ValueError, OSError, MemoryError):
                    return told | self._read(question["read"])
            return told
        self._allow(self._bytes)
        return self._read(question["read"])

    def _read(self, place: list[float]) -> dict[str, Any]:
        assert self._recording is not None, "asked to read before anything was opened"
        found = self._recording.read(*place)
        self._samples[: len(found)] = found
        return {"samples": len(found)}

    @staticmethod
    def _allow(size: int) -> None:
        """So much more time of the processor; then the kernel ends this process, which says enough of the file."""
        allow_processor(_PROCESSOR_S + _PROCESSOR_S_PER_MB * (size >> 20))


if __name__ == "__main__":
    main(sys.argv[1:])
