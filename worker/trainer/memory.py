"""How much memory a step has needed, and what it does with what it frees."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from typing import Final

_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
_MMAP_THRESHOLD: Final = -3
_KEPT: Final = 512 * 2**20
_LARGEST_FROM_THE_HEAP: Final = 32 * 2**20  # glibc takes no more


def peak_memory_bytes() -> int:
    """The most resident memory this process has had.

    Linux counts in `ru_maxrss` what the process was before it became this program: `VmHWM` starts with the program.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Keep up to half a gigabyte of what is freed instead of giving it back to the system, to be asked for again.

    A step makes and drops arrays of the same few sizes all the time. Taking each from the system anew (a page fault
    for every 4 KiB, zeroed) took a third of the processor time of decoding a long recording. Nothing happens where
    the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_THE_HEAP)
