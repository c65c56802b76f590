"""Runs one program for an owner and ends it when the owner is gone, however the owner went.

    python leash.py OWNER_PID STOP_SIGNAL LOG_FILE UID PROGRAM [ARGUMENT …]

The program is this process's child, so there is no moment in which it runs unwatched. The first line on standard
output is the program's own pid. A kill -9 of the owner is seen through a pidfd; then, or when this process gets
SIGTERM, the program gets STOP_SIGNAL, ten seconds, STOP_SIGNAL again (RabbitMQ can lose one that comes just after
its listener opened), three seconds, SIGKILL; what it started and left behind gets SIGKILL. UID is the user to run
as, or "same". Only the standard library, and no imports of ours: it is started with `-I -S`, in milliseconds.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

GRACE_S = 10.0
LAST_GRACE_S = 3.0
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Have Linux kill the program if even this process is killed (lost where the program changes user)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what this process ignores, the program need not
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _start(log: Path, uid: str, command: list[str]) -> subprocess.Popen[bytes]:
    identity = None if uid == "same" else int(uid)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
            user=identity,
            group=identity,
            extra_groups=None if identity is None else (),
        )


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started and that have not left it, read from /proc."""
    try:
        direct = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [found for child in direct for found in (child, *descendants(child))]


def signal_tree(pid: int, number: int) -> None:
    """Send a signal to a process and to every process it started."""
    for member in (pid, *descendants(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)


def _end(child: subprocess.Popen[bytes], stop_signal: int) -> None:
    """End the program, then whatever it started and left behind."""
    members = []
    for pid in descendants(child.pid):
        with contextlib.suppress(ProcessLookupError):
            members.append(os.pidfd_open(pid))
    for number, patience_s in ((stop_signal, GRACE_S), (stop_signal, LAST_GRACE_S), (signal.SIGKILL, GRACE_S)):
        if child.poll() is not None:
            break
        signal_tree(child.pid, signal.SIGCONT)  # a frozen program cannot hear a request to stop
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(member, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Start the program, report its pid, wait for its end, the owner's, or SIGTERM; returns its status."""
    owner, stop_signal, log, uid, *command = arguments
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asked, asking = os.pipe()
    os.set_blocking(asking, False)
    signal.set_wakeup_fd(asking)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the byte in the pipe is what counts
    try:
        owner_fd = os.pidfd_open(int(owner))
    except ProcessLookupError:
        return 1
    if os.getppid() != int(owner):  # it ended before we looked, and its number may be another's by now
        return 1
    child = _start(Path(log), uid, command)
    child_fd = os.pidfd_open(child.pid)
    os.write(1, b"%d\n" % child.pid)
    poll = select.poll()
    for source in (owner_fd, child_fd, asked):
        poll.register(source, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    if child_fd not in ready:
        _end(child, int(stop_signal))
    return child.wait() & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
