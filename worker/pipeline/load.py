"""Phase load: from a model's files to the run's fixed manifest. Nothing is decoded here.

Customers' texts are read in a child process (`worker.data.text_reader`): this one renews leases, and neither Python's
regular expressions nor its normalization of Unicode lets anything else run meanwhile.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from schemas.failures import FailureClass
from schemas.steps import ManifestRow
from worker.concurrency import in_order
from worker.data.manifest_lines import LineError
from worker.data.text_reader import (
    MANIFEST,
    TRANSCRIPT,
    Line,
    LineOrFault,
    ReadingLimits,
    Segment,
    SegmentOrFault,
    TextReader,
)
from worker.data.transcripts import TextError
from worker.domain.data import DataItem, is_timed, largest_transcript_bytes
from worker.errors import NotStored, StepFailed, TooLarge
from worker.pipeline.audio_names import AudioNames
from worker.pipeline.manifest_writer import Earlier, Manifest, ManifestWriter
from worker.pipeline.pairs import Pair, paired
from worker.storage import Storage

_LOST: Final = "The file was lost; please upload it again."


@dataclass(frozen=True)
class ManifestLimits:
    """What a run may ask of the worker's memory."""

    files: int = 400_000
    """Each takes 0.9 KB of memory while the manifest is made."""
    transcript_bytes: int | None = None
    """None: what `largest_transcript_bytes` says of its name."""
    manifest_bytes: int = 2 << 30
    """Read as a stream; this bounds time, not memory."""
    longest_segment_s: float = 30.0
    at_once: int = 8
    """Transcripts in memory."""
    reading: ReadingLimits = field(default_factory=ReadingLimits)
    """What the reading of one text may cost."""


@dataclass(frozen=True)
class _Refused:
    data_ids: list[int]
    where: str
    code: str
    sentence: str


@dataclass(frozen=True)
class _Read:
    """What came of one pair."""

    rows: list[ManifestRow]
    refused: list[_Refused]


class _Texts:
    """The texts of one run, read one after another by one child."""

    def __init__(self, storage: Storage, limits: ManifestLimits) -> None:
        self._storage = storage
        self._reader = TextReader(limits.reading)
        self.limits = limits

    async def lines(self, manifest: DataItem) -> AsyncGenerator[list[LineOrFault], None]:
        """What a manifest's lines say, in batches.

        Raises:
            TextError: it is too large, too much to read, or not there.
        """
        if manifest.bytes > self.limits.manifest_bytes:
            sentence = f"The manifest has more than {self.limits.manifest_bytes >> 20} MB."
            raise TextError("transcript_too_large", sentence)
        chunks = self._storage.stream(manifest.address)
        reading = self._reader.read(MANIFEST, manifest.bytes, chunks, reason_code="bad_manifest_line")
        try:
            async with aclosing(reading) as batches:
                async for batch in batches:
                    yield batch
        except NotStored:
            raise TextError("missing_file", _LOST) from None

    async def transcript(self, item: DataItem) -> list[SegmentOrFault]:
        """What is said in a transcript.

        Raises:
            TextError: nothing that can be used.
        """
        most = self.limits.transcript_bytes or largest_transcript_bytes(item.name)
        try:
            data = await self._storage.get_bytes(item.address, most)
        except NotStored:
            raise TextError("missing_file", _LOST) from None
        except TooLarge:
            raise TextError("transcript_too_large", f"The transcript has more than {most >> 20} MB.") from None
        options = {"timed": is_timed(item.name), "longest_s": self.limits.longest_segment_s}
        return await self._reader.all_of(
            TRANSCRIPT, len(data), data, reason_code="unreadable_transcript", options=options
        )

    async def aclose(self) -> None:
        """End the child."""
        await self._reader.close()


