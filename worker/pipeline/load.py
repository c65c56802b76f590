"""Phase load: from a model's files to the run's fixed manifest. Nothing is decoded here."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from schemas.failures import FailureClass
from schemas.steps import ManifestRow
from worker.concurrency import in_order
from worker.domain.data import TIMED_SUFFIXES, DataItem
from worker.errors import NotStored, StepFailed, TooLarge
from worker.pipeline.audio_names import AudioNames
from worker.pipeline.cues import pieces_of
from worker.pipeline.manifest_lines import LineError, lines_of, understood
from worker.pipeline.manifest_writer import Earlier, Manifest, ManifestWriter
from worker.pipeline.pairs import Pair, paired
from worker.pipeline.transcripts import TranscriptError, cues_of, utterance
from worker.storage import Storage

_YIELD_EVERY = 200
"""Manifest lines between two moments in which the event loop may do something else."""


@dataclass(frozen=True)
class ManifestLimits:
    """What a run may ask of the worker's memory."""

    files: int = 400_000
    """Each takes 0.9 KB of memory while the manifest is made."""
    transcript_bytes: int = 16 << 20
    """A .vtt of a whole day has about 2 MB."""
    manifest_bytes: int = 2 << 30
    """Read as a stream; this bounds time, not memory."""
    longest_segment_s: float = 30.0
    at_once: int = 8
    """Transcripts in memory."""


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
        named = await _from_manifests(known, audio, storage, writer, limits, moved)
        transcripts = [item for item in known if item.kind == "transcript"]
        await _from_pairs(audio, named, transcripts, storage, writer, limits, moved)
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


async def _from_manifests(  # noqa: PLR0913 - what all sources need
    known: list[DataItem],
    audio: list[DataItem],
    storage: Storage,
    writer: ManifestWriter,
    limits: ManifestLimits,
    moved: Callable[[], None],
) -> set[int]:
    """Rows of .jsonl manifests; the ids of the recordings that they use."""
    names = AudioNames(item for item in known if item.kind == "audio")
    usable = {item.id for item in audio}
    named: set[int] = set()
    for manifest in (item for item in known if item.kind == "manifest"):
        lines = 0
        if manifest.bytes > limits.manifest_bytes:
            sentence = f"The manifest has more than {limits.manifest_bytes >> 20} MB."
            writer.refuse([manifest.id], manifest.name, "transcript_too_large", sentence)
            continue
        try:
            async for number, line in lines_of(storage.stream(manifest.address)):
                lines += 1
                where = f"{manifest.name}, line {number}"
                try:
                    row = _row_of(line, manifest, names, usable)
                except LineError as error:
                    writer.refuse([manifest.id], where, error.code, error.sentence)
                else:
                    writer.row(row, where)
                    named.add(row.data_ids[0])
                if lines % _YIELD_EVERY == 0:
                    moved()
                    await asyncio.sleep(0)
        except NotStored:
            writer.refuse([manifest.id], manifest.name, "missing_file", _LOST)
        else:
            if not lines:
                writer.refuse([manifest.id], manifest.name, "empty_transcript", "The manifest has no lines.")
    return named


def _row_of(line: bytes | None, manifest: DataItem, names: AudioNames, usable: set[int]) -> ManifestRow:
    told = understood(line)
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
    storage: Storage,
    writer: ManifestWriter,
    limits: ManifestLimits,
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
    async with aclosing(
        in_order(pairing.pairs, lambda pair: _read_pair(pair, storage, limits), limits.at_once)
    ) as results:
        async for result in results:
            for refused in result.refused:
                writer.refuse(refused.data_ids, refused.where, refused.code, refused.sentence)
            for row in result.rows:
                writer.row(row, row.file)
            moved()


async def _read_pair(pair: Pair, storage: Storage, limits: ManifestLimits) -> _Read:
    """The first transcript of a pair that gives anything; what was wrong with those before it."""
    result = _Read([], [])
    for at, transcript in enumerate(pair.transcripts):
        try:
            data = await storage.get_bytes(transcript.address, limits.transcript_bytes)
            read = await asyncio.to_thread(_rows_of, pair.audio, transcript, data, limits)
        except TranscriptError as error:
            result.refused.append(_Refused([transcript.id], transcript.name, error.code, error.sentence))
            continue
        except NotStored:
            result.refused.append(_Refused([transcript.id], transcript.name, "missing_file", _LOST))
            continue
        except TooLarge:
            sentence = f"The transcript has more than {limits.transcript_bytes >> 20} MB."
            result.refused.append(_Refused([transcript.id], transcript.name, "transcript_too_large", sentence))
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


def _rows_of(audio: DataItem, transcript: DataItem, data: bytes, limits: ManifestLimits) -> _Read:
    """Rows of one transcript: one for a .txt, one for each segment of a .vtt or .srt."""
    ids = [audio.id, transcript.id]
    row = ManifestRow(
        row=0,
        data_ids=ids,
        file=audio.name,
        audio=audio.address,
        audio_sha256=audio.sha256,
        audio_bytes=audio.bytes,
        text="",
        speaker=audio.speaker or transcript.speaker,
        split=audio.split or transcript.split,
    )
    if PurePosixPath(transcript.name).suffix.lower() not in TIMED_SUFFIXES:
        return _Read([row.model_copy(update={"text": utterance(data)})], [])
    cues, faults = cues_of(data)
    pieces, long = pieces_of(cues, limits.longest_segment_s)
    rows = [
        row.model_copy(
            update={
                "text": piece.text,
                "offset_s": piece.start_ms / 1000,
                "duration_s": (piece.end_ms - piece.start_ms) / 1000,
                "speaker": piece.speaker or row.speaker,
                "source": "cue",
            }
        )
        for piece in pieces
    ]
    refused = [
        _Refused([transcript.id], f"{transcript.name}, line {fault.line}", fault.code, fault.sentence)
        for fault in sorted(faults + long, key=lambda fault: fault.line)
    ]
    return _Read(rows, refused)


_LOST = "The file was lost; please upload it again."
