"""Import a local manifest with its recordings, or a folder, into a model. One bad line never stops the rest."""

import asyncio
import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from schemas.digest import file_digest
from worker.concurrency import in_order
from worker.data.manifest_lines import LineError, ManifestLine, lines_of, understood
from worker.domain.data import Kind, Split, clean_name, kind_of, stem_of
from worker.storage import Storage

Value = TypeVar("Value")

_AT_ONCE: Final = 8
_PIECE: Final = 1 << 20


class DataWriter(Protocol):
    """The part of the data store that an import needs."""

    async def add(  # noqa: PLR0913 - a row has that many columns
        self,
        model_id: int,
        organization_id: int,
        *,
        name: str,
        stem: str,
        kind: str,
        size: int,
        sha256: str,
        address: str,
        duration_s: float | None = None,
        split: str | None = None,
        speaker: str | None = None,
        verdict: str = "waiting_for_pair",
    ) -> int:
        """Add a file to a model; its id."""


@dataclass(frozen=True)
class ImportFault:
    """One line or file that was not imported, and why."""

    file: str
    line: int | None
    why: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{where}: {self.why}"


@dataclass
class ImportReport:
    """What an import did."""

    added: int = 0
    faults: list[ImportFault] = field(default_factory=list)


@dataclass
class _File:
    """One file to import, and what manifests say about it."""

    path: Path
    kind: Kind
    named: bool = False
    """A manifest names it: it needs no transcript of its own."""
    duration_s: float | None = None
    splits: set[Split | None] = field(default_factory=set)
    speakers: set[str | None] = field(default_factory=set)

    def hear(self, line: ManifestLine) -> None:
        """Take in what a manifest line says about this recording."""
        self.named = True
        self.splits.add(line.split)
        self.speakers.add(line.speaker)
        if line.duration_s is not None:
            self.duration_s = max(self.duration_s or 0.0, (line.offset_s or 0.0) + line.duration_s)


async def import_data(  # noqa: PLR0913 - where from, where to, and who is told
    path: Path,
    model_id: int,
    organization_id: int,
    storage: Storage,
    data: DataWriter,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    length_of: Callable[[Path], float] | None = None,
) -> ImportReport:
    """Store files and add them to a model. A repeat changes nothing; a file of the same name is replaced.

    Names are paths relative to the manifest's folder (or to the imported folder), so two files of the same name in
    different folders stay two. A manifest can only name files below its own folder: it may come from a stranger.

    Args:
        path: a .jsonl manifest, or a folder of recordings, transcripts and manifests.
        model_id: the model to add to.
        organization_id: whose model it is.
        storage: where bytes go, under the model's own prefix by their digest.
        data: where rows go.
        progress: told files done and files in all.
        length_of: seconds that a recording says it has; where it is not given, or fails, manifests may tell.

    Raises:
        StorageAway: storage does not answer.
        DatabaseAway: the database does not answer.
    """
    report = ImportReport()
    files = await _files(path, report)
    stems = {kind: {stem_of(name) for name, file in files.items() if file.kind == kind} for kind in _KINDS}

    async def add(name: str) -> None:
        file = files[name]
        other = stems["transcript" if file.kind == "audio" else "audio"]
        ready = file.named or file.kind == "manifest" or stem_of(name) in other
        try:
            size = (await asyncio.to_thread(file.path.stat)).st_size
            sha256 = await asyncio.to_thread(file_digest, file.path)
        except OSError as error:
            report.faults.append(ImportFault(name, None, error.strerror or str(error)))
            return
        address = f"organizations/{organization_id}/models/{model_id}/data/{sha256}"
        if await storage.size(address) != size:
            await storage.put_file(await asyncio.to_thread(file.path.resolve), address)
        await data.add(
            model_id,
            organization_id,
            name=name,
            stem=stem_of(name),
            kind=file.kind,
            size=size,
            sha256=sha256,
            address=address,
            duration_s=await _length(file, length_of),
            split=_only(file.splits),
            speaker=_only(file.speakers),
            verdict="waiting_for_run" if ready else "waiting_for_pair",
        )
        report.added += 1

    progress(0, len(files))
    done = 0
    for manifests in (False, True):  # last: no run may find one whose recordings are still on their way
        names = sorted(name for name in files if (files[name].kind == "manifest") == manifests)
        async with aclosing(in_order(names, add, _AT_ONCE)) as results:
            async for _ in results:
                done += 1
                progress(done, len(files))
    return report


