"""What a process of ours gives up for good. Standard library only: supervisors start with this in milliseconds."""

import ctypes
import math
import os
import resource
import signal
import struct
from contextlib import suppress

# of the kernel's include/uapi/linux/prctl.h, seccomp.h, capability.h and asm-generic/unistd.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAP_DAC_OVERRIDE, _CAPABILITIES = 1, 64
_LANDLOCK_RESTRICT_SELF = 446
_FILTER_INSTRUCTION_BYTES = 8


def forbid_inspection() -> None:
    """Let no other process without privileges read this one's environment or memory, or trace it.

    A trainer runs as the same user as its worker, whose environment may hold the database's password. The kernel
    then takes the files of ``/proc/<pid>`` for root's. A program that this process starts is open again, and a
    process with CAP_SYS_PTRACE may look all the same. Nothing happens where the kernel is not Linux.
    """
    _set_dumpable(dumpable=False)


def allow_inspection() -> None:
    """Take ``forbid_inspection`` back, in a fork that is about to become another program."""
    _set_dumpable(dumpable=True)


def _set_dumpable(*, dumpable: bool) -> None:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def end_with(owner: int) -> None:
    """End this process (SIGKILL) when the one that started it ends, and at once where it has ended already.

    Args:
        owner: the process that started this one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:  # it ended before the line above: nobody would ever tell us
        os._exit(1)


def gain_no_privileges() -> None:
    """Let no program that this process starts have more privileges than it: set-uid bits count no more.

    Raises:
        OSError: the kernel does not want to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def yield_processor(niceness: int) -> None:
    """Let others have the processor first. A service manager may forbid even that: it is a courtesy, no limit."""
    with suppress(OSError):
        os.nice(niceness)


def go_first() -> None:
    """When the host runs out of memory this process goes, and not its owner."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123 - quick
        file.write("500")


def confine(ruleset: int | None, program: bytes) -> None:
    """Put this thread, and every process it starts, under rules that ``worker.confinement`` made.

    Args:
        ruleset: descriptor of a Landlock ruleset; None: the kernel has none.
        program: a seccomp filter as the kernel takes it; empty: none.

    Raises:
        OSError: the kernel does not want to. Whoever was to be confined must not go on.
    """
    gain_no_privileges()
    libc = ctypes.CDLL(None, use_errno=True)
    if ruleset is not None and libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    if program:
        code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: the number of instructions, and where they are
        told = struct.pack("@HP", len(program) // _FILTER_INSTRUCTION_BYTES, ctypes.addressof(code))
        if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, told, 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp")


def drop_privileges_of_root() -> None:
    """Leave root's next program one privilege only: to open what other users own, where rules of files allow it."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None)
    for capability in range(_CAPABILITIES):
        if capability != _CAP_DAC_OVERRIDE:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def limit(kind: int, most: int) -> None:
    """Lower a limit of ``resource`` for good; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(kind, (most, most))


def allow_processor(more_s: float) -> None:
    """Allow this process so much more time of the processor; past it the kernel ends it, whatever it is doing.

    Args:
        more_s: seconds from now, within the hard limit.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + more_s)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
