"""Writes a run's manifest row by row, and beside it what is known without decoding."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from schemas.splits import RowKey, Split, row_key, split_text_key
from schemas.steps import ManifestRow, Verdict

Earlier = Callable[[ManifestRow], Split | None]

SPELLED_OUT: Final = 1_000
"""Refusals of one file for one reason; of a broken manifest a line of two bytes makes a verdict of two hundred."""


@dataclass(frozen=True)
class Manifest:
    """A run's fixed list of candidate segments, on this host."""

    path: Path
    """JSON lines of ``ManifestRow``."""
    sha256: str
    rows: int
    verdicts_path: Path
    """JSON lines of ``Verdict``: what is not used, as far as that is known without decoding."""
    counts: dict[str, int]
    """Refusals by reason code."""
    digests_path: Path
    """One JSON object: SHA-256 of every file by its id, whether it is used or not."""

    @property
    def verdicts(self) -> Iterator[Verdict]:
        """The verdicts, read as they are asked for."""
        return verdicts_in(self.verdicts_path)


def verdicts_in(path: Path) -> Iterator[Verdict]:
    """The verdicts of a file of JSON lines, read as they are asked for."""
    with path.open("rb") as lines:
        for line in filter(bytes.strip, lines):
            yield Verdict.model_validate_json(line)


def splits_in(manifest: Path, verdicts: Path) -> Iterator[tuple[RowKey, Split]]:
    """The split of every row that is used, from a manifest and the step's verdicts on its rows.

    Two transcripts of one stretch of sound are one row here: the first that is used.
    """
    used = {verdict.row: verdict.split for verdict in verdicts_in(verdicts) if verdict.split is not None}
    told: set[RowKey] = set()
    with manifest.open("rb") as lines:
        for row in (ManifestRow.model_validate_json(line) for line in lines if line.strip()):
            key, split = row_key(row.audio_sha256, row.offset_s), used.get(row.row)
            if split is not None and key not in told:
                told.add(key)
                yield key, split


class ManifestWriter:
    """Rows and verdicts, in the order they come; holds 16 bytes for each row.

    Args:
        folder: where they are written.
        earlier: what a row was in an earlier training of the model.
    """

    def __init__(self, folder: Path, earlier: Earlier) -> None:
        self._earlier = earlier
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "manifest.jsonl"
        self._verdicts_path = folder / "verdicts.jsonl"
        self._digests_path = folder / "digests.json"
        self._rows = self._path.open("wb")
        self._verdicts = self._verdicts_path.open("wb")
        self._digest = hashlib.sha256()
        self._count = 0
        self._counts: Counter[str] = Counter()
        self._seen: set[bytes] = set()
        self._told: dict[tuple[int | str, ...], tuple[int, Verdict]] = {}
        """Of the file that is being read: how many refusals of each kind it has, and the last of them."""
        self._reading: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        self._verdicts.close()

    def row(self, row: ManifestRow, where: str) -> None:
        """Add a candidate; the same recording with the same words a second time is a duplicate.

        Args:
            row: its number is set here.
            where: file, or file and line, for the verdict on a duplicate.
        """
        told = f"{row.audio_sha256}\n{row.offset_s or 0.0}\n{split_text_key(row.text)}"
        key = hashlib.blake2b(told.encode(), digest_size=16).digest()
        if key in self._seen:
            sentence = "The same recording with the same words is already there."
            self.refuse(row.data_ids, where, "duplicate", sentence)
            return
        self._seen.add(key)
        line = (
            row.model_copy(update={"row": self._count, "earlier": self._earlier(row)}).model_dump_json().encode()
            + b"\n"
        )
        self._rows.write(line)
        self._digest.update(line)
        self._count += 1

    def refuse(self, data_ids: list[int], where: str, code: str, sentence: str) -> None:
        """Say why something is not used; from `SPELLED_OUT` of a kind on, how many more a file has.

        Args:
            data_ids: the last is the file that is being read.
            where: file, or file and line.
            code: see ``schemas.verdicts``.
            sentence: for its owner.
        """
        if data_ids[-1] != self._reading:
            self._count_the_rest()
            self._reading = data_ids[-1]
        waiting = code == "waiting_for_pair"
        verdict = Verdict(
            data_ids=data_ids,
            file=where,
            verdict="waiting_for_pair" if waiting else "rejected",
            reason_code=code,
            reason=sentence,
        )
        told = self._told.get((*data_ids, code), (0, verdict))[0] + 1
        self._told[(*data_ids, code)] = (told, verdict)
        if told <= SPELLED_OUT:
            self._verdicts.write(verdict.model_dump_json().encode() + b"\n")
        self._counts[code] += 1

    def _count_the_rest(self) -> None:
        """One verdict for all refusals of a kind that were not spelled out."""
        for told, verdict in self._told.values():
            if told > SPELLED_OUT:
                rest = verdict.model_copy(update={"count": told - SPELLED_OUT})
                self._verdicts.write(rest.model_dump_json().encode() + b"\n")
        self._told.clear()

    def finished(self, digests: dict[int, str]) -> Manifest:
        """Everything is written but what the files held, by their ids."""
        self._count_the_rest()
        self._rows.close()
        self._verdicts.close()
        self._digests_path.write_text(json.dumps(digests), encoding="ascii")
        counts = dict(sorted(self._counts.items()))
        return Manifest(
            self._path, self._digest.hexdigest(), self._count, self._verdicts_path, counts, self._digests_path
        )