async def build_manifest(  # noqa: PLR0913 - what it reads, and how
    items: AsyncIterator[DataItem],
    storage: Storage,
    folder: Path,
    limits: ManifestLimits,
    moved: Callable[[], None] = lambda: None,
    earlier: Earlier = lambda _: None,
) -> Manifest:
    """List every candidate segment of a model's files, and say of every other file why it is none.

    The same files give the same bytes, in whatever order they were uploaded.

    Args:
        items: the model's files.
        storage: where their bytes lie.
        folder: where manifest and verdicts are written.
        limits: see `ManifestLimits`.
        moved: called now and then, as a sign of life.
        earlier: what a row was in an earlier training of the model.

    Raises:
        StepFailed: more files than `limits.files`.
        StorageAway: storage does not answer.
    """
    known = await _sorted(items, limits)
    with ManifestWriter(folder, earlier) as writer:
        audio = await _usable_audio(known, storage, writer)
        transcripts = [item for item in known if item.kind == "transcript"]
        async with aclosing(_Texts(storage, limits)) as texts:
            named = await _from_manifests(known, audio, texts, writer, moved)
            await _from_pairs(audio, named, transcripts, texts, writer, moved)
        return await asyncio.to_thread(writer.finished, {item.id: item.sha256 for item in known})


async def _sorted(items: AsyncIterator[DataItem], limits: ManifestLimits) -> list[DataItem]:
    known: list[DataItem] = []
    async for item in items:
        known.append(item)
        if len(known) > limits.files:
            sentence = f"The model has more than {limits.files:,} files; train on fewer."
            raise StepFailed(FailureClass.DATA, "too_many_files", sentence)
    return sorted(known, key=lambda item: (item.name, item.id))


async def _usable_audio(known: list[DataItem], storage: Storage, writer: ManifestWriter) -> list[DataItem]:
    """Recordings whose bytes are there. One listing for each folder instead of one question for each file."""
    audio = [item for item in known if item.kind == "audio"]
    sizes: dict[str, int] = {}
    for prefix in sorted({item.address.rpartition("/")[0] for item in audio}):
        async for stored in storage.listing(prefix):
            sizes[stored.key] = stored.bytes
    usable = []
    for item in audio:
        if sizes.get(item.address) != item.bytes:
            writer.refuse([item.id], item.name, "missing_file", "The recording was lost; please upload it again.")
        elif item.bytes == 0:
            writer.refuse([item.id], item.name, "unreadable_audio", "The recording is empty (0 bytes).")
        else:
            usable.append(item)
    return usable


async def _from_manifests(
    known: list[DataItem],
    audio: list[DataItem],
    texts: _Texts,
    writer: ManifestWriter,
    moved: Callable[[], None],
) -> set[int]:
    """Rows of .jsonl manifests; the ids of the recordings that they use."""
    names = AudioNames(item for item in known if item.kind == "audio")
    usable = {item.id for item in audio}
    named: set[int] = set()
    for manifest in (item for item in known if item.kind == "manifest"):
        lines = 0
        try:
            async with aclosing(texts.lines(manifest)) as batches:
                async for batch in batches:
                    lines += len(batch)
                    for told in batch:
                        _take_line(told, manifest, names, usable, writer, named)
                    moved()
                    await asyncio.sleep(0)  # after each batch the event loop may do something else
        except TextError as error:
            writer.refuse([manifest.id], manifest.name, error.code, error.sentence)
        else:
            if not lines:
                writer.refuse([manifest.id], manifest.name, "empty_transcript", "The manifest has no lines.")
    return named


def _take_line(  # noqa: PLR0913 - the line, what it is compared with, and where it goes
    told: LineOrFault,
    manifest: DataItem,
    names: AudioNames,
    usable: set[int],
    writer: ManifestWriter,
    named: set[int],
) -> None:
    where = f"{manifest.name}, line {told.number}"
    if told.line is None:
        assert told.fault is not None, "the type of a result says so"
        writer.refuse([manifest.id], where, told.fault.code, told.fault.sentence)
        return
    try:
        row = _row_of(told.line, manifest, names, usable)
    except LineError as error:
        writer.refuse([manifest.id], where, error.code, error.sentence)
    else:
        writer.row(row, where)
        named.add(row.data_ids[0])


