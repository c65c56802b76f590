"""One S3 server for these tests; without its program they are skipped on a laptop and fail in CI."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from deploy.local.report import MissingPieceError
from deploy.local.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, local_s3
from worker.storage import Storage, StorageOptions, open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


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
