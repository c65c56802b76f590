"""The demo's own S3 server: what a worker is told of it, and what is fetched from it before it is stopped."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from deploy.local.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from worker.errors import NotStored
from worker.storage import Storage, StorageOptions, open_storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

URL = f"s3://{BUCKET}/demo"


def settings(server: S3Server) -> dict[str, str]:
    """What a worker must know of it."""
    return {
        "WORKER_STORAGE_URL": URL,
        "WORKER_S3_ENDPOINT": server.http,
        "WORKER_S3_ACCESS_KEY": ACCESS_KEY,
        "WORKER_S3_SECRET_KEY": SECRET_KEY,
    }


def folders_below(server: S3Server, prefix: str) -> list[str]:
    """The names right below a prefix."""

    async def listed() -> list[str]:
        async with _opened(server) as storage:
            keys = [stored.key async for stored in storage.listing(prefix)]
            return sorted({key.removeprefix(prefix + "/").split("/")[0] for key in keys})

    return asyncio.run(listed())


def bring(server: S3Server, prefix: str, folder: Path) -> None:
    """Copy all below a prefix into a folder, under the same names."""

    async def brought() -> None:
        async with _opened(server) as storage:
            try:
                shutil.copytree(await storage.materialize(prefix), folder / prefix)
            except NotStored:
                return

    asyncio.run(brought())


@asynccontextmanager
async def _opened(server: S3Server) -> AsyncIterator[Storage]:
    storage = open_storage(URL, StorageOptions(None, server.http, "us-east-1", ACCESS_KEY, SECRET_KEY))
    try:
        yield storage
    finally:
        await storage.aclose()
