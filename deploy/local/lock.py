"""Write down which packages, in which versions and with which hashes, the demo, the tests and the images install.

    python=$(bash deploy/local/setup.sh dev)
    "$python" -m deploy.local.lock                 after a change of pyproject.toml
    "$python" -m deploy.local.lock --upgrade       the newest versions of everything
    "$python" -m deploy.local.lock --check         whether the file is current; changes nothing

Where the new lock cannot be installed yet, any environment with uv in it makes it: `pip install uv`.

uv resolves all extras for every supported Python and platform at once; versions in the file stay unless something no
longer fits. pip reads the file as constraints and then refuses every file whose hash is not in it. PyTorch and what
only its CUDA builds bring are left out: which build is right depends on the machine (see venv.py), and PyTorch's own
index serves it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from deploy.local.locked import build_requirements

ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT: Final = ROOT / "pyproject.toml"
LOCK: Final = ROOT / "deploy/local/constraints.txt"
OLDEST_PYTHON: Final = "3.11"
_LEFT_OUT: Final = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEAD: Final = """\
# Every package that the demo, the tests and the images install, with the hashes of its files: pip takes this file as
# constraints and refuses a file whose hash is not here. Made by `python -m deploy.local.lock`; do not edit.
# Not in here: torch and what its CUDA builds bring, whose build depends on the machine (see venv.py).
"""


class LockError(RuntimeError):
    """No set of versions could be found; the message holds uv's own words."""


def resolved(known: str, *, upgrade: bool) -> str:
    """The file's text for today's pyproject.toml.

    Args:
        known: the file as it is; its versions are kept where they still fit.
        upgrade: take the newest versions instead.

    Raises:
        LockError: uv finds no versions that fit, or reaches no package index.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, build = Path(folder) / "constraints.txt", Path(folder) / "build.in"
        out.write_text(known)
        build.write_text("\n".join(build_requirements(PROJECT)))
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
        command += ["--all-extras", "--python-version", OLDEST_PYTHON, "--no-header", "--no-annotate"]
        command += ["--upgrade"] if upgrade else []
        command += ["--output-file", str(out), str(PROJECT), str(build)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LockError(done.stderr.strip())
        return HEAD + without_torch(out.read_text())


def without_torch(text: str) -> str:
    """The entries that are the same on every machine."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    return "".join(entry for entry in entries if entry and not entry.startswith("#") and not _LEFT_OUT.match(entry))


def main() -> int:
    """Command line: 1 when --check finds another file than it would make, or nothing can be resolved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="the newest versions instead of those in the file")
    parser.add_argument("--check", action="store_true", help="only say whether the file is current")
    options = parser.parse_args()
    known = LOCK.read_text() if LOCK.exists() else ""
    try:
        made = resolved(known, upgrade=options.upgrade)
    except LockError as error:
        print(f"not locked: {error}", file=sys.stderr)
        return 1
    if options.check:
        print("current" if made == known else "deploy/local/constraints.txt does not fit pyproject.toml any more")
        return int(made != known)
    LOCK.write_text(made)
    print(f"{len(re.findall(r'(?m)^[A-Za-z0-9]', made))} packages are locked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
