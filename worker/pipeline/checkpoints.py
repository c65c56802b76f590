"""Checkpoints: stored under the attempt's own prefix, registered through the fence, found again by the next attempt."""

import asyncio
import logging
from pathlib import Path

import structlog

from schemas import events
from schemas.digest import digest_of
from schemas.steps import Source, StepSpec, checkpoint_prefix
from worker.domain.run import Checkpoint, RunInputs
from worker.errors import NotStored, Spoiled
from worker.pipeline.addresses import Address, proven
from worker.pipeline.attempt import Attempt
from worker.pipeline.parts import Parts
from worker.pipeline.patience import until_answered
from worker.storage.beneath import digest_beneath

_log = structlog.get_logger(__name__)


async def keep_checkpoint(attempt: Attempt, parts: Parts, spec: StepSpec, event: events.Checkpoint) -> None:
    """Store a checkpoint's bytes, then register it: from there on it exists and never changes.

    An adopted step tells of all its checkpoints again: those that are known, or gone meanwhile, are passed over.

    Raises:
        RunLost: another attempt owns the run.
        StorageAway: the bytes could not be stored.
    """
    adopted = spec.attempt != attempt.run.attempt
    if adopted and await _known(attempt, parts, event):
        return
    try:
        if parts.launcher.fetches:
            address = await _delivered(parts, spec, event)
        else:
            address = await _stored(attempt, parts, spec, event)
    except Spoiled:
        _log.warning("checkpoint differs from its digest", path=event.path)
        return
    except FileNotFoundError:  # the trainer keeps only its newest ones
        _log.log(logging.INFO if adopted else logging.WARNING, "checkpoint announced but not there", path=event.path)
        return
    checkpoint = Checkpoint(
        attempt.run.attempt, event.steps_done, address, event.sha256, event.bytes, spec.recipe_version
    )
    await until_answered(
        lambda: parts.runs.register_checkpoint(attempt.fence, checkpoint),
        parts.clock,
        what="register checkpoint",
    )
    parts.metrics.checkpoints.inc()
    _log.info("checkpoint registered", steps_done=event.steps_done, bytes=event.bytes)
    await _prune(attempt, parts)


async def _stored(attempt: Attempt, parts: Parts, spec: StepSpec, event: events.Checkpoint) -> str:
    """Store the bytes that lie in the step's folder; where."""
    address = f"runs/{spec.run_id}/{attempt.run.attempt}/checkpoints/{event.steps_done:08d}"
    root = Path(spec.output)  # the step lives on, and may put a link in the place of whatever is below
    try:
        found = await asyncio.to_thread(digest_beneath, root, event.path)
        if found != event.sha256:
            raise Spoiled(event.path)
        stored = await parts.storage.upload_folder(root, address, event.path)
    except (ValueError, NotADirectoryError) as error:
        raise Spoiled(str(error)) from error
    if digest_of((file.path, file.sha256) for file in stored) != event.sha256:
        raise Spoiled(event.path)  # swapped after the first look: its bytes stay unregistered, and go with the run's
    return address


async def _delivered(parts: Parts, spec: StepSpec, event: events.Checkpoint) -> str:
    """Where the node stored the bytes, and said so after it had compared their digest. Counted here, not read."""
    address = checkpoint_prefix(spec, event.steps_done)
    sizes = [stored.bytes async for stored in parts.storage.listing(address)]
    if not sizes:
        raise FileNotFoundError(address)
    if sum(sizes) != event.bytes:
        raise Spoiled(f"{address} has {sum(sizes)} bytes, not {event.bytes}")
    return address


async def _known(attempt: Attempt, parts: Parts, event: events.Checkpoint) -> bool:
    """Whether this very checkpoint was registered before, by whatever attempt of the run."""
    registered = await until_answered(
        lambda: parts.runs.checkpoints(attempt.run.id), parts.clock, what="list checkpoints"
    )
    return (event.steps_done, event.sha256) in {(known.steps_done, known.sha256) for known in registered}


async def _prune(attempt: Attempt, parts: Parts) -> None:
    """An attempt keeps its newest checkpoints and prunes its own prefix only: the rows go first."""
    registered = await until_answered(
        lambda: parts.runs.checkpoints(attempt.run.id), parts.clock, what="list checkpoints"
    )
    own = [checkpoint for checkpoint in registered if checkpoint.attempt == attempt.run.attempt]
    old = own[parts.keep_checkpoints :]
    if old:
        steps = [checkpoint.steps_done for checkpoint in old]
        await until_answered(
            lambda: parts.runs.forget_checkpoints(attempt.fence, steps),
            parts.clock,
            what="forget checkpoints",
        )
        for checkpoint in old:
            await parts.storage.delete_prefix(checkpoint.address)


async def newest_checkpoint(attempt: Attempt, parts: Parts, inputs: RunInputs) -> Address | None:
    """The newest registered checkpoint of any attempt whose bytes fit its digest; else the one before; else None."""
    registered = await until_answered(
        lambda: parts.runs.checkpoints(attempt.run.id), parts.clock, what="list checkpoints"
    )
    for checkpoint in registered:
        if checkpoint.recipe_version != inputs.recipe_version:
            _log.warning("checkpoint of another recipe version: starting over", version=checkpoint.recipe_version)
            continue
        try:
            place = await proven(parts, Source(address=checkpoint.address, sha256=checkpoint.sha256))
        except (NotStored, Spoiled) as error:
            _log.warning("checkpoint is not what it was", address=checkpoint.address, error=str(error))
            continue
        _log.info("resuming", steps_done=checkpoint.steps_done, from_attempt=checkpoint.attempt)
        return place
    return None
