"""A place whose steps reach their worker through an S3 server alone; its cluster is processes of this machine."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.local.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.launchers.conformance import FAKE_TRAINER, WITNESSED
from tests.launchers.process_cluster import ProcessCluster
from tests.launchers.remote_cases import outpost
from worker.launchers.exchange.storage import StorageExchanges
from worker.launchers.interface import LauncherUnavailable
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.storage import Storage, StorageOptions, open_storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.launchers.cluster import Cluster


class AwayCluster:
    """Nobody answers."""

    async def submit(self, name: str, command: str, output: Path | None) -> None:
        raise LauncherUnavailable("cluster_unreachable", "nobody answers")

    async def sightings(self) -> Mapping[str, Any]:
        raise LauncherUnavailable("cluster_unreachable", "nobody answers")

    async def cancel(self, name: str) -> None:
        raise LauncherUnavailable("cluster_unreachable", "nobody answers")


def storage_at(url: str, endpoint: str, cache: Path) -> Storage:
    """The worker's own way to the storage, with its credentials."""
    known = StorageOptions(cache, endpoint, "us-east-1", ACCESS_KEY, SECRET_KEY, patience_s=5.0)
    return open_storage(url, known)


def through_storage(cluster: Cluster, folder: str, url: str, endpoint: str, **options: Any) -> RemoteLauncher:
    """A launcher whose steps talk through the storage."""
    command = (sys.executable, "-IS", str(FAKE_TRAINER))
    settled = {"beat_s": 0.1, "sighting_s": 0.3, "command": command, "outpost": outpost()} | WITNESSED | options
    storage = storage_at(url, endpoint, Path(folder) / "cache")
    return RemoteLauncher(cluster, StorageExchanges(storage, Path(folder) / "logs"), RemoteOptions(**settled))


def make(folder: str, url: str, endpoint: str, **options: Any) -> RemoteLauncher:
    """The launcher of this place, in whatever process."""
    return through_storage(ProcessCluster(Path(folder) / "jobs"), folder, url, endpoint, **options)


class StoragePlace:
    moment_s = 5.0

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        self.cluster = ProcessCluster(folder / "jobs")
        asyncio.run(self._first_write())

    async def _first_write(self) -> None:
        """It makes the bucket: workers have written long before they start a step."""
        storage = self.storage()
        await storage.put_bytes("first", b"")
        await storage.aclose()

    def launcher(self, **options: Any) -> RemoteLauncher:
        return make(str(self.folder), self.url, self.endpoint, **options)

    def owner(self, **options: Any) -> list[str]:
        maker = {"folder": str(self.folder), "url": self.url, "endpoint": self.endpoint, **options}
        return ["tests.s3.storage_place:make", json.dumps(maker)]

    def storage(self) -> Storage:
        return storage_at(self.url, self.endpoint, self.folder / "cache")

    def commands(self) -> list[str]:
        """Every job's command, as the cluster was told."""
        return [path.read_text() for path in sorted(self.cluster.folder.glob("*.command"))]
