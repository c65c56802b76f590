"""The programs do their work with the system calls that their systemd units allow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "deploy" / "systemd"
READ_A_TEXT = """
import asyncio
from worker.data.text_reader import MANIFEST, TextReader
line = b'{"audio_filepath": "a.wav", "text": "hello"}'
[found] = asyncio.run(TextReader().all_of(MANIFEST, len(line), line, reason_code="bad"))
assert found.line is not None and found.line.text == "hello"
"""
OPEN_A_RECORDING = """
from pathlib import Path
from worker.trainer.decoders import DECODERS
with DECODERS.opened(Path("deploy/demo/data/tn0000.opus")) as recording:
    assert recording.duration_s > 1
"""
ISOLATE = """
from worker import confinement
from worker.hardening import confine
found = confinement.means()
rules = confinement.Rules()
confine(confinement.ruleset_of(rules, found), confinement.step_filter(rules, found))
print(found)
"""
needs_sets = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def under(unit: str, program: str) -> str:
    command = [sys.executable, str(Path(__file__).parent / "under_unit.py"), str(UNITS / unit), sys.executable]
    done = subprocess.run([*command, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_sets
@pytest.mark.parametrize("unit", ["speech-training-api.service", "speech-training-worker@.service"])
def test_under_its_unit_a_program_reads_customers_texts(unit: str) -> None:
    """The API's takes the right to change priorities away, and a child that insisted would refuse every text."""
    under(unit, READ_A_TEXT)


@needs_sets
def test_under_the_workers_unit_recordings_are_decoded() -> None:
    under("speech-training-worker@.service", OPEN_A_RECORDING)


@needs_sets
def test_under_the_workers_unit_trainers_are_isolated_as_well_as_without_it() -> None:
    free = subprocess.run([sys.executable, "-c", ISOLATE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert under("speech-training-worker@.service", ISOLATE) == free


def test_a_host_that_lets_nobody_change_priorities_reads_texts_all_the_same() -> None:
    forbid = (
        "import errno, pyseccomp\n"
        "made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)\n"
        "made.add_rule(pyseccomp.ERRNO(errno.EPERM), 'setpriority')\n"
        "made.load()\n"
    )
    subprocess.run([sys.executable, "-c", forbid + READ_A_TEXT], cwd=ROOT, check=True, timeout=100)
