"""Find and end what belongs to an attempt on this host, without having started it."""

import os
import time
from collections.abc import Callable
from signal import SIGKILL
from typing import Final

import structlog

from worker.launchers.processes import Marked, Process, all_processes, marked_processes

_log = structlog.get_logger()

_SUPERVISOR_GRACE_S: Final = 3.0
"""A supervisor whose trainer is dead ends by itself, having ended what hides from us. Then it is killed."""
_LOOK_AGAIN_S: Final = 0.02
_EMPTY_LOOKS: Final = 2


def stop_attempts(run_id: str, below_attempt: int) -> None:
    """Return when no process of the run's attempts below this number lives on this host. Blocks."""
    stop_marked(lambda marked: marked.run_id == run_id and marked.attempt < below_attempt)


def stop_marked(belongs: Callable[[Marked], bool]) -> None:
    """End every marked process that belongs, and return when two looks find none. Blocks.

    Two, because a child that was born during a look is not in it, and its parent may have died of it.
    """
    patience_ends = time.monotonic() + _SUPERVISOR_GRACE_S
    told: set[int] = set()
    empty_looks = 0
    while empty_looks < _EMPTY_LOOKS:
        found = [marked for marked in marked_processes() if belongs(marked)]
        empty_looks = 0 if found else empty_looks + 1
        impatient = time.monotonic() >= patience_ends
        for marked in found:
            pid = marked.process.pid
            if pid not in told:
                told.add(pid)
                _log.info("stray_stopped", run_id=marked.run_id, attempt=marked.attempt, pid=pid)
            if not marked.supervises or impatient:  # it knows descendants that have taken off the mark
                marked.process.send(SIGKILL)
        if found:
            time.sleep(_LOOK_AGAIN_S)


def sweep_strays() -> int:
    """End every marked process that no supervisor watches any more; the number of them. Blocks.

    Such a process is left when worker and supervisor are killed in the same moment and it is not the trainer
    itself, which the kernel ends with its supervisor.
    """
    first = _unwatched()
    if not first:
        return 0
    time.sleep(5 * _LOOK_AGAIN_S)  # one look at /proc is no moment's picture: believe only what is seen twice
    seen = {(process.pid, process.started) for process in first}
    strays = [process for process in _unwatched() if (process.pid, process.started) in seen]
    for process in strays:
        process.send(SIGKILL)
    return len(strays)


def _unwatched() -> list[Process]:
    marked = list(marked_processes())
    supervisors = {found.process.pid for found in marked if found.supervises}
    processes = all_processes()
    return [
        found.process
        for found in marked
        if not found.supervises and _ends_unwatched(found.process, processes, supervisors)
    ]


def _ends_unwatched(process: Process, processes: dict[int, Process], supervisors: set[int]) -> bool:
    """Whether the line of parents reaches its end without a supervisor and without a gap."""
    line = process
    while line.parent not in (0, os.getpid()):
        if line.parent in supervisors:
            return False
        parent = processes.get(line.parent)
        if parent is None:
            return False
        line = parent
    return True
