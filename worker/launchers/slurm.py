"""Steps as Slurm jobs, through sbatch, squeue and scancel."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.launchers.cluster import Presence, Sighting
from worker.launchers.interface import LauncherUnavailable

_GONE: Final = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
"""Every other word, COMPLETING above all, says that something may still act."""
_PASSED: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "SLURM_CONF")


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What a step asks of the cluster."""

    arguments: Sequence[str] = ()
    """Further arguments of sbatch: ``--partition=…``, ``--gres=gpu:1``, ``--mem=…``, ``--time=…``."""
    programs: Path | None = None
    """The folder of Slurm's programs when they are not on the PATH."""
    timeout_s: float = 30.0


class SlurmCluster:
    """See ``worker.launchers.cluster.Cluster``."""

    def __init__(self, options: SlurmOptions) -> None:
        self._options = options

    async def submit(self, name: str, command: str, output: Path | None) -> None:
        """A batch job that Slurm never requeues: another attempt is ours to decide."""
        await self._call(
            "sbatch",
            "--parsable",
            "--no-requeue",
            f"--job-name={name}",
            f"--output={output or os.devnull}",
            "--open-mode=append",
            "--chdir=/",
            *self._options.arguments,
            f"--wrap={command}",
        )

    async def sightings(self) -> Mapping[str, Sighting]:
        """All of this user's jobs that Slurm still remembers; other programs' names may hold spaces, states do not."""
        lines = await self._call("squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%T %j")
        found = (line.partition(" ") for line in lines.splitlines())
        return {name: Sighting(Presence.GONE if word in _GONE else Presence.ALIVE, word) for word, _, name in found}

    async def cancel(self, name: str) -> None:
        """Kill a running job at once, its batch shell too; take a waiting one from the queue."""
        chosen = (f"--user={os.getuid()}", f"--name={name}")
        await self._call("scancel", "--signal=KILL", "--full", "--state=RUNNING", *chosen)
        await self._call("scancel", *chosen)

    async def _call(self, program: str, *arguments: str) -> str:
        path = str(self._options.programs / program) if self._options.programs else program
        try:
            # sbatch hands its environment on to the job: an allow-list, so that no credential travels
            process = await asyncio.create_subprocess_exec(
                path,
                *arguments,
                env={name: os.environ[name] for name in _PASSED if name in os.environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise LauncherUnavailable("cluster_unreachable", str(error)) from error
        try:
            async with asyncio.timeout(self._options.timeout_s):
                output, errors = await process.communicate()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise LauncherUnavailable("cluster_unreachable", f"{program} does not answer") from None
        if process.returncode != 0:
            raise LauncherUnavailable("cluster_refused", f"{program}: {errors.decode(errors='replace')}")
        return output.decode(errors="replace")
