"""Closes a process of ours to the others of the same user. Standard library only: the supervisor uses it."""

import ctypes
from contextlib import suppress

_PR_SET_DUMPABLE = 4  # of the kernel's include/uapi/linux/prctl.h


def forbid_inspection() -> None:
    """Let no other process without privileges read this one's environment or memory, or trace it.

    A trainer runs as the same user as its worker, whose environment may hold the database's password. The kernel
    then takes the files of ``/proc/<pid>`` for root's. A program that this process starts is open again, and a
    process with CAP_SYS_PTRACE may look all the same. Nothing happens where the kernel is not Linux.
    """
    _set_dumpable(dumpable=False)


def allow_inspection() -> None:
    """Take ``forbid_inspection`` back: what a fork inherited, a child that is about to become a program needs not."""
    _set_dumpable(dumpable=True)


def _set_dumpable(*, dumpable: bool) -> None:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)
