"""Which rows of a model's data are for training, for choosing (dev) and for measuring (test).

A pure function of the rows, so that inspection, preflight and the training agree to the row. What decides, in this
order: the customer's mark, what the row was in an earlier training of this model, the rule.

The rule takes whole recordings in the order of a digest, where there are enough of them to choose from. With few long
recordings it takes a contiguous part of each, with a gap around it. Rows that may not be trained on, because a test or
dev row has the same words or the sound beside them, are left out and counted.

Source of the sizes: an interval of the change in word error rate by drawing utterances again is honest from about 20
utterances on (``worker.domain.gate``); dev losses of fewer than 16 utterances are noise (``worker.trainer.curves``).
"""

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Final

from schemas.splits import Split

LEAST_TEST_UTTERANCES: Final = 20
LEAST_TEST_WORDS: Final = 150
LEAST_DEV_UTTERANCES: Final = 16
SHARE: Final = 0.10
"""Of the seconds, for test and for dev, where that is more than the least."""
LARGEST_TEST_SHARE: Final = 0.30
LARGEST_TEST_SHARE_OF_LITTLE: Final = 0.60
"""Of data so small that the least does not fit into the other share: without a test no model can be proven."""
LARGEST_DEV_SHARE: Final = 0.20
WHOLE_RECORDINGS_FROM: Final = 10
"""With fewer recordings one of them would be a tenth of everything, and the test would be one occasion."""
WHOLE_SPEAKERS_FROM: Final = 3
REPEATABLE_FROM: Final = 5
"""A text that occurs so often is said again and again: it tells nothing about what was learned by heart."""
REPEATABLE_WORDS: Final = 3
"""So is one of at most so many words: "four", "thank you very much" is not."""
GAP_S: Final = 2.0
"""Seconds beside a test row of the same recording that are in no other split: a word may be cut between two rows."""
_STRONGER: Final[dict[Split, tuple[Split, ...]]] = {"test": (), "dev": ("test",), "train": ("test", "dev")}
"""The splits, strongest first, each with those that keep a row that could be in both."""
_STEP: Final = 0.02
_TOUCH_S: Final = 0.1
"""Rows that overlap by no more were meant to touch."""
_OVERSHOOT: Final = 1.5
"""A unit that takes a split beyond so many times its size is taken only if smaller ones do not do."""


