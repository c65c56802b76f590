"""Becomes another program under the system calls that a systemd unit allows: ``under_unit.py UNIT COMMAND …``.

systemd itself is not needed, only ``systemd-analyze``, which says what is in ``@system-service`` and its like.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyseccomp


def sets() -> dict[str, list[str]]:
    """The named sets of system calls."""
    told = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in told.splitlines():
        if line.startswith("@"):
            members = found.setdefault(line.strip(), [])
        elif line.startswith("    ") and found and "#" not in line:
            members.append(line.strip())
    return found


def allowed(unit: Path) -> set[str]:
    """What the unit's lines ``SystemCallFilter`` leave."""
    known = sets()

    def expanded(word: str) -> set[str]:
        return set().union(*map(expanded, known[word])) if word.startswith("@") else {word}

    calls = expanded("@default") | {"execve"}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, _, words = line.partition("=")
        if name == "SystemCallFilter":
            meant = set().union(*map(expanded, words.lstrip("~").split()))
            calls = calls - meant if words.startswith("~") else calls | meant
    return calls


if __name__ == "__main__":
    made = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))  # SystemCallErrorNumber of the units
    for call in allowed(Path(sys.argv[1])):
        with suppress(OSError, ValueError):  # of another processor
            made.add_rule(pyseccomp.ALLOW, call)
    made.load()
    os.execv(sys.argv[2], sys.argv[2:])
