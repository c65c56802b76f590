"""From storage keys to what a step can read on this host."""

import asyncio
import json
from pathlib import Path
from typing import Final

from schemas.failures import FailureClass
from worker.concurrency import all_of
from worker.domain.run import RunInputs
from worker.errors import NotStored, StepFailed
from worker.pipeline.attempt import Attempt
from worker.pipeline.parts import Parts

_FETCHES_AT_ONCE: Final = 8


async def manifest_for_step(attempt: Attempt, parts: Parts, inputs: RunInputs) -> Path:
    """The run's manifest with recordings as files of this host, fetched and checked where they were elsewhere.

    Raises:
        StorageAway: a recording could not be fetched.
    """
    source = await parts.storage.materialize(inputs.manifest, sha256=inputs.manifest_sha256)
    recordings = await asyncio.to_thread(_recordings, source)

    async def fetched(recording: tuple[str, str]) -> tuple[str, str]:
        key, sha256 = recording
        try:
            path = str(await parts.storage.materialize(key, sha256=sha256))
        except NotStored:
            path = f"/nowhere/{key}"  # the step's verdict on it is missing_file
        attempt.sign_of_progress()
        return key, path

    paths = dict(await all_of(recordings, fetched, _FETCHES_AT_ONCE))
    target = attempt.folder / "manifest.jsonl"
    await asyncio.to_thread(_write_with_paths, source, target, paths)
    return target


def _recordings(manifest: Path) -> list[tuple[str, str]]:
    """Key and digest of each recording once; read line by line, for there may be hundreds of thousands."""
    with manifest.open(encoding="utf-8") as lines:
        return sorted({(row["audio"], row["audio_sha256"]) for row in map(json.loads, lines)})


def _write_with_paths(source: Path, target: Path, paths: dict[str, str]) -> None:
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            row["audio"] = paths[row["audio"]]
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


async def base_weights(parts: Parts, inputs: RunInputs) -> Path:
    """The base's weights as a folder: one on this host, or below a storage key.

    Raises:
        StepFailed: they are nowhere.
    """
    folder = Path(inputs.base_weights)
    if folder.is_absolute():
        return folder  # whether it is there, the step sees on its own machine
    try:
        return await parts.storage.materialize(inputs.base_weights)
    except NotStored as error:
        raise StepFailed(
            FailureClass.INFRASTRUCTURE,
            "base_weights_missing",
            "The base model of this language could not be loaded.",
            f"{inputs.base_weights}: register weights with `python -m worker base-language-add`",
        ) from error
