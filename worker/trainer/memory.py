"""How much memory a step has needed."""

import contextlib
import resource
import sys
from pathlib import Path


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
