"""From storage keys to what a step can read: a path that it sees, or where its node fetches it from."""

import asyncio
from pathlib import Path
from typing import Final

from schemas.failures import FailureClass
from schemas.steps import Source
from worker.concurrency import all_of
from worker.domain.run import RunInputs
from worker.errors import NotStored, StepFailed
from worker.launchers.recordings import Recording, nowhere, recordings_of, write_with_places
from worker.pipeline.attempt import Attempt
from worker.pipeline.parts import Parts

Address = str | Source
"""Of a step's input: its path, or a source for a step that fetches."""
_FETCHES_AT_ONCE: Final = 8


async def reached(parts: Parts, source: Source) -> Address:
    """How a step gets what lies in storage. A step that fetches checks the digest itself.

    Raises:
        NotStored: there is nothing.
        Spoiled: it is something else than its digest says.
        StorageAway: storage does not answer.
    """
    if not parts.launcher.fetches:
        return inside(str(await parts.storage.materialize(source.address, sha256=source.sha256)), source.inside)
    if await parts.storage.size(source.address) is None:
        async for _ in parts.storage.listing(source.address):
            return source
        raise NotStored(source.address)
    return source


async def proven(parts: Parts, source: Source) -> Address:
    """``reached``, and checked here and now, where another choice depends on it.

    Raises:
        NotStored, Spoiled, StorageAway: see ``reached``.
    """
    if parts.launcher.fetches and source.sha256 is not None:
        await parts.storage.check(source.address, source.sha256)
        return source
    return await reached(parts, source)


def inside(address: Address, name: str) -> Address:
    """A part of a folder."""
    if not name:
        return address
    if isinstance(address, Source):
        return address.model_copy(update={"inside": name})
    return str(Path(address) / name)


async def manifest_for_step(attempt: Attempt, parts: Parts, inputs: RunInputs) -> Address:
    """The run's manifest with recordings where the step finds them, fetched and checked where they were elsewhere.

    Raises:
        StorageAway: a recording could not be fetched.
    """
    if parts.launcher.fetches:
        return Source(address=inputs.manifest, sha256=inputs.manifest_sha256, lists_recordings=True)
    source = await parts.storage.materialize(inputs.manifest, sha256=inputs.manifest_sha256)
    recordings = await asyncio.to_thread(recordings_of, source)

    async def fetched(recording: Recording) -> tuple[str, str]:
        try:
            path = str(await parts.storage.materialize(recording.key, sha256=recording.sha256))
        except NotStored:
            path = nowhere(recording.key)
        attempt.sign_of_progress()
        return recording.key, path

    paths = dict(await all_of(recordings, fetched, _FETCHES_AT_ONCE))
    target = attempt.folder / "manifest.jsonl"
    await asyncio.to_thread(write_with_places, source, target, paths)
    return str(target)


async def base_weights(parts: Parts, inputs: RunInputs) -> Address:
    """The base's weights as a folder: one on the step's machine, or below a storage key.

    Raises:
        StepFailed: they are nowhere.
    """
    folder = Path(inputs.base_weights)
    if folder.is_absolute():
        return str(folder)  # whether it is there, the step sees on its own machine
    # weights brought in by command lie under the beginning of their digest, which is their version
    known = inputs.base_weights.endswith(f"/{inputs.base_version[:16]}") and parts.launcher.fetches
    try:
        return await reached(parts, Source(address=inputs.base_weights, sha256=inputs.base_version if known else None))
    except NotStored as error:
        raise StepFailed(
            FailureClass.INFRASTRUCTURE,
            "base_weights_missing",
            "The base model of this language could not be loaded.",
            f"{inputs.base_weights}: register weights with `python -m worker base-language-add`",
        ) from error