_KINDS: Final[tuple[Kind, ...]] = ("audio", "transcript", "manifest")


async def _files(path: Path, report: ImportReport) -> dict[str, _File]:
    """What is to be imported, by name."""
    is_folder = await asyncio.to_thread(path.is_dir)
    root = path if is_folder else path.parent
    files: dict[str, _File] = {}
    if is_folder:
        for name in await asyncio.to_thread(_walked, path):
            _take(root, name, files, report, name, None)
    elif kind_of(path.name) == "manifest":
        _take(root, path.name, files, report, path.name, None)
    else:
        report.faults.append(ImportFault(str(path), None, "this is neither a .jsonl manifest nor a folder"))
    for name in sorted(files):
        if files[name].kind == "manifest":
            await asyncio.to_thread(_follow_manifest, root, name, files, report)
    return files


def _walked(folder: Path) -> list[str]:
    names = []
    for here, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [(Path(here) / name).relative_to(folder).as_posix() for name in found if not name.startswith(".")]
    return sorted(names)


def _take(  # noqa: PLR0913 - a file, and where to say what is wrong with it
    root: Path, written: str, files: dict[str, _File], report: ImportReport, told_by: str, line: int | None
) -> _File | None:
    """Add one file by the path somebody wrote, or say why not."""
    path = Path(posixpath.normpath(posixpath.join(str(root), written.replace("\\", "/"))))
    try:
        name = clean_name(path.relative_to(root).as_posix())
        if not path.resolve(strict=True).is_relative_to(root.resolve()):
            raise ValueError(f"{written[:200]} leads out of the folder {root}")  # noqa: TRY301 - one way out
        kind = kind_of(name)
        if kind is None:
            raise ValueError(f"{name} is neither audio, transcript nor manifest by its ending")  # noqa: TRY301
        if not path.is_file():
            raise ValueError(f"{name} is no file")  # noqa: TRY301
    except FileNotFoundError:
        why = f"{written[:200]} is not there"
    except (ValueError, OSError, RuntimeError) as error:
        outside = isinstance(error, ValueError) and "is not in the subpath" in str(error)
        why = f"{written[:200]} is not below the folder {root}" if outside else str(error)
    else:
        return files.setdefault(name, _File(path, kind))
    report.faults.append(ImportFault(told_by, line, why))
    return None


def _follow_manifest(root: Path, name: str, files: dict[str, _File], report: ImportReport) -> None:
    """Add the recordings that a manifest names."""
    try:
        for number, line in lines_of(_chunks(files[name].path)):
            try:
                told = understood(line)
            except LineError as error:
                report.faults.append(ImportFault(name, number, error.sentence))
                continue
            written = posixpath.join(posixpath.dirname(name), told.audio_filepath.replace("\\", "/"))
            file = _take(root, written, files, report, name, number)
            if file is not None:
                file.hear(told)
    except OSError as error:
        report.faults.append(ImportFault(name, None, error.strerror or str(error)))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_PIECE):
            yield chunk


async def _length(file: _File, length_of: Callable[[Path], float] | None) -> float | None:
    """Seconds of a recording, for lists and limits; what it really has is found out when it is decoded."""
    if file.kind == "audio" and length_of is not None:
        with suppress(Exception):  # whatever is wrong with the file is said when it is decoded
            return round(await asyncio.to_thread(length_of, file.path), 3)
    return file.duration_s


def _only(values: set[Value]) -> Value | None:
    return next(iter(values)) if len(values) == 1 else None
