"""Step `prepare`: a verdict for every row of the manifest, and a dataset of what can be trained on."""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from schemas.steps import ManifestRow, Verdict
from worker.trainer.audio import SAMPLE_RATE
from worker.trainer.segments import Segment, cores, decoded
from worker.trainer.splits import Splits
from worker.trainer.step import StepRun, write_json
from worker.trainer.tokens import Lengths
from worker.trainer.verdicts import Refusal

DATASET: Final = "dataset"
VERDICTS: Final = "verdicts.jsonl"
_SPEAKERS_SHOWN: Final = 50
_CHECK_STOP_EVERY: Final = 16


def run(run: StepRun) -> None:
    """Decode, judge, write; a dataset that an earlier process of this attempt finished is used again."""
    manifest = run.input("manifest")
    key = _content_key(manifest, run)
    ready = run.output / DATASET
    summary = _summary_of(ready)
    if summary is None or summary["key"] != key:
        shutil.rmtree(ready, ignore_errors=True)
        summary = _make(run, manifest, key)
    # Nothing usable is a result too: its verdicts tell the customer why, and the worker knows the floor.
    figures = {name: value for name, value in summary.items() if name != "audio_sha256"}
    run.result(
        {**figures, "speakers": dict(list(summary["speakers"].items())[:_SPEAKERS_SHOWN])},
        [VERDICTS, *(f"{DATASET}/{name}" for name in ("audio.i16", "index.jsonl", "summary.json"))],
        {f"{DATASET}/audio.i16": summary["audio_sha256"]},
    )


def rows(manifest: Path) -> Iterator[ManifestRow]:
    """The manifest's rows, one at a time."""
    with manifest.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield ManifestRow.model_validate_json(line)


def _content_key(manifest: Path, run: StepRun) -> str:
    """Same content, same recipe, same settings: same dataset."""
    digest = hashlib.sha256(f"{run.spec.recipe} {run.spec.recipe_version} {run.parameters}\n".encode())
    for row in rows(manifest):
        digest.update(row.model_dump_json(exclude={"audio"}).encode())
    return digest.hexdigest()


def _summary_of(dataset: Path) -> dict[str, Any] | None:
    path = dataset / "summary.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _make(run: StepRun, manifest: Path, key: str) -> dict[str, Any]:
    partial = run.output / f".{DATASET}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with manifest.open("rb") as lines:
        total = sum(1 for line in lines if line.strip())
    with (partial / "audio.i16").open("wb") as audio:
        sounds = _Sounds(audio, Lengths(lambda: run.input("base")))
        for done, segment in enumerate(decoded(rows(manifest), run.parameters, cores()), start=1):
            sounds.take(segment)
            if done % _CHECK_STOP_EVERY == 0:
                run.stop.check()
                run.progress(100 * done / total, audio_s=sounds.end / SAMPLE_RATE, note="reading recordings")
    judged = _Judge(
        Splits(lambda: ((row, place) for row, place in sounds.of(rows(manifest)) if isinstance(place, range)))
    )
    with (
        (partial / "index.jsonl").open("w", encoding="utf-8") as index,
        (run.output / VERDICTS).open("w", encoding="utf-8") as verdicts,
    ):
        for (row, place), recording_s in zip(sounds.of(rows(manifest)), sounds.recording_s, strict=True):
            told = {} if recording_s < 0 else {"recording_s": round(recording_s, 3)}
            verdicts.write(judged.take(row, place, index).model_copy(update=told).model_dump_json() + "\n")
    summary = {"key": key, "rows": total, **judged.summary(), "audio_sha256": sounds.sha256}
    write_json(partial / "summary.json", summary)
    partial.rename(run.output / DATASET)
    return summary


class _Sounds:
    """The sound of every row that has a good one, written once however many rows bring it, and why others have none.

    Holds 20 bytes for each row, and about 150 for each sound.
    """

    def __init__(self, audio: IO[bytes], lengths: Lengths) -> None:
        self.end = 0
        """In samples."""
        self._audio, self._lengths = audio, lengths
        self._digest = hashlib.sha256()
        self._known: dict[bytes, int] = {}
        self._starts, self._ends = array("q"), array("q")
        self.recording_s = array("f")
        """Of the recording of each row; negative where that is unknown."""
        self._refusals: dict[int, Refusal] = {}

    def take(self, segment: Segment) -> None:
        """Write the next row's sound if it is good and new."""
        refusal, samples = segment.refusal or self._lengths.refusal(segment.row.text), segment.samples
        start = end = 0
        if refusal is not None or samples is None:
            assert refusal is not None
            self._refusals[len(self._starts)] = refusal
        else:
            start = self._known.setdefault(segment.fingerprint, self.end)
            end = start + len(samples)
            if start == self.end:
                sound = samples.astype("<i2", copy=False).data
                self._audio.write(sound)
                self._digest.update(sound)
                self.end = end
        self._starts.append(start)
        self._ends.append(end)
        self.recording_s.append(-1.0 if segment.recording_s is None else segment.recording_s)

    def of(self, rows: Iterable[ManifestRow]) -> Iterator[tuple[ManifestRow, range | Refusal]]:
        """Each of the rows, which are those that were taken, with its samples' place or what is wrong with it."""
        for number, (row, start, end) in enumerate(zip(rows, self._starts, self._ends, strict=True)):
            yield row, self._refusals.get(number) or range(start, end)

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()


class _Judge:
    """Says of every row whether it is used, and counts everything."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self._seconds: Counter[str] = Counter()
        self._segments: Counter[str] = Counter()
        self._speakers: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    def take(self, row: ManifestRow, place: range | Refusal, index: IO[str]) -> Verdict:
        """List one row if it is good, and say what became of it."""
        split = place if isinstance(place, Refusal) else self._splits.of(row, place)
        if isinstance(place, Refusal) or isinstance(split, Refusal):
            refusal = place if isinstance(place, Refusal) else split
            assert isinstance(refusal, Refusal)
            self._rejected[refusal.code] += 1
            return Verdict(
                data_ids=row.data_ids,
                row=row.row,
                file=row.file,
                verdict="rejected",
                reason_code=refusal.code,
                reason=refusal.sentence,
                duration_s=row.duration_s,
            )
        seconds = len(place) / SAMPLE_RATE
        entry = {
            "row": row.row,
            "start_sample": place.start,
            "samples": len(place),
            "text": row.text.strip(),
            "speaker": row.speaker,
            "split": split,
            "file": row.file,
            "offset_s": row.offset_s,
        }
        index.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._segments[split] += 1
        self._seconds[split] += seconds  # type: ignore[assignment] # a Counter adds floats as well
        self._speakers[row.speaker or ""] += seconds  # type: ignore[assignment]
        return Verdict(
            data_ids=row.data_ids,
            row=row.row,
            file=row.file,
            verdict="accepted",
            duration_s=round(seconds, 3),
            split=split,
        )

    def summary(self) -> dict[str, Any]:
        """Counts and seconds, for the data report."""
        return {
            "accepted": sum(self._segments.values()),
            "rejected": dict(self._rejected.most_common()),
            "segments": dict(self._segments),
            "seconds": {split: round(seconds, 3) for split, seconds in self._seconds.items()},
            "usable_s": round(sum(self._seconds.values()), 3),
            "speakers": {name: round(seconds, 3) for name, seconds in self._speakers.most_common()},
        }
