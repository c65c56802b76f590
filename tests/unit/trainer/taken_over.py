"""The decoder's own program, taken over by recordings whose first word says what they do to it."""

import ctypes
import os
import sys
import time
from contextlib import contextmanager

import numpy as np

from worker.trainer import decoder

decoder._PROCESSOR_S = 1
_honest = decoder.opened_descriptor


def _crash() -> None:
    ctypes.string_at(0)


def _burn() -> None:
    while True:
        pass


def _greed() -> None:
    np.ones(2 << 30, np.uint8)


def _lie(text: bytes) -> None:
    os.write(_socket, text)
    os._exit(0)


_socket = int(sys.argv[1])
_deeds = {
    b"CRASH": _crash,
    b"BURN.": _burn,
    b"SLEEP": lambda: time.sleep(1_000),
    b"GREED": _greed,
    b"LIES1": lambda: _lie(b'{"duration_s": 1.0, "samples": 99999999}'),
    b"LIES2": lambda: _lie(b"\xff not json"),
    b"LIES3": lambda: _lie(b"[" * 4_000),
    b"LIES4": lambda: _lie(b'{"duration_s": NaN}'),
    b"LIES5": lambda: _lie(b'{"duration_s": 1.0, "samples": -3}'),
    b"WORDS": lambda: _lie(b'{"unreadable": "\\u202eread \\u001b[31m' + b"x" * 3_000 + b'"}'),
}


@contextmanager
def _opened(descriptor):
    word = os.pread(descriptor, 5, 0)
    _deeds.get(word, lambda: None)()
    with _honest(descriptor) as recording:
        yield recording


decoder.opened_descriptor = _opened
decoder.main(sys.argv[1:])
