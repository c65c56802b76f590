"""A real Slurm of one node on loopback, with its own munge, as the present user.

Needs Debian's slurm-wlm and munge (``apt-get install slurm-wlm munge``).
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.optional import SEARCHED
from deploy.local.ports import free_ports
from deploy.local.program import Program, wait_until
from deploy.local.report import MissingPieceError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
START_S = 60.0


class LocalSlurm:
    """A running cluster.

    Attributes:
        folder: its own.
        configuration: what SLURM_CONF must say to reach it.
    """

    def __init__(self, folder: Path, programs: dict[str, str], cpus: int) -> None:
        self.folder = folder
        self.configuration = str(folder / "slurm.conf")
        self._programs = programs
        self._cpus = cpus
        self._munge, self._controller, self._node = (
            Program(name, folder / f"{name}.log") for name in ("munged", "slurmctld", "slurmd")
        )

    def start(self) -> None:
        """Start it; returns when its node is idle.

        Raises:
            LocalServiceError: it does not become so.
        """
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o700)
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(64))
        (munge / "key").chmod(0o400)
        Path(self.configuration).write_text(_configuration(self.folder, free_ports(2), self._cpus))
        environment = {"PATH": SEARCHED, "HOME": str(self.folder), "SLURM_CONF": self.configuration}
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        named = [f"--{option}={munge}/{name}" for option, name in files.items()]
        # --force: it warns about folders that others may enter; a key for one machine's loopback protects nothing
        self._munge.start([self._programs["munged"], "--force", "--foreground", *named], environment)
        wait_until((munge / "socket").exists, timeout_s=START_S, what="a socket", program=self._munge)
        for program in (self._controller, self._node):
            program.start([self._programs[program.name], "-D"], environment)
        wait_until(self._idle, timeout_s=START_S, what="an idle node", program=self._node)

    def stop(self) -> None:
        """End its jobs, then itself."""
        if self._node.running:
            # a node that goes before its steps have ended leaves their slurmstepd behind
            self._told("scancel", f"--user={os.getuid()}")
            wait_until(lambda: not self._queue(), timeout_s=START_S, what="an empty queue", program=self._node)
        for program in (self._node, self._controller, self._munge):
            program.stop()

    def _idle(self) -> bool:
        return self._told("sinfo", "--noheader", "--format=%T") == "idle"

    def _queue(self) -> str:
        """What waits, runs or is still being cleaned away."""
        return self._told("squeue", "--noheader")

    def _told(self, program: str, *arguments: str) -> str:
        environment = {**os.environ, "SLURM_CONF": self.configuration}
        command = [self._programs[program], *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def slurm_programs() -> dict[str, str]:
    """Slurm's and munge's programs by name.

    Raises:
        MissingPieceError: names those that are not here.
    """
    found = {name: shutil.which(name, path=SEARCHED) for name in PROGRAMS}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise MissingPieceError(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    return {name: path for name, path in found.items() if path is not None}


@contextmanager
def local_slurm(programs: dict[str, str], *, cpus: int = 8) -> Iterator[LocalSlurm]:
    """A cluster while the block lasts.

    Raises:
        LocalServiceError: it does not start.
    """
    # munge puts a socket into it: the path must stay short
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = LocalSlurm(folder, programs, cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def _configuration(folder: Path, ports: list[int], cpus: int) -> str:
    controller, node = ports
    name, user = socket.gethostname().partition(".")[0], getpass.getuser()
    return f"""
ClusterName=local
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={name} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
