"""Keeps one recipe step inside its owner's right to run it.

A process of its own between the worker and the trainer: standard library only, no credentials, started in
about 20 ms by ``local.py``, one per step::

    worker ──control (fd 0)──▶ supervisor ──signals──▶ trainer, in a session of its own
           ◀──status (fd 1)───            ◀──output─── its stdout and stderr, into the bounded log (fd 2)
           ◀──────────────────events, straight through──── its fd 3

Control lines: ``feed <deadline>`` (seconds of CLOCK_BOOTTIME, which counts a suspended machine's sleep),
``stop`` (SIGTERM to the group), ``kill``.
Status lines: ``started pid=…``, ``paused``, ``resumed``, ``ended reason=… code=… …``.

What it guarantees: past the deadline everything below it is stopped; a later feed lets it go on; past the
patience it is killed; when the control pipe closes (the owner died) it is killed at once. It is a child
subreaper, so "everything below it" includes a grandchild that changed its session, and it ends only when the
kernel says that nothing is left. Somebody may freeze it, and its owner as well: the kernel wakes it.
"""

import ctypes
import fcntl
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress

from worker.hardening import (
    allow_inspection,
    confine,
    drop_privileges_of_root,
    end_with,
    forbid_inspection,
    gain_no_privileges,
    go_first,
    limit,
    yield_processor,
)
from worker.launchers.bounded_log import BoundedLog
from worker.launchers.memory import oom_kills, tree_bytes
from worker.launchers.processes import SUPERVISED_ITSELF, SUPERVISOR_MARK, descendants, is_dead, is_still

_CONTROL, _STATUS, _LOG, _EVENTS = 0, 1, 2, 3
_PR_SET_CHILD_SUBREAPER = 36
_WAKE_S = 0.5
"""A frozen supervisor stands still for no longer; well below what lies between a pause and the end of its lease."""
_SAMPLE_S = 2.0
"""Between two looks at the memory of the tree."""
_RECHECK_S = 0.25
"""While paused: whoever was woken by somebody else is stopped again."""
_STOP_AGAIN_S = 0.002
_KILL_AGAIN_S = 0.02

_libc = ctypes.CDLL(None, use_errno=True)
_timers = _libc if hasattr(_libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)  # glibc before 2.34


def now() -> float:
    """Seconds of the clock that deadlines are given in; the same for every process of a host."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Options:
    """What the launcher passes as ``name=value`` arguments."""

    def __init__(self, arguments: list[str]) -> None:
        values = dict(argument.split("=", 1) for argument in arguments)
        self.events = int(values["events"])
        self.spec = int(values["spec"])
        self.deadline = float(values["deadline"])
        self.patience_s = float(values["patience"])
        self.memory_limit = int(values["memory"])
        """Bytes; 0 is no limit."""
        self.log_limit = int(values["log"])
        self.niceness = int(values["nice"])
        self.ruleset = int(values["ruleset"])
        """Descriptor of the trainer's Landlock rules; -1: none."""
        self.filter = int(values["filter"])
        """Descriptor of its seccomp filter; -1: none."""
        self.isolation = values["isolation"]
        """What these keep from it, for whoever reads its log."""


