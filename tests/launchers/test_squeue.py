"""What squeue tells of a user's jobs, ours and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.launchers.cluster import Presence
from worker.launchers.slurm import SlurmCluster, SlurmOptions

if TYPE_CHECKING:
    from pathlib import Path

SQUEUE = """#!/bin/sh
for argument; do case $argument in --format=*) format=${argument#--format=} ;; esac; done
tell() { printf '%s\\n' "$format" | sed -e "s/%j/$1/" -e "s/%T/$2/"; }
tell speech-x-1-train-1 RUNNING
tell 'my  notebook, again' PENDING
tell '' RUNNING
tell speech-x-1-train-2 TIMEOUT
"""


async def test_jobs_of_other_programs_hide_none_of_ours_whatever_their_names(tmp_path: Path):
    (tmp_path / "squeue").write_text(SQUEUE)
    (tmp_path / "squeue").chmod(0o755)
    seen = await SlurmCluster(SlurmOptions(programs=tmp_path)).sightings()
    assert seen["speech-x-1-train-1"].presence is Presence.ALIVE
    assert (seen["speech-x-1-train-2"].presence, seen["speech-x-1-train-2"].word) == (Presence.GONE, "TIMEOUT")
    assert "my  notebook, again" in seen
