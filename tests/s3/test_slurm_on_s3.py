"""The Slurm launcher over object storage: a real single-node Slurm whose jobs talk to their worker through S3 alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.local.report import MissingPieceError
from deploy.local.slurm_cluster import local_slurm, slurm_programs
from tests.launchers.remote_cases import RemoteConformance
from tests.s3.storage_place import StoragePlace, through_storage
from worker.launchers.slurm import SlurmCluster, SlurmOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.local.s3_server import S3Server
    from worker.launchers.remote import RemoteLauncher

pytestmark = [pytest.mark.slurm, pytest.mark.s3, pytest.mark.timeout(300)]


def make(configuration: str, folder: str, url: str, endpoint: str, **options: Any) -> RemoteLauncher:
    os.environ["SLURM_CONF"] = configuration
    settled = {"beat_s": 0.2, "sighting_s": 0.5, **options}
    return through_storage(SlurmCluster(SlurmOptions()), folder, url, endpoint, **settled)


class SlurmOnS3(StoragePlace):
    moment_s = 10.0

    def __init__(self, folder: Path, endpoint: str, configuration: str) -> None:
        super().__init__(folder, endpoint)
        self.configuration = configuration

    def launcher(self, **options: Any) -> RemoteLauncher:
        return make(self.configuration, str(self.folder), self.url, self.endpoint, **options)

    def owner(self, **options: Any) -> list[str]:
        maker = {"configuration": self.configuration, "folder": str(self.folder), "url": self.url}
        return ["tests.s3.test_slurm_on_s3:make", json.dumps(maker | {"endpoint": self.endpoint} | options)]


@pytest.fixture(scope="module")
def configuration() -> Iterator[str]:
    try:
        programs = slurm_programs()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_slurm(programs) as made:
        yield made.configuration


class TestSlurmOnS3(RemoteConformance):
    @pytest.fixture
    def place(self, server: S3Server, configuration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmOnS3:
        monkeypatch.setenv("SLURM_CONF", configuration)
        return SlurmOnS3(tmp_path / "place", server.http, configuration)

    @pytest.fixture
    def away(self, place: SlurmOnS3) -> RemoteLauncher:
        cluster = SlurmCluster(SlurmOptions(programs=Path("/nowhere")))
        return through_storage(cluster, str(place.folder), place.url, place.endpoint)
