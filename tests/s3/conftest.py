"""One S3 server for these tests; without its program they are skipped on a laptop and fail in CI."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from deploy.local.ray_cluster import local_ray, ray_program
from deploy.local.report import MissingPieceError
from deploy.local.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, local_s3
from worker.storage import Storage, StorageOptions, open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.acceptance.world import World


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    try:
        with local_s3(tmp_path_factory.mktemp("s3")) as own:
            yield own
    except MissingPieceError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


@pytest.fixture
async def opened(server: S3Server, tmp_path: Path) -> AsyncIterator[Callable[..., Storage]]:
    """Opens the server's storage under a prefix of this test's own; options as keywords."""
    prefix = uuid.uuid4().hex
    made: list[Storage] = []

    def open_at(**changes: object) -> Storage:
        options: dict[str, object] = {
            "cache": tmp_path / "cache",
            "endpoint": server.https,
            "ca_file": server.ca_file,
            "region": "us-east-1",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "patience_s": 20.0,
        }
        made.append(open_storage(f"s3://{BUCKET}/{prefix}", StorageOptions(**options | changes)))  # type: ignore[arg-type]
        return made[-1]

    yield open_at
    for storage in made:
        await storage.aclose()


@pytest.fixture
def storage(opened: Callable[..., Storage]) -> Storage:
    return opened()


@pytest.fixture
def on_s3(server: S3Server) -> dict[str, str]:
    """The settings of workers that keep their files under a prefix of this test's own."""
    return {
        "WORKER_STORAGE_URL": f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "WORKER_S3_ENDPOINT": server.http,
        "WORKER_S3_ACCESS_KEY": ACCESS_KEY,
        "WORKER_S3_SECRET_KEY": SECRET_KEY,
    }


@pytest.fixture
async def world_storage(world: World, server: S3Server, tmp_path: Path) -> AsyncIterator[Storage]:
    """The storage of the test's workers, with a cache of the test's own."""
    options = StorageOptions(tmp_path / "own-cache", server.http, "us-east-1", ACCESS_KEY, SECRET_KEY)
    opened = open_storage(world.settings["WORKER_STORAGE_URL"], options)
    yield opened
    await opened.aclose()


@pytest.fixture(scope="module")
def ray_address(server: S3Server) -> Iterator[str]:
    """A real Ray whose node reaches the S3 server and nothing else of its worker."""
    try:
        program = os.environ.get("TEST_RAY") or ray_program()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_ray(program, reaching=[server.port]) as cluster:
        yield cluster.address
