"""One step of the recipe: started or taken over, watched, checked, kept."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from schemas import events
from schemas.digest import digest_of
from schemas.failures import FailureClass
from schemas.recipes import recipes
from schemas.steps import Source, Step, StepSpec, output_prefix
from worker.domain.run import RunInputs
from worker.errors import NotStored, Spoiled, StepFailed
from worker.launchers.interface import Ended, EndReason, Handle
from worker.launchers.verdict import StepDone, StepStopped, classify
from worker.pipeline.addresses import Address, proven, reached
from worker.pipeline.attempt import Attempt
from worker.pipeline.checkpoints import keep_checkpoint
from worker.pipeline.parts import Parts
from worker.pipeline.patience import until_answered

_WATCH_EVERY: Final = 20
"""A stall is noticed within one part in so many of its limit."""
_log = structlog.get_logger(__name__)


class Stopped(Exception):  # noqa: N818 - an outcome, not an error
    """The step was asked to stop and did; its last registered checkpoint counts."""


@dataclass(frozen=True)
class Made:
    """What a step left: complete, checked, in storage."""

    place: Address
    """Where later steps find it, to be read only."""
    address: str
    """Storage prefix."""
    sha256: str
    figures: dict[str, Any]
    reused: bool


def content_key(step: Step, inputs: RunInputs, *made_from: str) -> str:
    """The key under which a step's output is kept: everything that decides its bytes."""
    parameters = inputs.parameters
    deciding = recipes()[inputs.recipe].dataset_parameters
    if step is Step.PREPARE and deciding is not None:
        parameters = {name: value for name, value in parameters.items() if name in deciding}
    facts = [step.value, inputs.recipe, inputs.recipe_version, parameters, *made_from]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


async def run_step(  # noqa: PLR0913 - a step is told many things
    attempt: Attempt,
    parts: Parts,
    step: Step,
    inputs: RunInputs,
    addresses: dict[str, Address],
    key: str,
    *,
    context: dict[str, Any] | None = None,
) -> Made:
    """Give back what the step made from the same content earlier, or run it and keep what it makes.

    Raises:
        StepFailed: with its class.
        Stopped: it was asked to stop.
        LauncherUnavailable: there is no place for it now.
        StorageAway: its output could not be kept.
        RunLost: another attempt owns the run.
    """
    kept = await _kept(attempt, parts, key)
    if kept is not None:
        _log.info("step not repeated", step=step.value, address=kept.address)
        return kept
    if attempt.ending is not None:
        raise Stopped  # the step before ended well just as we were asked to end: no time to begin another
    output = attempt.folder / step.value
    output.mkdir(parents=True, exist_ok=True)
    spec = StepSpec(
        run_id=attempt.run.id,
        attempt=attempt.run.attempt,
        step=step,
        recipe=inputs.recipe,
        recipe_version=inputs.recipe_version,
        seed=inputs.seed,
        language=inputs.language,
        parameters=inputs.parameters,
        inputs={name: path for name, path in addresses.items() if isinstance(path, str)},
        sources={name: source for name, source in addresses.items() if isinstance(source, Source)},
        output=str(output),
        context=context or {},
    )
    with parts.tracing.span(f"step {step}", step=step.value):
        async with _started(attempt, parts, spec) as handle:
            result = _result(await _watch(attempt, parts, handle))
            # kept before the handle is let go: until then another worker can adopt what has ended
            return await _keep(attempt, parts, handle.spec, result, key)


@contextlib.asynccontextmanager
async def _started(attempt: Attempt, parts: Parts, spec: StepSpec) -> AsyncIterator[Handle]:
    """The step's process, taken over or new; gone when the block is left, however it is left."""
    lease_s = attempt.right_left_s()
    handle = await parts.launcher.adopt(spec.run_id, spec.attempt, spec.step, lease_s=lease_s, log=attempt.log)
    if handle is not None and handle.spec.recipe_version != spec.recipe_version:
        _log.warning("step of another recipe version: starting over", version=handle.spec.recipe_version)
        await handle.kill()
        handle = None
    if handle is None:
        await parts.launcher.ensure_stopped(spec.run_id, spec.attempt)
        handle = await parts.launcher.start(spec, lease_s=attempt.right_left_s(), log=attempt.log)
    attempt.runs_under(handle)
    try:
        yield handle
    finally:
        attempt.runs_under(None)
        await asyncio.shield(handle.kill())
        attempt.taken_over = (await handle.wait()).reason is EndReason.TAKEN_OVER


async def _watch(attempt: Attempt, parts: Parts, handle: Handle) -> Ended:
    """Follow the step's events to its end; end it when nothing moves for too long."""
    # what the handle says, not what we would have said: an adopted step writes where its own attempt told it to
    spec = handle.spec
    stalled = False
    following = False  # our turn: a checkpoint is being stored, and no further event is read

    async def end_when_stalled() -> None:
        nonlocal stalled
        limit_s = parts.timing.stall_s
        while True:
            await parts.clock.sleep(limit_s / _WATCH_EVERY)
            with contextlib.suppress(OSError):  # in use, says this to whoever clears old folders
                os.utime(Path(spec.output).parent)
            if following or attempt.right_left_s() == 0 or handle.waits:
                attempt.sign_of_progress()  # kept waiting or paused by us, or not begun by its cluster: no stall
            elif parts.clock.monotonic() - attempt.progress_at > limit_s:
                stalled = True
                await handle.kill()
                return

    watcher = asyncio.create_task(end_when_stalled())
    try:
        async for event in handle.events():
            following = True
            await _follow(attempt, parts, spec, event)
            following = False
        ended = await handle.wait()
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
    parts.metrics.dropped_events.inc(ended.dropped_events)
    parts.metrics.paused_s.inc(ended.paused_s)
    parts.metrics.trainer_cpu_s.inc(ended.cpu_s)
    if stalled:
        raise StepFailed(
            FailureClass.STALLED,
            f"stalled_in_{spec.step.value}",
            "The training stopped making progress.",
            f"no progress for {parts.timing.stall_s:.0f} s in step {spec.step.value}\n{ended.detail}",
        )
    return ended


