"""Programs without any capability, as an ordinary user runs them: to root the kernel denies little."""

import os
import shutil
import subprocess
import sys

import pytest


def command(*arguments: str) -> list[str]:
    """The command of a Python program that has no capabilities, whoever runs the tests."""
    python = [sys.executable, *arguments]
    if os.geteuid() != 0:
        return python
    if shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv (util-linux) to try this without its privileges")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *python]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done
