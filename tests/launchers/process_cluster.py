"""The simplest cluster there is: jobs are processes of this machine, known by a folder of their ids."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from worker.launchers.cluster import Presence, Sighting
from worker.launchers.processes import read_process


class ProcessCluster:
    """See ``worker.launchers.cluster.Cluster``. Jobs outlive whoever submits them, and see only what a node would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def submit(self, name: str, command: str, output: Path | None) -> None:
        (self.folder / (name + ".command")).write_text(command)
        # a parent in between that ends at once: the job is nobody's child, as on another machine
        code = f"({command}) >>{output or self.folder / (name + '.output')} 2>&1 & echo $! >{self.folder / name}"
        environment = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        shell = ["setsid", "sh", "-c", code]
        process = await asyncio.to_thread(subprocess.run, shell, env=environment, cwd="/", check=True)
        assert process.returncode == 0

    async def sightings(self) -> Mapping[str, Sighting]:
        jobs = [path for path in self.folder.iterdir() if not path.suffix]
        return {path.name: Sighting(Presence.ALIVE if _lives(path) else Presence.GONE, "a process") for path in jobs}

    async def cancel(self, name: str) -> None:
        with suppress(FileNotFoundError):
            process = read_process(int((self.folder / name).read_text()))
            if process is not None:
                process.send(signal.SIGKILL)

    def told(self) -> str:
        """All that jobs printed."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.output"))


def _lives(job: Path) -> bool:
    process = read_process(int(job.read_text()))
    return process is not None and process.state not in "ZX"
