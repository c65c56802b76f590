"""Recordings written down by a model, as a customer of it would see them."""

import argparse
import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from worker.app import storage_of
from worker.cli.opened import stores
from worker.cli.show import complain
from worker.errors import NotStored, Spoiled
from worker.launchers.environment import private_environment
from worker.settings import Settings

_SOURCE = Path(__file__).parent.parent.parent
_RECIPE = "whisper"
_CHOSEN: Final = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""What whoever types the command may choose: the device and how many processors."""


async def transcribe(settings: Settings, options: argparse.Namespace) -> int:
    """Write down recordings with the version in use, a chosen one, or the base."""
    async with stores(settings) as opened:
        model = await opened.models.model(options.model)
        if model is None or model["deleted_at"] is not None:
            return complain(f"no custom model {options.model!r}")
        base = await opened.models.base_language(model["base_language_id"])
        published = await opened.models.versions(model["id"])
    assert base is not None, "a foreign key says so"
    if base.recipe != _RECIPE:
        return complain(f"models of recipe {base.recipe!r} cannot be tried here, only those of {_RECIPE!r}")
    chosen = options.version
    wanted = [one for one in published if (one["serving"] if chosen is None else one["number"] == chosen)]
    if options.version is not None and not wanted:
        return complain(f"{options.model} has no version {options.version}: see `python -m worker versions`")
    address, digest, language = base.weights, None, base.language
    if wanted and not options.base:  # perhaps a version from an earlier base, in another language
        address, digest, language = (wanted[0][name] for name in ("address", "sha256", "language"))
    elif not options.base:
        complain(f"{options.model} has no published version yet: this is its base, {base.key}")
    storage = storage_of(settings)
    try:
        folder = Path(address)
        if not folder.is_absolute():
            folder = await storage.materialize(address, sha256=digest)
        return await written_down(settings, folder, options.language or language, options)
    except (NotStored, Spoiled) as error:
        return complain(f"the model's files are not as they should be: {error}")
    finally:
        await storage.aclose()


async def written_down(settings: Settings, folder: Path, language: str, options: argparse.Namespace) -> int:
    """The recipe's own program, on our standard output; it decodes what strangers recorded, so it gets no secrets."""
    chosen = {name: os.environ[name] for name in _CHOSEN if name in os.environ}
    source = os.pathsep.join(filter(None, (str(_SOURCE), os.environ.get("PYTHONPATH"))))
    with TemporaryDirectory(prefix="transcribe-") as scratch:
        process = await asyncio.create_subprocess_exec(
            settings.trainer_python,
            "-m",
            "worker.trainer.transcribe",
            *(["--json"] if options.json else []),
            f"--language={language}",
            "--",
            str(folder),
            *map(str, options.audio),
            env=private_environment(Path(scratch)) | chosen | {"PYTHONPATH": source},
            stdin=asyncio.subprocess.DEVNULL,
        )
        return await process.wait()
