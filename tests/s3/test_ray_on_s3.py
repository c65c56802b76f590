"""The Ray launcher over object storage: a real Ray whose node reaches the S3 server and nothing else of its worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from deploy.local.ports import free_ports
from tests.launchers.remote_cases import RemoteConformance
from tests.s3.storage_place import StoragePlace, through_storage
from worker.launchers.ray import RayCluster, RayOptions

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.local.s3_server import S3Server
    from worker.launchers.remote import RemoteLauncher

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(300)]


def make(address: str, folder: str, url: str, endpoint: str, **options: Any) -> RemoteLauncher:
    cluster = RayCluster(RayOptions(address=address, cpus=0.1, timeout_s=30))
    settled = {"beat_s": 0.2, "sighting_s": 0.5, **options}
    return through_storage(cluster, folder, url, endpoint, **settled)


class RayOnS3(StoragePlace):
    moment_s = 10.0

    def __init__(self, folder: Path, endpoint: str, address: str) -> None:
        super().__init__(folder, endpoint)
        self.address = address

    def launcher(self, **options: Any) -> RemoteLauncher:
        return make(self.address, str(self.folder), self.url, self.endpoint, **options)

    def owner(self, **options: Any) -> list[str]:
        maker = {"address": self.address, "folder": str(self.folder), "url": self.url, "endpoint": self.endpoint}
        return ["tests.s3.test_ray_on_s3:make", json.dumps(maker | options)]


class TestRayOnS3(RemoteConformance):
    @pytest.fixture
    def place(self, server: S3Server, ray_address: str, tmp_path: Path) -> RayOnS3:
        return RayOnS3(tmp_path / "place", server.http, ray_address)

    @pytest.fixture
    def away(self, place: RayOnS3) -> RemoteLauncher:
        address = f"http://127.0.0.1:{free_ports(1)[0]}"
        return make(address, str(place.folder), place.url, place.endpoint)