async def _follow(attempt: Attempt, parts: Parts, spec: StepSpec, event: events.Event) -> None:
    match event:
        case events.Progress():
            attempt.advance(event.percent, event.eta_s)
            if spec.step is Step.TRAIN and event.audio_s is not None:
                parts.metrics.audio_s.inc(attempt.audio_since(event.audio_s))
        case events.Metric():
            attempt.note_figure(event.name, event.value, event.steps_done)
        case events.Checkpoint():
            attempt.sign_of_progress()
            await keep_checkpoint(attempt, parts, spec, event)
        case _:
            attempt.sign_of_progress()


def _result(ended: Ended) -> events.Result:
    match classify(ended):
        case StepDone(result):
            facts = {"max_rss_bytes": ended.max_rss_bytes, "cpu_s": round(ended.cpu_s, 2)}
            return result.model_copy(update={"figures": result.figures | {"process": facts}})
        case StepStopped():
            raise Stopped
        case StepFailed() as failure:
            raise failure


async def _kept(attempt: Attempt, parts: Parts, key: str) -> Made | None:
    """The output of an earlier step with the same content key, if its bytes are still what they were."""
    organization_id = attempt.run.organization_id
    row = await until_answered(
        lambda: parts.runs.find_step_output(organization_id, key), parts.clock, what="find step output"
    )
    if row is None:
        return None
    try:
        place = await proven(parts, Source(address=row["address"], sha256=row["sha256"]))
        return Made(place, row["address"], row["sha256"], row["result"], reused=True)
    except (NotStored, Spoiled) as error:
        _log.warning("kept output is not what it was", address=row["address"], error=str(error))
    await until_answered(
        lambda: parts.runs.forget_step_output(organization_id, key), parts.clock, what="forget step output"
    )
    return None


async def _keep(attempt: Attempt, parts: Parts, spec: StepSpec, result: events.Result, key: str) -> Made:
    """Check what the step says it left, have it in storage, and say so through the fence."""
    if parts.launcher.fetches:
        address = await _delivered(parts, spec, result)
    else:
        address = await _stored(attempt, parts, spec, result)
    attempt.sign_of_progress()
    sha256 = digest_of((artifact.path, artifact.sha256) for artifact in result.artifacts)
    size = sum(artifact.bytes for artifact in result.artifacts)
    await until_answered(
        lambda: parts.runs.store_step_output(
            attempt.fence, key, spec.step.value, address, sha256, size, result.figures
        ),
        parts.clock,
        what="store step output",
    )
    place: Address = spec.output
    if parts.launcher.fetches:
        place = Source(address=address, sha256=sha256)
    elif spec.attempt != attempt.run.attempt:  # adopted: the folder of the attempt that started it may be cleared
        place = await reached(parts, Source(address=address, sha256=sha256))
    return Made(place, address, sha256, result.figures, reused=False)


async def _stored(attempt: Attempt, parts: Parts, spec: StepSpec, result: events.Result) -> str:
    """Store what lies in the step's folder under this attempt's own prefix; where."""
    folder = Path(spec.output)
    await asyncio.to_thread(_leave_artifacts_only, folder, result)
    address = f"runs/{spec.run_id}/{attempt.run.attempt}/{spec.step.value}"
    try:
        stored = await parts.storage.upload_folder(folder, address)
    except ValueError as error:  # something came in between that is no file
        raise _differs(str(error)) from error
    if {file.path: file.sha256 for file in stored} != {artifact.path: artifact.sha256 for artifact in result.artifacts}:
        raise _differs("the digests of its artifacts")
    return address


async def _delivered(parts: Parts, spec: StepSpec, result: events.Result) -> str:
    """Where the node stored it, read through once: from here on it counts."""
    address = output_prefix(spec)
    try:
        await parts.storage.check(address, digest_of((one.path, one.sha256) for one in result.artifacts))
    except NotStored as error:
        raise _differs(str(error)) from error
    return address


def _leave_artifacts_only(folder: Path, result: events.Result) -> None:
    """What the step did not list (checkpoints, temporary files) goes; what it listed must be there.

    Raises:
        StepFailed: it is not, or is no plain file inside the folder.
    """
    listed = {artifact.path: artifact.bytes for artifact in result.artifacts}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: something listed lies in it
                path.rmdir()
        elif path.is_symlink() or path.relative_to(folder).as_posix() not in listed:
            path.unlink()
    for name, size in listed.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size != size:
            raise _differs(name)


def _differs(what: str) -> StepFailed:
    sentence = "The training program did not leave what it said."
    return StepFailed(FailureClass.BUG, "artifact_differs", sentence, what)
