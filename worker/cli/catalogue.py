"""Organizations, base languages, models and their data, for an operator."""

import argparse
import asyncio
import json
import os
import re
import secrets
import shlex
import tempfile
from pathlib import Path
from uuid import uuid4

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas.digest import file_digest, tree_digest
from schemas.recipes import recipes, validated
from schemas.steps import ManifestRow, Step, StepSpec
from worker.api.audio_header import duration_s
from worker.app import storage_of
from worker.cli.opened import stores
from worker.cli.show import complain, rows, said
from worker.cli.values import parameters
from worker.errors import DatabaseRefused
from worker.launchers.environment import private_environment
from worker.pipeline.importer import import_data as import_files
from worker.settings import Settings
from worker.storage import Storage
from worker.storage.disk import own_folder

_SOURCE = Path(__file__).parent.parent.parent
_LARGEST_RECORD = 4_096
"""Bytes of what says where weights came from."""


async def add_organization(settings: Settings, options: argparse.Namespace) -> int:
    """Add or change a customer."""
    async with stores(settings) as opened:
        try:
            added = await opened.models.create_organization(options.id, options.name, options.max_running)
        except DatabaseRefused as error:
            return complain(f"not changed: {error}. A cap below what runs now is refused: wait, or drain first.")
    said(f"organization {added}: {options.name}", json_wanted=options.json, id=added, name=options.name)
    return 0


async def add_base_language(settings: Settings, options: argparse.Namespace) -> int:
    """Bring the base's weights into storage, then register them under their digest."""
    if options.recipe not in recipes():
        return complain(f"no recipe {options.recipe!r}; known: {', '.join(recipes())}")
    try:
        defaults = parameters(options.set)
        validated(options.recipe, defaults)
    except ValueError as error:
        return complain(f"these hyper-parameters cannot be used: {error}")
    storage = storage_of(settings)
    own_folder(settings.scratch, "WORKER_SCRATCH", settings.mask)
    try:
        with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
            weights = Path(scratch) / "weights"
            language = [] if options.language is None else [f"--language={options.language}"]
            revision = options.revision or await _known_revision(settings, storage, options.key, options.weights)
            revisions = [] if revision is None else [f"--revision={revision}"]
            arguments = (*language, *revisions, "--", options.weights, str(weights))
            status = await _trainer_program(settings, "worker.trainer.base_weights", *arguments)
            if status:
                return complain(f"weights {options.weights!r} were not brought in; the reason stands above")
            version = await asyncio.to_thread(tree_digest, weights)
            address = f"bases/{options.key}/{version[:16]}"
            await storage.upload_folder(weights, address)
            fetched = await _keep_source(storage, Path(_source_key(str(weights))), address)
            general = None
            if options.general_set is not None:
                general = await _general_set(settings, options.general_set, weights, Path(scratch))
                if general is None:
                    return complain(f"{options.general_set} could not be prepared; the reason stands above")
                general_address = f"general/{options.key}/{(await asyncio.to_thread(tree_digest, general))[:16]}"
                await storage.upload_folder(general, general_address)
        async with stores(settings) as opened:
            added = await opened.models.create_base_language(
                options.key,
                options.name or options.key,
                address,
                recipe=options.recipe,
                version=version,
                hyper_parameters=defaults,
                general_set=None if general is None else general_address,
                language=options.language or "en",
            )
    finally:
        await storage.aclose()
    said(
        f"base language {added}: {options.key} ({options.language or 'en'}), weights {version[:16]} at {address}"
        + ("" if fetched is None else f", revision {fetched} of {options.weights}"),
        json_wanted=options.json,
        id=added,
        key=options.key,
        weights=address,
        version=version,
        revision=fetched,
    )
    return 0


async def _keep_source(storage: Storage, record: Path, address: str) -> str | None:
    """Write down beside the weights in storage which commit of the hub they are; the commit, None for other sources."""
    if not record.is_file():
        return None
    content = record.read_bytes()
    await storage.put_bytes(_source_key(address), content)
    return str(json.loads(content)["revision"])


async def _known_revision(settings: Settings, storage: Storage, key: str, source: str) -> str | None:
    """The commit that a base language has of this source: its name means that one until another is asked for."""
    async with stores(settings) as opened:
        known = await opened.models.base_language_by_key(key)
    if known is None or Path(known.weights).is_absolute() or await storage.size(_source_key(known.weights)) is None:
        return None
    record = json.loads(await storage.get_bytes(_source_key(known.weights), _LARGEST_RECORD))
    return str(record["revision"]) if record.get("source") == source else None


def _source_key(address: str) -> str:
    """Beside the weights, on disk as in storage: in their folder it would be part of their digest."""
    return f"{address}.source.json"