class _SignalEvent(ctypes.Structure):
    """``struct sigevent`` of sigevent(3type), which is padded to 64 bytes; ``notify`` 0 is SIGEV_SIGNAL."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * 48),
    )


def _be_woken() -> None:
    """Have the kernel send us a SIGCONT now and then, which a process that runs does not notice.

    Raises:
        OSError: it does not want to. Whoever might be frozen for ever must not supervise.
    """
    timer, event = ctypes.c_void_p(), _SignalEvent(signal=signal.SIGCONT, notify=0)
    nanoseconds = int(_WAKE_S * 1e9)
    times = (ctypes.c_long * 4)(0, nanoseconds, 0, nanoseconds)  # struct itimerspec: the interval, then the first
    made = _timers.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(timer))
    if made or _timers.timer_settime(timer, 0, times, None):
        raise OSError(ctypes.get_errno(), "no timer")


class Supervisor:
    """One trainer, its descendants, and the right to run them."""

    def __init__(self, options: Options, command: list[str]) -> None:
        self._options = options
        self._command = command
        self._deadline = options.deadline
        self._log = BoundedLog(_LOG, options.log_limit)
        self._control_rest = b""
        self._reason = ""
        """Why it ends, the first reason only; empty while it runs."""
        self._gone = False
        self._status = 0
        self._cpu_s = 0.0
        self._peak_bytes = 0
        self._paused_at: float | None = None
        self._paused_s = 0.0
        self._still = False
        """Paused, and the last look found nobody moving."""
        self._sample_due = now() + _SAMPLE_S
        self._oom_kills = oom_kills()
        self._poller = select.poll()

    def run(self) -> None:
        """From start to the last descendant's end."""
        self._log.write(f"{self._options.isolation}\n".encode())
        self._start()
        while not self._gone:
            self._listen()
            self._reap()
            self._keep_right()
            self._keep_memory()
            self._kill_everything()
        self._collect_output()
        self._report_end()

    def _start(self) -> None:
        forbid_inspection()  # a trainer that traces us could take itself out of our hands
        _be_woken()
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)  # only the owner decides
        self._wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._output, output_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        for descriptor in (_CONTROL, self._wakeup, self._output):
            self._poller.register(descriptor, select.POLLIN)
        errors, errors_end = os.pipe2(os.O_CLOEXEC)
        supervisor = os.getpid()
        self._trainer = os.fork()
        if self._trainer == 0:
            self._become_trainer(supervisor, output_end, errors_end)
        rules = [descriptor for descriptor in (self._options.ruleset, self._options.filter) if descriptor >= 0]
        for descriptor in (output_end, errors_end, self._options.events, self._options.spec, *rules):
            os.close(descriptor)
        failed = os.read(errors, 16)  # empty as soon as the trainer's program runs
        os.close(errors)
        if failed:
            self._reason = f"not_started errno={failed.decode()}"
        else:
            self._tell(f"started pid={self._trainer}")

    def _become_trainer(self, supervisor: int, output: int, errors: int) -> None:
        """The child's side of the fork: never returns."""
        try:
            os.setsid()
            end_with(supervisor)
            allow_inspection()  # or the files of /proc/self are root's; the program is open again in any case
            gain_no_privileges()  # a set-uid program could not be killed by us
            limit(resource.RLIMIT_CORE, 0)  # a core file would hold customers' audio
            yield_processor(self._options.niceness)  # the worker's heartbeat comes first
            go_first()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)  # ignored signals would stay ignored in the program
            # first out of the way of 0 to 3, which are about to be replaced
            sources = (self._options.spec, output, output, self._options.events)
            moved = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 10) for source in sources]
            for descriptor in sources:  # some were passed to us as inheritable
                fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            for target, source in enumerate(moved):
                os.dup2(source, target)
            environment = {**os.environ, SUPERVISOR_MARK: SUPERVISED_ITSELF}
            self._confine()
            os.execvpe(self._command[0], self._command, environment)  # noqa: S606 - the launcher's own command
        except BaseException as error:  # noqa: BLE001 - nothing may return into the supervisor's code
            os.write(errors, str(getattr(error, "errno", None) or 1).encode())
        os._exit(127)

    def _confine(self) -> None:
        """The last act of ours in the trainer's process: from here on it reaches its own files and processes only."""
        _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
        if processes > 1:  # a trainer that forks without end leaves its worker room for supervisors
            limit(resource.RLIMIT_NPROC, processes // 2)
        ruleset, program = self._options.ruleset, self._options.filter
        if ruleset < 0 and program < 0:
            return
        drop_privileges_of_root()
        code = b"" if program < 0 else os.read(program, 1 << 20)
        for descriptor in (ruleset, program):
            if descriptor >= 0:
                fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        confine(ruleset if ruleset >= 0 else None, code)

    def _listen(self) -> None:
        for descriptor, _ in self._poller.poll(self._wait_s() * 1000):
            if descriptor == _CONTROL:
                self._obey()
            elif descriptor == self._output:
                self._collect_output(1)
            else:
                with suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)

    def _wait_s(self) -> float:
        if self._reason:
            return _KILL_AGAIN_S
        if self._paused_at is not None:
            return _RECHECK_S if self._still else _STOP_AGAIN_S
        return max(0.0, min(self._sample_due, self._deadline) - now())

    def _obey(self) -> None:
        data = os.read(_CONTROL, 65_536)
        if not data:
            self._poller.unregister(_CONTROL)
            self._end("owner_gone")
            return
        *lines, self._control_rest = (self._control_rest + data).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"feed":
                self._deadline = float(value)
            elif word == b"stop" and not self._reason:
                # not collected yet, so the number is still the trainer's and nobody else's
                os.killpg(self._trainer, signal.SIGTERM)
            elif word == b"kill":
                self._end("killed")

    def _collect_output(self, reads: int = sys.maxsize) -> None:
        with suppress(BlockingIOError):
            for _ in range(reads):
                data = os.read(self._output, 65_536)
                if not data:
                    # every holder closed it; the trainer may live on in silence
                    with suppress(KeyError):
                        self._poller.unregister(self._output)
                    return
                self._log.write(data)

    def _reap(self) -> None:
        """Collect whoever ended, adopted orphans too. Nobody left below us: that is the end."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._gone = True
                return
            if pid == 0:
                return
            self._cpu_s += usage.ru_utime + usage.ru_stime
            self._peak_bytes = max(self._peak_bytes, usage.ru_maxrss * 1024)
            if pid == self._trainer:
                self._status = status
                self._end("exited")

    def _keep_right(self) -> None:
        moment = now()
        if self._reason:
            return
        if moment >= self._deadline + self._options.patience_s:
            self._end("unfed")
        elif moment >= self._deadline:
            self._paused_at = self._paused_at or moment
            self._stop_everything()
        elif self._paused_at is not None:
            self._paused_s += moment - self._paused_at
            self._paused_at, self._still = None, False
            for process in descendants(os.getpid()):
                process.send(signal.SIGCONT)
            self._tell("resumed")

    def _stop_everything(self) -> None:
        moving = [process for process in descendants(os.getpid()) if not is_still(process)]
        for process in moving:
            process.send(signal.SIGSTOP)
        # who was about to fork, or is in a system call, is looked at again before anybody says "paused"
        if not moving and not self._still:
            self._tell("paused")
        self._still = not moving

    def _keep_memory(self) -> None:
        if self._reason or now() < self._sample_due:
            return
        began = now()
        tree = descendants(os.getpid())
        used = tree_bytes(tree, self._options.memory_limit)
        self._peak_bytes = max(self._peak_bytes, used)
        if 0 < self._options.memory_limit < used:
            self._end("memory_limit")
        # on a host with very many processes a look takes long: never more than one part in a hundred
        self._sample_due = now() + max(_SAMPLE_S, 100 * (now() - began))

    def _kill_everything(self) -> None:
        if self._reason and not self._gone:
            for process in descendants(os.getpid()):
                if not is_dead(process):
                    process.send(signal.SIGKILL)
            self._reap()

    def _end(self, reason: str) -> None:
        if not self._reason:
            self._reason = reason
            if self._paused_at is not None:
                self._paused_s += now() - self._paused_at
                self._paused_at = None

    def _tell(self, line: str) -> None:
        with suppress(OSError):  # the owner is gone: the closed control pipe says so too, and decides
            os.write(_STATUS, line.encode() + b"\n")

    def _report_end(self) -> None:
        # the kernel's own kill is one that nobody here sent, while its counter moved
        killed = os.WIFSIGNALED(self._status) and os.WTERMSIG(self._status) == signal.SIGKILL
        oom = self._reason == "memory_limit" or (self._reason == "exited" and killed and oom_kills() > self._oom_kills)
        code = os.waitstatus_to_exitcode(self._status)
        self._tell(
            f"ended reason={self._reason} code={code} oom={oom:d} peak={self._peak_bytes}"
            f" cpu={self._cpu_s:.3f} paused={self._paused_s:.3f}"
        )


def main() -> None:
    """Entry point: ``name=value … -- command …``."""
    split = sys.argv.index("--")
    Supervisor(Options(sys.argv[1:split]), sys.argv[split + 1 :]).run()
