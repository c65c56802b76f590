"""Serve a fresh API in this process until its standard input ends; says where, with a key, as one JSON line.

For programs that are no pytest tests: Schemathesis, the TypeScript client, benchmarks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from pydantic import SecretStr

from deploy.local.postgres import create_database, drop_database
from tests.api.conftest import ENCRYPTION_KEY, serving
from worker.api import keys
from worker.api.settings import ApiSettings
from worker.storage import FileStorage
from worker.store.api_keys import KeyStore
from worker.store.database import Database
from worker.store.migrations import migrate
from worker.store.models import ModelStore


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minimum-audio-s", type=float, default=60)
    arguments = parser.parse_args()
    server = os.environ["TEST_DATABASE_URL"]
    name = f"api_{os.getpid()}"
    url = await create_database(server, name)
    try:
        await migrate(url)
        with tempfile.TemporaryDirectory(prefix="api-") as folder:
            await _serve(url, Path(folder), arguments.minimum_audio_s)
    finally:
        await drop_database(server, name)


async def _serve(url: str, folder: Path, minimum_audio_s: float) -> None:
    settings = ApiSettings(
        database_url=SecretStr(url), minimum_audio_s=minimum_audio_s, api_rate_per_s=1e6, api_burst=10**6,
        api_upload_folder=folder / "uploads", api_encryption_keys=ENCRYPTION_KEY,
    )  # fmt: skip
    storage = FileStorage(folder / "storage")
    database = Database(url, size=2)
    models = ModelStore(database)
    base_id = await models.create_base_language("en", "English", "weights/en")
    organization_id = await models.create_organization(None, "Test")
    key = await keys.create(KeyStore(database), organization_id, "owner", "test")
    async with serving(settings, storage) as (address, _):
        ready = {
            "url": address, "key": key.secret, "organization_id": organization_id, "language_id": base_id,
            "database_url": url, "storage": str(folder / "storage"), "uploads": str(folder / "uploads"),
            "pid": os.getpid(),
        }  # fmt: skip
        print(json.dumps(ready), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await database.close()
    await storage.aclose()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
