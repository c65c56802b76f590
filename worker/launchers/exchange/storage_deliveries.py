"""A step's checkpoints and artifacts from its node into object storage: there before anybody is told of them."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from schemas.digest import digest_of
from schemas.events import Checkpoint, Result
from schemas.steps import Step
from worker.concurrency import all_of
from worker.launchers.exchange.transfers import WAITING, Digests, TooLargeToUploadError, Transfers


class DeliveryError(Exception):
    """What the step made is not in storage.

    Attributes:
        code: ``output_not_stored``, ``output_too_large``.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


async def deliver_checkpoint(event: Checkpoint, output: Path, transfers: Transfers) -> None:
    """Store a checkpoint's files.

    Raises:
        DeliveryError: it is gone, differs from what the event says, or cannot be stored.
    """
    # links of our own: a trainer keeps only its newest checkpoints, and an upload may take longer than that
    folder = output.with_name("leaving")
    try:
        await asyncio.to_thread(shutil.copytree, _inside(output, event.path), folder, copy_function=os.link)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        digests = [await transfers.digests(_inside(folder, name)) for name in names]
        if digest_of(zip(names, (each.sha256 for each in digests), strict=True)) != event.sha256:
            raise DeliveryError("output_not_stored", f"{event.path} differs from its digest")
        files = [(folder / name, f"checkpoints/{event.steps_done:08d}/{name}") for name in names]
        await _upload(files, digests, transfers)
    except (OSError, ValueError) as error:  # a ValueError: a path that can be none
        raise DeliveryError("output_not_stored", f"{event.path}: {error}") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def deliver_result(event: Result, output: Path, step: Step, transfers: Transfers) -> None:
    """Store every artifact that a result lists.

    Raises:
        DeliveryError: one is not there, is something else, or cannot be stored.
    """
    try:
        paths = [_inside(output, artifact.path) for artifact in event.artifacts]
        digests = [await transfers.digests(path) for path in paths]
        for artifact, found in zip(event.artifacts, digests, strict=True):
            if (found.sha256, found.bytes) != (artifact.sha256, artifact.bytes):
                raise DeliveryError("output_not_stored", f"{artifact.path} differs from its digest")
        files = [(path, f"{step}/{each.path}") for path, each in zip(paths, event.artifacts, strict=True)]
        await _upload(files, digests, transfers)
    except (OSError, ValueError) as error:  # a ValueError: a path that can be none
        raise DeliveryError("output_not_stored", str(error)) from error


async def _upload(files: Sequence[tuple[Path, str]], digests: Sequence[Digests], transfers: Transfers) -> None:
    async def upload(one: tuple[tuple[Path, str], Digests]) -> None:
        (path, name), found = one
        await transfers.upload(path, name, found)

    try:
        await all_of(zip(files, digests, strict=True), upload, WAITING)
    except TooLargeToUploadError as error:
        raise DeliveryError("output_too_large", str(error)) from error


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.exists():
        raise FileNotFoundError(name)
    return path
