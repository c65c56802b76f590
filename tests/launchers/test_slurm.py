"""The Slurm launcher against a real single-node Slurm on loopback: conformance, and what only a cluster shows.

Needs Debian's slurm-wlm and munge (`apt-get install slurm-wlm munge`). Everything runs as the present user.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.report import MissingPieceError
from deploy.local.slurm_cluster import LocalSlurm, local_slurm, slurm_programs
from tests.launchers.conformance import FAKE_TRAINER, WITNESSED
from tests.launchers.remote_cases import RemoteConformance, outpost
from worker.launchers.exchange.folder import FolderExchanges
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.launchers.slurm import SlurmCluster, SlurmOptions

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def make(configuration: str, exchange: str, **options: Any) -> RemoteLauncher:
    os.environ["SLURM_CONF"] = configuration
    command = (sys.executable, "-IS", str(FAKE_TRAINER))
    settled = {"beat_s": 0.2, "sighting_s": 0.5, "command": command, "outpost": outpost()} | WITNESSED | options
    exchanges = FolderExchanges(Path(exchange))
    return RemoteLauncher(SlurmCluster(SlurmOptions()), exchanges, RemoteOptions(**settled))


class SlurmPlace:
    moment_s = 10.0

    def __init__(self, cluster: LocalSlurm) -> None:
        self.folder = cluster.folder
        self.configuration = cluster.configuration
        self.exchange = str(cluster.folder / "exchange")

    def launcher(self, **options: Any) -> RemoteLauncher:
        return make(self.configuration, self.exchange, **options)

    def owner(self, **options: Any) -> list[str]:
        maker = {"configuration": self.configuration, "exchange": self.exchange, **options}
        return ["tests.launchers.test_slurm:make", json.dumps(maker)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmPlace]:
    try:
        programs = slurm_programs()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_slurm(programs) as made:
        yield SlurmPlace(made)


class TestSlurm(RemoteConformance):
    @pytest.fixture
    def place(self, slurm: SlurmPlace, monkeypatch: pytest.MonkeyPatch) -> SlurmPlace:
        monkeypatch.setenv("SLURM_CONF", slurm.configuration)
        return slurm

    @pytest.fixture
    def away(self, slurm: SlurmPlace) -> RemoteLauncher:
        options = SlurmOptions(programs=Path("/nowhere"))
        exchanges = FolderExchanges(Path(slurm.exchange))
        return RemoteLauncher(SlurmCluster(options), exchanges, RemoteOptions(command=("/bin/true",)))
