"""The long-running commands, and the one that goes before them."""

import argparse

from pydantic import ValidationError

from worker.app import run_worker, storage_of
from worker.cli.show import complain, misfit, said
from worker.log import configure_log, secrets_of
from worker.settings import Settings
from worker.storage.disk import own_folder
from worker.store.migrations import migrate as apply_migrations


async def run(settings: Settings, _options: argparse.Namespace) -> int:
    """Work until SIGTERM."""
    return await run_worker(settings)


async def api(settings: Settings, _options: argparse.Namespace) -> int:
    """Serve the HTTP API."""
    try:
        from worker.api.serving import serve  # noqa: PLC0415 - an extra
        from worker.api.settings import read_api_settings  # noqa: PLC0415
    except ImportError as error:
        return complain(f"{error}: install the extra, pip install 'speech-training-worker[api]'")
    try:
        own = read_api_settings()
    except ValidationError as error:
        return misfit(error)
    configure_log(settings.log_level, secrets=secrets_of(settings) | secrets_of(own))
    own_folder(own.api_upload_folder, "WORKER_API_UPLOAD_FOLDER", settings.mask)
    storage = storage_of(settings)
    try:
        await serve(own, storage)
    finally:
        await storage.aclose()
    return 0


async def migrate(settings: Settings, options: argparse.Namespace) -> int:
    """Apply what is missing."""
    applied = await apply_migrations(settings.database_url.get_secret_value())
    said(
        "applied: " + (", ".join(applied) or "nothing, the schema is current"),
        json_wanted=options.json,
        applied=applied,
    )
    return 0
