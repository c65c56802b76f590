"""What became of a run's data: one verdict a file, and counts a customer can read."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.failures import FailureClass
from schemas.steps import Verdict
from schemas.verdicts import REASONS, counted
from worker.errors import StepFailed

SHOWN: Final = 200
"""Rejections that a report spells out; the counts cover all of them."""


@dataclass(frozen=True)
class DataReport:
    """What became of every file and segment of a run."""

    items: list[Verdict]
    """One for each data item, sorted by its id, the first of ``data_ids``; those of its words follow a recording's."""
    counts: dict[str, int]
    """Files and segments not used, by reason code, the commonest first."""
    seconds: dict[str, float]
    """Usable audio by split."""
    segments: dict[str, int]
    """Usable segments by split."""
    rejections: list[Verdict] = field(default_factory=list)
    """The first `SHOWN` files and segments not used."""

    @property
    def usable_s(self) -> float:
        """Seconds of audio that can be used, over all splits."""
        return sum(self.seconds.values())

    def summary(self) -> dict[str, Any]:
        """The report as it is kept on the run and shown by the API."""
        files = Counter(verdict.verdict for verdict in self.items)
        return {
            "usable_s": round(self.usable_s, 3),
            "seconds": {split: round(seconds, 3) for split, seconds in sorted(self.seconds.items())},
            "segments": dict(sorted(self.segments.items())),
            "files": {name: files[name] for name in ("accepted", "rejected", "waiting_for_pair")},
            "counts": self.counts,
            "reasons": {
                code: {"sentence": REASONS[code].sentence, "remedy": REASONS[code].remedy}
                for code in self.counts
                if code in REASONS
            },
            "rejections": [
                verdict.model_dump(mode="json", include={"file", "reason_code", "reason", "duration_s"})
                for verdict in self.rejections
            ],
            "rejections_shown": len(self.rejections),
            "rejections_total": sum(self.counts.values()),
        }


@dataclass
class _Tally:
    """One data item while verdicts come in."""

    accepted: int = 0
    seconds: float = 0.0
    recording_s: float | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, Verdict] = field(default_factory=dict)
    words: set[int] = field(default_factory=set)
    """Transcripts and manifests that a recording was judged with."""


def merge_verdicts(load: Iterable[Verdict], prepare: Iterable[Verdict]) -> DataReport:
    """Put together what was known before decoding and what decoding found.

    A file is accepted when any of its segments is. Else it has its commonest reason.
    """
    tallies: dict[int, _Tally] = defaultdict(_Tally)
    counts: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    segments: Counter[str] = Counter()
    rejections: list[Verdict] = []
    for source in (load, prepare):
        for verdict in source:
            for recording in verdict.data_ids[:1]:
                tallies[recording].words.update(verdict.data_ids[1:])
                if verdict.recording_s is not None:
                    tallies[recording].recording_s = max(tallies[recording].recording_s or 0.0, verdict.recording_s)
            if verdict.verdict == "accepted":
                length, split = verdict.duration_s or 0.0, verdict.split or "train"
                seconds[split] += length
                segments[split] += 1
                for at, item in enumerate(verdict.data_ids):
                    tallies[item].accepted += 1
                    tallies[item].seconds += length if at == 0 else 0.0
                continue
            code = verdict.reason_code or "rejected"
            counts[code] += verdict.count
            if len(rejections) < SHOWN:
                rejections.append(verdict)
            for item in verdict.data_ids:
                tallies[item].reasons[code] += verdict.count
                tallies[item].first.setdefault(code, verdict)
    return DataReport(
        items=[_of_item(item, tallies[item]) for item in sorted(tallies)],
        counts=dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))),
        seconds=dict(seconds),
        segments=dict(segments),
        rejections=rejections,
    )


def _of_item(item: int, tally: _Tally) -> Verdict:
    data_ids = [item, *sorted(tally.words)]
    if tally.accepted:
        reason = None
        if tally.reasons:
            reason = f"{tally.accepted} segments are used; not used: {counted(dict(tally.reasons))}."
        seconds = round(tally.seconds, 3) or None
        return Verdict(
            data_ids=data_ids,
            file="",
            verdict="accepted",
            reason=reason,
            duration_s=seconds,
            recording_s=tally.recording_s,
        )
    code = min(tally.reasons, key=lambda code: (-tally.reasons[code], code))
    first = tally.first[code]
    reason = first.reason or (REASONS[code].sentence if code in REASONS else code)
    if sum(tally.reasons.values()) > 1:
        reason = f"Nothing of it can be used: {counted(dict(tally.reasons))}. The first: {first.file}: {reason}"
    return first.model_copy(
        update={
            "data_ids": data_ids,
            "row": None,
            "reason_code": code,
            "reason": reason,
            "duration_s": None,
            "recording_s": tally.recording_s,
        }
    )


def check_floor(report: DataReport, minimum_s: float) -> None:
    """Fail a run only when too little is left to train on.

    Raises:
        StepFailed: class data, with the counts by reason.
    """
    if report.usable_s >= minimum_s and report.segments.get("train", 0) > 0:
        return
    told = f" Not used: {counted(report.counts)}." if report.counts else " There are no recordings with transcripts."
    if report.usable_s >= minimum_s:
        sentence = "All usable recordings are marked for development or test; none is left to train on." + told
        raise StepFailed(FailureClass.DATA, "no_training_split", sentence)
    sentence = f"Only {report.usable_s:.0f} s of the audio can be used; at least {minimum_s:.0f} s are needed.{told}"
    raise StepFailed(FailureClass.DATA, "too_little_usable_audio", sentence)
