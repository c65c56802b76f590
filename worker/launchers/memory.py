"""How much memory a tree of processes holds, and how often the kernel killed for memory. Standard library."""

import os
from collections.abc import Iterable, Iterator

from worker.launchers.processes import Process

_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_bytes(processes: Iterable[Process], limit: int) -> int:
    """Memory of these processes in bytes.

    The sum of resident sizes counts what forked processes share once for each: cheap, and never too small.
    Only when that sum passes ``limit`` (0: none) is the kernel asked for the exact, proportional sizes, which
    takes longer.
    """
    processes = list(processes)
    resident = sum(process.resident_pages for process in processes) * _PAGE
    if not 0 < limit < resident:
        return resident
    return sum(_proportional_bytes(process) for process in processes)


def _proportional_bytes(process: Process) -> int:
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:  # noqa: PTH123 - as in processes
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return process.resident_pages * _PAGE


def oom_kills() -> int:
    """How often the kernel has killed for memory in our control group, else on the host; -1 if unreadable.

    The host's counter also moves for strangers: it is asked only when the group's cannot be read.
    """
    for path in (*_group_counters(), "/proc/vmstat"):
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - as in processes
                for line in file:
                    name, _, value = line.partition(b" ")
                    if name == b"oom_kill":
                        return int(value)
        except OSError:
            continue
    return -1


def _group_counters() -> Iterator[str]:
    try:
        with open("/proc/self/cgroup") as file:  # noqa: PTH123 - as in processes
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield f"/sys/fs/cgroup{path}/memory.events"
        elif "memory" in controllers.split(","):
            yield f"/sys/fs/cgroup/memory{path}/memory.oom_control"