class LeftOut(StrEnum):
    """Why a row that could be trained on is in no split."""

    SAME_TEXT = "same_text"
    SAME_SOUND = "same_sound"
    """It overlaps a row of another split, or lies within ``GAP_S`` of a test row."""


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What the rule looks at of one usable row."""

    recording: bytes
    """Digest of the whole recording."""
    start_s: float
    """Where it begins in the recording, in seconds; 0 for a whole recording."""
    seconds: float
    words: int
    text: bytes
    """Digest of ``schemas.splits.split_text_key``."""
    speaker: str | None = None
    mark: Split | None = None
    """What the customer said."""
    earlier: Split | None = None
    """What it was in an earlier training of this model."""

    @property
    def end_s(self) -> float:
        """Where it ends in the recording, in seconds."""
        return self.start_s + self.seconds


@dataclass
class _Size:
    """How much a split holds."""

    seconds: float = 0.0
    utterances: int = 0
    words: int = 0

    def add(self, row: SplitRow) -> None:
        self.seconds += row.seconds
        self.utterances += 1
        self.words += row.words

    def plus(self, other: "_Size") -> "_Size":
        return _Size(self.seconds + other.seconds, self.utterances + other.utterances, self.words + other.words)


@dataclass(frozen=True)
class _Want:
    """What a split should reach, and what it may not exceed, in seconds."""

    seconds: float
    utterances: int
    words: int
    at_most_s: float

    def reached(self, size: _Size) -> bool:
        return size.seconds >= self.seconds and self.least(size)

    def least(self, size: _Size) -> bool:
        """Whether the size is of use at all."""
        return size.utterances >= self.utterances and size.words >= self.words


@dataclass
class _Unit:
    """Rows that go to one split together."""

    key: bytes
    rows: list[int] = field(default_factory=list)
    size: _Size = field(default_factory=_Size)


class _Spans:
    """Stretches of one recording, merged, for asking how far away the nearest of them is."""

    def __init__(self, rows: Iterable[SplitRow]) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        for row in sorted(rows, key=lambda row: row.start_s):
            if self._ends and row.start_s <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], row.end_s)
            else:
                self._starts.append(row.start_s)
                self._ends.append(row.end_s)

    def distance_s(self, row: SplitRow) -> float:
        """Seconds between a row and the nearest stretch; below 0 where they overlap, infinite where there is none."""
        after = bisect_left(self._starts, row.end_s)
        near = range(max(0, after - 1), min(after + 1, len(self._starts)))
        return min((max(row.start_s - self._ends[at], self._starts[at] - row.end_s) for at in near), default=inf)


def assign(rows: Sequence[SplitRow]) -> list[Split | LeftOut]:
    """The split of each row, or why it is in none.

    Args:
        rows: every row that can be used, each sound once.

    Returns:
        One answer a row, in their order. It does not depend on that order.
    """
    table = _Table(rows)
    splits = table.fixed()
    if None in splits:
        _choose(table, splits)
    return _left_out(table, [split or "train" for split in splits])


class _Table:
    """The rows, with what is asked of them more than once."""

    def __init__(self, rows: Sequence[SplitRow]) -> None:
        self.rows = rows
        self.seconds = sum(row.seconds for row in rows)
        self.recordings: dict[bytes, list[int]] = defaultdict(list)
        for at, row in enumerate(rows):
            self.recordings[row.recording].append(at)
        for members in self.recordings.values():
            members.sort(key=lambda at: (rows[at].start_s, rows[at].seconds, rows[at].text))
        texts = Counter(row.text for row in rows)
        self.repeatable = [row.words <= REPEATABLE_WORDS or texts[row.text] >= REPEATABLE_FROM for row in rows]
        self.closed_vocabulary = self.seconds and self._repeated_by_named() >= self.seconds / 2

    def _repeated_by_named(self) -> float:
        named = [row for row, again in zip(self.rows, self.repeatable, strict=True) if again and row.speaker]
        enough = len({row.speaker for row in named}) >= WHOLE_SPEAKERS_FROM
        return sum(row.seconds for row in named) if enough else 0.0

    def fixed(self) -> list[Split | None]:
        """What mark and earlier training say; a row without either follows what its recording has nearest to it."""
        splits: list[Split | None] = [row.mark or row.earlier for row in self.rows]
        for members in self.recordings.values():
            spans = {side: self.spans(members, splits, side) for side in _STRONGER}
            for at in members:
                if splits[at] is None:
                    splits[at] = _nearest({side: span.distance_s(self.rows[at]) for side, span in spans.items()})
        return splits

    def spans(self, members: Iterable[int], splits: Sequence[Split | None], side: Split) -> _Spans:
        return _Spans(self.rows[at] for at in members if splits[at] == side)

    def free(self, splits: Sequence[Split | None], chosen: Split) -> list[int]:
        """Rows without a split that may be chosen for one: in their recording nothing is said that a weaker one has."""
        weaker = {side for side, stronger in _STRONGER.items() if chosen in stronger}
        said = {
            row.text
            for row, split, again in zip(self.rows, splits, self.repeatable, strict=True)
            if split in weaker and not again
        }
        bound = {row.recording for row in self.rows if row.text in said}
        return [at for at, split in enumerate(splits) if split is None and self.rows[at].recording not in bound]

    def size(self, members: Iterable[int]) -> _Size:
        size = _Size()
        for at in members:
            size.add(self.rows[at])
        return size

    def units(self, free: Sequence[int], largest_s: float) -> list[_Unit]:
        """Free rows by what must stay together: a recording, a speaker who says what all say, one text."""
        root: dict[bytes, bytes] = {}

        def find(key: bytes) -> bytes:
            while root.setdefault(key, key) != key:
                root[key] = key = root[root[key]]
            return key

        recordings = {self.rows[at].recording for at in free}
        by_text: dict[bytes, bytes] = {}
        for at in free:
            row = self.rows[at]
            if not self.repeatable[at]:
                one, other = sorted((find(row.recording), find(by_text.setdefault(row.text, row.recording))))
                root[other] = one
        groups: dict[bytes, list[bytes]] = defaultdict(list)
        for recording in recordings:
            groups[find(recording)].append(recording)
        units: dict[bytes, _Unit] = {}
        for members in groups.values():
            together = sum(self.rows[at].seconds for one in members for at in self.recordings[one]) <= largest_s
            for recording in members:
                key = self._speaker_of(recording) or (min(members) if together else recording)
                unit = units.setdefault(key, _Unit(_rank(key)))
                unit.rows += self.recordings[recording]
        for unit in units.values():
            unit.size = self.size(unit.rows)
        return sorted(units.values(), key=lambda unit: unit.key)

    def _speaker_of(self, recording: bytes) -> bytes | None:
        """The speaker of a recording in which nothing is said but what everybody says, where data are of that kind."""
        members = self.recordings[recording]
        speakers = {self.rows[at].speaker for at in members}
        if not self.closed_vocabulary or len(speakers) > 1 or not all(self.repeatable[at] for at in members):
            return None
        [speaker] = speakers
        return None if speaker is None else b"speaker " + speaker.encode("utf-8", "surrogatepass")


def _nearest(distances_s: dict[Split, float]) -> Split | None:
    """The split that a row of a cut recording follows; None in a recording where nothing is settled yet.

    Where it overlaps a settled row it goes with the strongest of those, else with the nearest. Beside a test row it
    goes with another split: so a row that was left out there is left out again, and takes no other with it.
    """
    overlapped = [side for side in _STRONGER if distances_s[side] < -_TOUCH_S]
    if overlapped:
        return overlapped[0]
    near = {side: distance for side, distance in distances_s.items() if distance < inf}
    if len(near) > 1 and near.get("test", inf) < GAP_S:
        del near["test"]
    return min(reversed(near), key=near.__getitem__, default=None)


def _rank(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16, person=b"split").digest()


def _choose(table: _Table, splits: list[Split | None]) -> None:
    """Choose free rows for test and dev, in place; the rest stays free, for train."""
    marked = {side: table.size(at for at, row in enumerate(table.rows) if row.mark == side) for side in _STRONGER}
    if not _Want(0, LEAST_TEST_UTTERANCES, LEAST_TEST_WORDS, 0).least(marked["test"]):
        free, before = table.free(splits, "test"), table.size(at for at, split in enumerate(splits) if split == "test")
        for at in _chosen_test(table, free, before):
            splits[at] = "test"
    if marked["dev"].utterances < LEAST_DEV_UTTERANCES:
        free, before = table.free(splits, "dev"), table.size(at for at, split in enumerate(splits) if split == "dev")
        for at in _chosen_dev(table, free, before, splits):
            splits[at] = "dev"


def _chosen_test(table: _Table, free: list[int], before: _Size) -> set[int]:
    """Free rows for the test: the first way that gives enough of them; else what the first gives at all."""
    wholes = len(table.recordings) >= WHOLE_RECORDINGS_FROM or table.closed_vocabulary
    shares = (LARGEST_TEST_SHARE, LARGEST_TEST_SHARE_OF_LITTLE)
    ways = [(whole, share) for share in shares for whole in ((True, False) if wholes else (False,))]
    if table.closed_vocabulary:
        ways.sort(key=lambda way: not way[0])
    best: set[int] = set()
    for whole, share in ways:
        want = _Want(SHARE * table.seconds, LEAST_TEST_UTTERANCES, LEAST_TEST_WORDS, share * table.seconds)
        take = _whole if whole else _parts
        picked = take(table, free, before, want)
        if want.least(before.plus(table.size(picked))):
            return picked
        best = best or picked
    return best


def _chosen_dev(table: _Table, free: list[int], before: _Size, splits: Sequence[Split | None]) -> set[int]:
    """Free rows for dev; in recordings that are cut already, beside the test."""
    want = _Want(SHARE * table.seconds, LEAST_DEV_UTTERANCES, 0, LARGEST_DEV_SHARE * table.seconds)
    cut = any(
        len({splits[at] for at in members}) > 1 and any(splits[at] is None for at in members)
        for members in table.recordings.values()
    )
    wholes = len(table.recordings) >= WHOLE_RECORDINGS_FROM or table.closed_vocabulary
    if wholes and not cut:
        picked = _whole(table, free, before, want)
        if want.least(before.plus(table.size(picked))):
            return picked
    return _parts(table, free, before, want)


def _whole(table: _Table, free: list[int], before: _Size, want: _Want) -> set[int]:
    """Whole units by their rank, the smaller ones first where a large one would take much too much."""
    picked: set[int] = set()
    size = before
    units = table.units(free, want.at_most_s)
    for limit_s in (min(want.at_most_s, _OVERSHOOT * want.seconds), want.at_most_s):
        for unit in units:
            if want.reached(size):
                return picked
            if not picked.issuperset(unit.rows) and size.seconds + unit.size.seconds <= limit_s:
                picked.update(unit.rows)
                size = size.plus(unit.size)
    return picked


def _parts(table: _Table, free: list[int], before: _Size, want: _Want) -> set[int]:
    """A contiguous part of each recording, and of recordings that are one row each those of the first ranks."""
    if want.reached(before):
        return set()
    allowed = set(free)
    cut: list[tuple[bytes, list[int]]] = []
    clips: list[tuple[bytes, int]] = []
    for recording in {table.rows[at].recording for at in free}:
        members = [at for at in table.recordings[recording] if at in allowed]
        if len(table.recordings[recording]) > 1:
            cut.append((_rank(recording), members))
        else:
            clips.append((_rank(recording), members[0]))
    clips.sort()
    picked: set[int] = set()
    share, available = SHARE, sum(table.rows[at].seconds for at in free)
    while share <= 1 and available:
        trial = _part_of_each(table, cut, clips, share)
        if before.seconds + table.size(trial).seconds > want.at_most_s:
            break
        picked = trial
        if want.reached(before.plus(table.size(picked))):
            break
        share += _STEP
    return picked


def _part_of_each(
    table: _Table, cut: list[tuple[bytes, list[int]]], clips: list[tuple[bytes, int]], share: float
) -> set[int]:
    picked: set[int] = set()
    for rank, members in cut:
        picked.update(_block(table, members, share, int.from_bytes(rank[:8], "big") / 2**64))
    wanted_s = share * sum(table.rows[at].seconds for _, at in clips)
    for _, at in clips:
        if wanted_s <= 0:
            break
        picked.add(at)
        wanted_s -= table.rows[at].seconds
    return picked


def _block(table: _Table, members: list[int], share: float, place: float) -> list[int]:
    """Neighbouring rows with that share of the seconds; `place`, 0 to 1, says where they begin."""
    seconds = [table.rows[at].seconds for at in members]
    wanted_s = share * sum(seconds)
    begin_s = place * (sum(seconds) - wanted_s)
    block: list[int] = []
    so_far_s = held_s = 0.0
    for at, length_s in zip(members, seconds, strict=True):
        if so_far_s + length_s / 2 >= begin_s and held_s < wanted_s:
            block.append(at)
            held_s += length_s
        so_far_s += length_s
    return block


def _left_out(table: _Table, splits: list[Split]) -> list[Split | LeftOut]:
    """The splits without what would let one know another: test keeps everything, dev all but that, train the rest."""
    said: dict[Split, set[bytes]] = {"test": set(), "dev": set(), "train": set()}
    for row, split, again in zip(table.rows, splits, table.repeatable, strict=True):
        if not again:
            said[split].add(row.text)
    answers: list[Split | LeftOut] = list(splits)
    for at, (row, split) in enumerate(zip(table.rows, splits, strict=True)):
        if not table.repeatable[at] and any(row.text in said[other] for other in _STRONGER[split]):
            answers[at] = LeftOut.SAME_TEXT
    for members in table.recordings.values():
        if len({splits[at] for at in members}) > 1:
            _part_neighbours(table, members, splits, answers)
    return answers


def _part_neighbours(table: _Table, members: list[int], splits: list[Split], answers: list[Split | LeftOut]) -> None:
    """Leave out rows of one recording that overlap or touch a row of a stronger split."""
    spans = {side: table.spans(members, splits, side) for side in _STRONGER}
    for at in members:
        for stronger in _STRONGER[splits[at]]:
            gap_s = GAP_S if stronger == "test" else 0.0
            if spans[stronger].distance_s(table.rows[at]) < gap_s:
                answers[at] = LeftOut.SAME_SOUND
