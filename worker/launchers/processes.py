"""Processes as /proc tells of them, and signals that cannot hit a stranger.

Standard library only: the supervisor, which starts in milliseconds, uses this too.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

ATTEMPT_MARK = "TRAINING_ATTEMPT"
"""Environment variable ``<run id>:<attempt>``; a test compares it with ``schemas.steps.ATTEMPT_MARK``."""
SUPERVISOR_MARK = "TRAINING_SUPERVISOR"
"""Set in a supervisor's own environment, to ``SUPERVISES``, and in its trainer's, to ``SUPERVISED_ITSELF``."""
SUPERVISES, SUPERVISED_ITSELF = "1", "0"
"""Workers of 0.1.0 look whether the name is set, in environments alone, and end every marked process above which they
find none. They cannot read our supervisors': without the name in the trainer's they would end every trainer of a newer
worker beside them on a host. A later release takes the name away from trainers."""

SUPERVISED = "supervises="
"""Begins the argument by which a supervisor tells its attempt, ``<run id>:<attempt>``: others cannot read its
environment."""

_KERNEL_THREAD = 0x00200000
"""``PF_KTHREAD`` of the kernel's ``include/linux/sched.h``."""
_EXEC_PATIENCE_S = 1.0
"""For all processes of one look together; measured on two busy cores: an ``execve`` hides a process for 85 ms."""


class Process:
    """One process at one moment.

    ``started`` is in clock ticks since boot: with the pid it names a process for good, which a pid alone
    does not. ``state`` is the kernel's letter: ``T`` and ``t`` stopped, ``Z`` and ``X`` dead.
    ``environment_at`` is an address that each ``execve`` changes; 0 in its middle, and for a kernel thread.
    """

    __slots__ = ("environment_at", "is_kernel_thread", "parent", "pid", "resident_pages", "started", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        # the second field is the program's name in parentheses, and may itself hold spaces and parentheses
        fields = stat[stat.rindex(b")") + 2 :].split()
        self.pid = pid
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.started = int(fields[19])
        self.resident_pages = int(fields[21])
        self.is_kernel_thread = bool(int(fields[6]) & _KERNEL_THREAD)
        self.environment_at = int(fields[47])

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens when it is gone or not ours."""
        with suppress(ProcessLookupError, PermissionError):
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError as error:
                if isinstance(error, ProcessLookupError):
                    raise
                os.kill(self.pid, number)  # no pidfd here (old kernel, strict seccomp): the pid must do
                return
            try:
                now = read_process(self.pid)
                # the pidfd holds whoever has the pid now; only the start time says that it is still the same
                if now is not None and now.started == self.started:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def read_process(pid: int) -> Process | None:
    """The process with this pid, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs the supervisor milliseconds
            return Process(pid, file.read())
    except (OSError, ValueError):
        return None


def all_processes() -> dict[int, Process]:
    """Every visible process by pid. Not one moment's picture: callers that must be sure look again."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - as above
    return {process.pid: process for process in found if process is not None}


def descendants(ancestor: int) -> list[Process]:
    """Every process below this pid, however it was started and whatever session it moved to."""
    children: dict[int, list[Process]] = {}
    for process in all_processes().values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += (process.pid for process in below)
    return found


def is_dead(process: Process) -> bool:
    """Ended, though perhaps not yet collected by its parent."""
    return process.state in "ZX"


def is_still(process: Process) -> bool:
    """Stopped or dead: it executes nothing."""
    return process.state in "TtZX"


class Marked:
    """A living process that carries an attempt's mark."""

    __slots__ = ("attempt", "process", "run_id", "supervises")

    def __init__(self, process: Process, run_id: str, attempt: int, *, supervises: bool) -> None:
        self.process = process
        self.run_id = run_id
        self.attempt = attempt
        self.supervises = supervises


def marked_processes() -> Iterator[Marked]:
    """Every living process on this host, of this user, that belongs to some attempt.

    Not one moment's picture either, and it may wait a moment: a process that is just changing its program is
    looked at again, for nobody can say whose it is before it has done so.
    """
    patience_ends = time.monotonic() + _EXEC_PATIENCE_S
    for process in all_processes().values():
        if is_dead(process):
            continue
        variables = _environment(process, patience_ends)
        mark = variables.get(ATTEMPT_MARK.encode(), b"").decode(errors="replace")
        run_id, _, attempt = mark.rpartition(":")
        if run_id and attempt.isdigit():
            supervises = variables.get(SUPERVISOR_MARK.encode()) == SUPERVISES.encode()
            yield Marked(process, run_id, int(attempt), supervises=supervises)


def _environment(process: Process, patience_ends: float) -> dict[bytes, bytes]:
    """Its variables; empty when it is gone, not ours, or truly has none."""
    before: Process | None = process
    while before is not None and not before.is_kernel_thread:
        try:
            with open(f"/proc/{process.pid}/environ", "rb") as file:  # noqa: PTH123 - as above
                content = file.read()
        except PermissionError:
            return _told_by_arguments(process.pid)
        except OSError:
            break
        if content:
            return dict(entry.partition(b"=")[::2] for entry in content.split(b"\0"))
        after = read_process(process.pid)
        if after is None or is_dead(after) or 0 < after.environment_at == before.environment_at:
            break
        if time.monotonic() >= patience_ends:
            break
        before = after
        time.sleep(0.001)
    return {}


def _told_by_arguments(pid: int) -> dict[bytes, bytes]:
    """The marks of a supervisor of this user, whose environment is closed to us; empty for anybody else."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - as above
            users = next(line.split()[1:] for line in file if line.startswith(b"Uid:"))
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - as above
            arguments = file.read().split(b"\0")
    except (OSError, StopIteration):
        return {}
    mark = next((argument for argument in arguments if argument.startswith(SUPERVISED.encode())), b"")
    if not mark or set(users) != {str(os.geteuid()).encode()}:
        return {}
    return {ATTEMPT_MARK.encode(): mark.partition(b"=")[2], SUPERVISOR_MARK.encode(): SUPERVISES.encode()}
