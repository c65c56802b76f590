"""The Slurm launcher against a real single-node Slurm on loopback: conformance, and what only a cluster shows.

Needs Debian's slurm-wlm and munge (`apt-get install slurm-wlm munge`). Everything runs as the present user.
"""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_ports
from deploy.local.program import Program, wait_until
from tests.launchers.conformance import FAKE_TRAINER
from tests.launchers.remote_cases import RemoteConformance, outpost
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.launchers.slurm import SlurmCluster, SlurmOptions

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
# Debian keeps servers where an ordinary user's PATH does not look
SEARCHED = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def make(configuration: str, exchange: str, **options: Any) -> RemoteLauncher:
    os.environ["SLURM_CONF"] = configuration
    command = (sys.executable, "-IS", str(FAKE_TRAINER))
    settled = {"beat_s": 0.2, "sighting_s": 0.5, "command": command, "outpost": outpost(), **options}
    return RemoteLauncher(SlurmCluster(SlurmOptions()), RemoteOptions(exchange_root=Path(exchange), **settled))


class SlurmPlace:
    moment_s = 10.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = str(folder / "slurm.conf")
        self.exchange = str(folder / "exchange")

    def launcher(self, **options: Any) -> RemoteLauncher:
        return make(self.configuration, self.exchange, **options)

    def owner(self, **options: Any) -> list[str]:
        maker = {"configuration": self.configuration, "exchange": self.exchange, **options}
        return ["tests.launchers.test_slurm:make", json.dumps(maker)]


def configuration(folder: Path, controller: int, node: int) -> str:
    name, user = socket.gethostname().partition(".")[0], getpass.getuser()
    return f"""
ClusterName=test
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
NodeName={name} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def told(*command: str, path: str) -> str:
    environment = {**os.environ, "SLURM_CONF": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def idle(path: str) -> bool:
    return told("sinfo", "--noheader", "--format=%T", path=path) == "idle"


def queued(path: str) -> bool:
    """Whether a step waits, runs or is still being cleaned away."""
    return told("squeue", "--noheader", path=path) != ""


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmPlace]:
    programs = {name: shutil.which(name, path=SEARCHED) for name in ("munged", "slurmctld", "slurmd", "sbatch")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(64))
    (folder / "munge" / "key").chmod(0o400)
    controller_port, node_port = free_ports(2)
    place = SlurmPlace(folder)
    Path(place.configuration).write_text(configuration(folder, controller_port, node_port))
    environment = {"PATH": SEARCHED, "HOME": str(folder), "SLURM_CONF": place.configuration}
    munge, controller, node = (Program(name, folder / f"{name}.log") for name in ("munged", "slurmctld", "slurmd"))
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    started = [munge]
    munge.start(
        [
            programs["munged"],
            "--force",  # it warns about folders that others may enter; a test's key protects nothing
            "--foreground",
            *(f"--{option}={folder}/munge/{name}" for option, name in files.items()),
        ],
        environment,
    )
    try:
        wait_until((folder / "munge" / "socket").exists, timeout_s=20, what="socket", program=munge)
        for program in (controller, node):
            started.append(program)
            program.start([programs[program.name], "-D"], environment)
        wait_until(lambda: idle(place.configuration), timeout_s=60, what="an idle node", program=node)
        yield place
    finally:
        if node in started:
            # a node that goes before its steps have ended leaves their slurmstepd behind
            told("scancel", f"--user={os.getuid()}", path=place.configuration)
            wait_until(lambda: not queued(place.configuration), timeout_s=60, what="an empty queue", program=node)
        for program in reversed(started):
            program.stop()
        shutil.rmtree(folder)


class TestSlurm(RemoteConformance):
    @pytest.fixture
    def place(self, slurm: SlurmPlace, monkeypatch: pytest.MonkeyPatch) -> SlurmPlace:
        monkeypatch.setenv("SLURM_CONF", slurm.configuration)
        return slurm

    @pytest.fixture
    def away(self, slurm: SlurmPlace) -> RemoteLauncher:
        options = SlurmOptions(programs=Path("/nowhere"))
        settled = {"command": ("/bin/true",), "exchange_root": Path(slurm.exchange)}
        return RemoteLauncher(SlurmCluster(options), RemoteOptions(**settled))
