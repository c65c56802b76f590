"""A step's inputs from object storage onto its node, checked on the way."""

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from schemas.digest import digest_of
from schemas.events import Event, Progress
from schemas.steps import Source
from worker.concurrency import all_of
from worker.launchers.exchange.interface import InputError
from worker.launchers.exchange.signed_http import AbsentError
from worker.launchers.exchange.storage_word import InputFile
from worker.launchers.exchange.transfers import WAITING, Transfers, with_signs_of_life
from worker.launchers.recordings import Recording, nowhere, recordings_of, write_with_places

_SIGN_S: Final = 10.0
_TRIES: Final = 2
"""Of an input whose bytes are not those that they should be: the network, or the storage itself."""


async def fetch_inputs(
    sources: Mapping[str, Source],
    files: Mapping[str, Sequence[InputFile]],
    folder: Path,
    transfers: Transfers,
    tell: Callable[[Event], None],
) -> dict[str, str]:
    """Every input as a path on this node, by name.

    Args:
        sources: where they lie.
        files: what each consists of.
        folder: where they go.
        transfers: how they come.
        tell: called with signs of life while bytes move.

    Raises:
        InputError: one cannot be had.
    """
    paths = {}
    for name, source in sources.items():
        if not files.get(name) and source.sha256 != digest_of(()):
            raise InputError("input_unreachable", f"{name}: nothing lies at {source.address}")
        fetching = _fetched(source, files.get(name, ()), folder / name, transfers)
        sign = partial(tell, Progress(percent=0, note=f"fetching {name}"))
        place = await with_signs_of_life(fetching, transfers, sign, _SIGN_S)
        paths[name] = str(place / source.inside if source.inside else place)
    return paths


async def _fetched(source: Source, files: Sequence[InputFile], place: Path, transfers: Transfers) -> Path:
    try:
        await _fetch_checked(source, files, place, transfers)
        if source.lists_recordings:
            return await _with_recordings(place, place.with_name(f"{place.name}-recordings"), transfers)
    except AbsentError as error:
        raise InputError("input_unreachable", f"{source.address}: {error}") from error
    except ValueError as error:
        raise InputError("input_spoiled", f"{source.address}: {error}") from error
    except OSError as error:
        raise InputError("input_unreachable", f"{source.address}: {error}") from error
    return place


async def _fetch_checked(source: Source, files: Sequence[InputFile], place: Path, transfers: Transfers) -> None:
    await _check_room(sum(file.bytes for file in files), place.parent)
    if not files:
        await asyncio.to_thread(place.mkdir)
    targets = {file.path: _below(place, file.path) for file in files}

    async def fetch(file: InputFile) -> tuple[str, str]:
        key = f"{source.address}/{file.path}" if file.path else source.address
        return file.path, await transfers.download(key, file.bytes, targets[file.path])

    for _ in range(_TRIES):
        digests = await all_of(files, fetch, WAITING)
        found = digests[0][1] if digests and not digests[0][0] else digest_of(digests)
        if source.sha256 in (None, found):
            return
        await asyncio.to_thread(_remove, place)
    raise ValueError(f"its digest is {found[:12]}…, not {(source.sha256 or '')[:12]}…")


async def _with_recordings(manifest: Path, folder: Path, transfers: Transfers) -> Path:
    """The manifest again, with its recordings beside it. One that is lost is the step's to judge."""
    recordings = await asyncio.to_thread(recordings_of, manifest)
    await _check_room(sum(recording.bytes for recording in recordings), manifest.parent)

    async def fetch(numbered: tuple[int, Recording]) -> tuple[str, str]:
        number, recording = numbered
        for _ in range(_TRIES):
            target = folder / f"{number:07d}"
            try:
                if await transfers.download(recording.key, recording.bytes, target) == recording.sha256:
                    return recording.key, str(target)
            except AbsentError:
                break
            await asyncio.to_thread(target.unlink)
        return recording.key, nowhere(recording.key)

    places = dict(await all_of(enumerate(recordings), fetch, WAITING))
    target = manifest.with_name(f"{manifest.name}-here")
    await asyncio.to_thread(write_with_places, manifest, target, places)
    return target


def _below(place: Path, path: str) -> Path:
    """Where a file of an input goes; a bucket may hold keys that would lead elsewhere."""
    target = place / path if path else place
    if ".." in target.parts or (path and path.startswith("/")):
        raise ValueError(f"a path that leads elsewhere: {path[:80]!r}")
    return target


async def _check_room(size: int, folder: Path) -> None:
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    free = (await asyncio.to_thread(shutil.disk_usage, folder)).free
    if size > free:
        raise InputError("node_disk", f"{size} bytes to fetch, {free} free at {folder}: set TMPDIR on the nodes")


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