def _row_of(told: Line, manifest: DataItem, names: AudioNames, usable: set[int]) -> ManifestRow:
    audio = names.find(told.audio_filepath, manifest.name)
    if audio.id not in usable:
        raise LineError("missing_file", f"{audio.name} is empty or was lost.")
    return ManifestRow(
        row=0,
        data_ids=[audio.id, manifest.id],
        file=audio.name,
        audio=audio.address,
        audio_sha256=audio.sha256,
        audio_bytes=audio.bytes,
        text=told.text,
        offset_s=told.offset_s,
        duration_s=told.duration_s,
        speaker=told.speaker or audio.speaker,
        split=told.split or audio.split or manifest.split,
        source="jsonl",
    )


async def _from_pairs(  # noqa: PLR0913 - what all sources need
    audio: list[DataItem],
    named: set[int],
    transcripts: list[DataItem],
    texts: _Texts,
    writer: ManifestWriter,
    moved: Callable[[], None],
) -> None:
    """Rows of recordings with transcripts of their own. What a manifest says of a recording beats these."""
    stems = {item.stem: item for item in audio if item.id in named}
    free = [item for item in transcripts if item.stem not in stems]
    for item in transcripts:
        if item.stem in stems:
            sentence = f"A manifest already says what is said in {stems[item.stem].name}."
            writer.refuse([item.id], item.name, "superseded", sentence)
    pairing = paired((item for item in audio if item.id not in named), free)
    for item in pairing.alone:
        missing = "transcript" if item.kind == "audio" else "recording"
        sentence = f"There is no {missing} with the name {item.stem} yet."
        writer.refuse([item.id], item.name, "waiting_for_pair", sentence)
    for item, better in pairing.spare:
        same = item.sha256 == better.sha256
        sentence = f"{better.name} {'is the same recording' if same else 'has the same name'} and is used instead."
        writer.refuse([item.id], item.name, "duplicate" if same else "same_stem", sentence)
    at_once = texts.limits.at_once
    async with aclosing(in_order(pairing.pairs, lambda pair: _read_pair(pair, texts), at_once)) as results:
        async for result in results:
            for refused in result.refused:
                writer.refuse(refused.data_ids, refused.where, refused.code, refused.sentence)
            for row in result.rows:
                writer.row(row, row.file)
            moved()


async def _read_pair(pair: Pair, texts: _Texts) -> _Read:
    """The first transcript of a pair that gives anything; what was wrong with those before it."""
    result = _Read([], [])
    for at, transcript in enumerate(pair.transcripts):
        try:
            read = _rows_of(pair.audio, transcript, await texts.transcript(transcript))
        except TextError as error:
            result.refused.append(_Refused([transcript.id], transcript.name, error.code, error.sentence))
            continue
        result.refused.extend(read.refused)
        if read.rows:
            result.rows.extend(read.rows)
            result.refused.extend(
                _Refused([other.id], other.name, "superseded", f"{transcript.name} is used for this recording.")
                for other in pair.transcripts[at + 1 :]
            )
            return result
    sentence = "None of the transcripts of this recording can be used."
    code = result.refused[-1].code
    result.refused.append(_Refused([pair.audio.id], pair.audio.name, code, sentence))
    return result


def _rows_of(audio: DataItem, transcript: DataItem, found: list[SegmentOrFault]) -> _Read:
    """Rows of one transcript: one for a .txt, one for each segment of a .vtt or .srt."""
    row = ManifestRow(
        row=0,
        data_ids=[audio.id, transcript.id],
        file=audio.name,
        audio=audio.address,
        audio_sha256=audio.sha256,
        audio_bytes=audio.bytes,
        text="",
        speaker=audio.speaker or transcript.speaker,
        split=audio.split or transcript.split,
    )
    rows = [row.model_copy(update=_fields_of(segment, row)) for segment, _ in found if segment is not None]
    refused = [
        _Refused([transcript.id], f"{transcript.name}, line {fault.line}", fault.code, fault.sentence)
        for _, fault in found
        if fault is not None
    ]
    return _Read(rows, refused)


def _fields_of(segment: Segment, row: ManifestRow) -> dict[str, Any]:
    if segment.start_ms is None or segment.end_ms is None:
        return {"text": segment.text}
    return {
        "text": segment.text,
        "offset_s": segment.start_ms / 1000,
        "duration_s": (segment.end_ms - segment.start_ms) / 1000,
        "speaker": segment.speaker or row.speaker,
        "source": "cue",
    }
