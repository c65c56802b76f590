"""Look at everything a worker needs; say for each thing what is wrong and how to mend it."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from schemas.names import visible
from worker.api.settings import read_api_settings
from worker.app import storage_of
from worker.cli.show import as_json
from worker.confinement import IsolationUnavailable
from worker.domain.finding import Finding
from worker.encryption import Encryption
from worker.errors import DatabaseAway, DatabaseRefused, SchemaNotReady, SchemaTooNew, WorkerError
from worker.intake.topology import check as check_broker
from worker.launchers.step_rules import found_means
from worker.log import redacted
from worker.settings import Settings
from worker.store.database import Database
from worker.store.migrations import check_schema
from worker.store.webhooks import PURPOSE, WebhookStore

_LEAST_FREE_BYTES = 5 * 2**30
_MEND_ISOLATION = (
    "Use a kernel with Landlock (Linux 5.13 or newer, `landlock` in /sys/kernel/security/lsm), install libseccomp "
    "(Debian: libseccomp2), or say WORKER_TRAINER_ISOLATION=none where every customer is trusted."
)


async def doctor(settings: Settings, options: argparse.Namespace) -> int:
    """0 where everything is right."""
    groups = await asyncio.gather(
        _database(settings),
        check_broker(settings.amqp_url.get_secret_value()),
        _storage(settings),
        _webhooks(settings),
        _trainer(settings),
        _isolation(settings),
        _disk(settings),
    )
    findings = [finding for group in groups for finding in group]
    if options.json:
        as_json([{**vars(finding), "what": redacted(finding.what)} for finding in findings])
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for finding in findings:
            mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
            console.print(f"{mark} {finding.name}: {escape(visible(redacted(finding.what)))}", highlight=False)
            if finding.mend:
                console.print(f"     → {escape(finding.mend)}", highlight=False)
    return 0 if all(finding.ok for finding in findings) else 1


async def _database(settings: Settings) -> list[Finding]:
    try:
        await check_schema(settings.database_url.get_secret_value())
    except DatabaseAway as error:
        mend = "Start Postgres, or correct host and port in WORKER_DATABASE_URL."
        return [Finding("database", ok=False, what=str(error), mend=mend)]
    except DatabaseRefused as error:
        mend = "Correct user, password and database in WORKER_DATABASE_URL."
        return [Finding("database", ok=False, what=str(error), mend=mend)]
    except SchemaNotReady as error:
        schema = Finding("schema", ok=False, what=str(error), mend="Run `python -m worker migrate`.")
    except SchemaTooNew as error:
        schema = Finding("schema", ok=False, what=str(error), mend="Upgrade this worker.")
    else:
        schema = Finding("schema", ok=True, what="current")
    return [Finding("database", ok=True, what="answers"), schema]


async def _storage(settings: Settings) -> list[Finding]:
    key = f"doctor/{uuid4()}"
    try:
        storage = storage_of(settings)
        try:
            await storage.put_bytes(key, b"doctor")
            same = await storage.get_bytes(key, 100) == b"doctor"
            await storage.delete([key])
        finally:
            await storage.aclose()
    except (WorkerError, ValueError) as error:
        mend = "Correct WORKER_STORAGE_URL and its credentials, or make the folder writable for this user."
        return [Finding("storage", ok=False, what=str(error), mend=mend)]
    what = "can be written, read and deleted in" if same else "gives back other bytes than were written"
    return [Finding("storage", ok=same, what=what), *_closed(storage.local_path(key))]


def _closed(path: Path | None) -> list[Finding]:
    """Whether other users of this host can look into a folder of recordings."""
    root = None if path is None else path.parent.parent
    if root is None or not root.stat().st_mode & 0o007:
        return []
    mend = f"Close it: chmod -R o-rwx {root}. What is stored from now on is closed by WORKER_UMASK."
    return [Finding("storage's rights", ok=False, what=f"every user of this host may look into {root}", mend=mend)]


async def _webhooks(settings: Settings) -> list[Finding]:
    """Every webhook's secret can be decrypted with the keys that are configured here.

    Only the API needs them, so a host without keys is asked only whether anything waits for one.
    """
    mend = "Add the key back to WORKER_API_ENCRYPTION_KEYS (it may be the last one there), or delete those webhooks."
    try:
        encryption = Encryption(read_api_settings().encryption_keys, PURPOSE)
    except ValidationError as error:
        told = "; ".join(str(fault["msg"]) for fault in error.errors(include_input=False))
        return [Finding("webhooks", ok=False, what=told, mend="Correct WORKER_API_ENCRYPTION_KEYS.")]
    if not encryption:
        what = "no WORKER_API_ENCRYPTION_KEYS here: an API with these settings makes and sends no webhooks"
        return [Finding("webhooks", ok=True, what=what)]
    database = Database(settings.database_url.get_secret_value(), size=2, name="doctor")
    try:
        await database.open()
        try:
            lost = await WebhookStore(database).of_unknown_keys(encryption)
        finally:
            await database.close()
    except DatabaseAway as error:
        return [Finding("webhooks", ok=False, what=str(error), mend="See database.")]
    except DatabaseRefused:
        return [Finding("webhooks", ok=True, what="this login may not look at webhooks: ask with the API's")]
    if lost:
        return [Finding("webhooks", ok=False, what=f"no key here decrypts the secrets of {lost} webhooks", mend=mend)]
    return [Finding("webhooks", ok=True, what="every secret can be decrypted")]


async def _trainer(settings: Settings) -> list[Finding]:
    """The trainer's interpreter finds the recipe and its libraries. Slow (torch): once, and here only."""
    if settings.launcher != "local":
        return [Finding("trainer", ok=True, what=f"runs through {settings.launcher}: not looked at from here")]
    program = (
        f"import importlib, json, {settings.trainer_module} as m, torch, transformers, soundfile, ctranslate2; "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.cuda.is_available()}))"
    )
    mend = "Set WORKER_TRAINER_PYTHON to an interpreter with `pip install 'speech-training-worker[trainer]'`."
    try:
        process = await asyncio.create_subprocess_exec(
            settings.trainer_python,
            "-c",
            program,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
        )
        async with asyncio.timeout(120):
            out, complaint = await process.communicate()
    except (OSError, TimeoutError) as error:
        return [Finding("trainer", ok=False, what=f"{settings.trainer_python}: {error}", mend=mend)]
    if process.returncode:
        last = complaint.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        return [Finding("trainer", ok=False, what=last, mend=mend)]
    return [Finding("trainer", ok=True, what=out.decode().strip())]


async def _isolation(settings: Settings) -> list[Finding]:
    """What keeps trainers from what is not theirs. Only where nobody turned it off is less than all worth a word."""
    if settings.launcher != "local":
        what = f"runs through {settings.launcher}: each node takes what its own kernel has"
        return [Finding("isolation", ok=True, what=what)]
    try:
        found = found_means(
            settings.trainer_isolation, processes=settings.trainer_processes, network=settings.trainer_network
        )
    except IsolationUnavailable as error:
        return [Finding("isolation", ok=False, what=str(error), mend=_MEND_ISOLATION)]
    mend = "" if found.enough or settings.trainer_isolation == "none" else _MEND_ISOLATION
    return [Finding("isolation", ok=True, what=f"trainers are {found}", mend=mend)]  # less than asked for is no fault


async def _disk(settings: Settings) -> list[Finding]:
    folder = settings.scratch if settings.scratch.exists() else Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    ok = free >= _LEAST_FREE_BYTES
    mend = "" if ok else "Free space there, or set WORKER_SCRATCH to a larger disk."
    return [Finding("scratch", ok=ok, what=f"{free / 2**30:.0f} GiB free at {folder}", mend=mend)]
