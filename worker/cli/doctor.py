"""Look at everything a worker needs; say for each thing what is wrong and how to mend it."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from worker.app import storage_of
from worker.cli.show import as_json
from worker.confinement import IsolationUnavailable
from worker.domain.finding import Finding
from worker.errors import DatabaseAway, DatabaseRefused, SchemaNotReady, SchemaTooNew, WorkerError
from worker.intake.topology import check as check_broker
from worker.launchers.step_rules import found_means
from worker.settings import Settings
from worker.store.migrations import check_schema

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
        _trainer(settings),
        _isolation(settings),
        _disk(settings),
    )
    findings = [finding for group in groups for finding in group]
    if options.json:
        as_json([vars(finding) for finding in findings])
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for finding in findings:
            mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
            console.print(f"{mark} {finding.name}: {finding.what}", highlight=False)
            if finding.mend:
                console.print(f"     → {finding.mend}", highlight=False)
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
    return [Finding("storage", ok=same, what=what)]


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
        found = found_means(settings.trainer_isolation)
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