async def _trainer_program(settings: Settings, module: str, *arguments: str, spec: str | None = None) -> int:
    """Run a program of the trainer's environment, its complaints on our standard error; the exit code."""
    process = await asyncio.create_subprocess_exec(
        settings.trainer_python,
        "-m",
        module,
        *arguments,
        cwd=_SOURCE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    await process.communicate(None if spec is None else spec.encode())
    return int(process.returncode or 0)


async def _general_set(settings: Settings, manifest: Path, base: Path, scratch: Path) -> Path | None:
    """Ordinary speech as a dataset, made by the recipe's own prepare step."""
    listed, output = scratch / "general.jsonl", scratch / "general"
    output.mkdir()
    rows_ = []
    # not splitlines(): a transcript may hold U+2028, which ends no line of JSON
    for number, line in enumerate(filter(str.strip, manifest.read_text(encoding="utf-8").split("\n"))):
        told = json.loads(line)
        audio = (manifest.parent / told["audio_filepath"]).resolve()
        rows_.append(
            ManifestRow(
                row=number,
                data_ids=[number],
                file=told["audio_filepath"],
                audio=str(audio),
                audio_sha256=await asyncio.to_thread(file_digest, audio),
                audio_bytes=audio.stat().st_size,
                text=told["text"],
                offset_s=told.get("offset"),
                duration_s=told.get("duration") if told.get("offset") is not None else None,
                speaker=told.get("speaker"),
                split=told.get("split"),
                source="jsonl",
            )
        )
    listed.write_text("".join(row.model_dump_json() + "\n" for row in rows_), encoding="utf-8")
    recipe = recipes()["whisper"]
    spec = StepSpec(
        run_id=uuid4(),
        attempt=1,
        step=Step.PREPARE,
        recipe=recipe.name,
        recipe_version=recipe.version,
        seed=0,
        parameters=validated(recipe.name, {}),
        inputs={"manifest": str(listed), "base": str(base)},
        output=str(output),
    )
    # Descriptor 3 carries events nobody reads here. It decodes recordings, so it gets no secrets.
    program = f"exec {shlex.quote(settings.trainer_python)} -m worker.trainer 3>/dev/null"
    source = os.pathsep.join(filter(None, (str(_SOURCE), os.environ.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_shell(
        program,
        cwd=_SOURCE,
        stdin=asyncio.subprocess.PIPE,
        env=private_environment(scratch) | {"PYTHONPATH": source},
    )
    await process.communicate(spec.model_dump_json().encode())
    return output / "dataset" if process.returncode == 0 else None


async def add_model(settings: Settings, options: argparse.Namespace) -> int:
    """Add a custom model."""
    key = options.key or model_key(options.name)
    async with stores(settings) as opened:
        base = await opened.models.base_language_by_key(options.base)
        if base is None:
            return complain(f"no base language {options.base!r}: see `python -m worker base-language-add`")
        try:
            added = await opened.models.create_custom_model(key, options.name, options.organization, base.id)
        except DatabaseRefused as error:
            return complain(f"not added: {error}")
    said(f"custom model {added}: {key}", json_wanted=options.json, id=added, key=key)
    return 0


def model_key(name: str) -> str:
    """A key made from a name: unique, never reused, safe in a URL."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.casefold().encode("ascii", "ignore").decode()).strip("-")[:40]
    return f"{slug or 'model'}-{secrets.token_hex(4)}"


async def versions(settings: Settings, options: argparse.Namespace) -> int:
    """List what a model has published; put one back into use."""
    async with stores(settings) as opened:
        model = await opened.models.model(options.model)
        if model is None:
            return complain(f"no custom model {options.model!r}")
        if options.serve is not None and not await opened.models.serve_version(model["id"], options.serve):
            return complain(f"{options.model} has no version {options.serve}")
        found = [dict(row) for row in await opened.models.versions(model["id"])]
    rows(
        "versions",
        found,
        ("number", "serving", "created_at", "address", "run_id", "attempt"),
        json_wanted=options.json,
    )
    return 0


async def import_data(settings: Settings, options: argparse.Namespace) -> int:
    """Add recordings to a model; every line that cannot be used is named, the others are added all the same."""
    storage = storage_of(settings)
    try:
        async with stores(settings) as opened:
            model = await opened.models.model(options.model)
            if model is None or model["deleted_at"] is not None:
                return complain(f"no custom model {options.model!r}")
            columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, transient=True, disable=options.json) as progress:
                bar = progress.add_task("import", total=None)
                report = await import_files(
                    options.manifest,
                    model["id"],
                    model["organization_id"],
                    storage,
                    opened.data,
                    lambda done, total: progress.update(bar, completed=done, total=total),
                    length_of=duration_s,
                )
    finally:
        await storage.aclose()
    for fault in report.faults:
        complain(str(fault))
    said(
        f"{report.added} files added to {model['key']}, {len(report.faults)} not",
        json_wanted=options.json,
        added=report.added,
        faults=[str(fault) for fault in report.faults],
    )
    return 0 if report.added else 1
