"""From cues to training segments: cut between cues, never inside one."""

from dataclasses import dataclass
from typing import Final

from worker.data.transcripts import Cue, Fault

_OVERLAP_MS: Final = 100
"""Cues that overlap by less were meant to touch."""
_PAUSE_MS: Final = 1_500
"""A longer silence ends a segment: there is nothing to learn from it."""
_GOOD_MS: Final = 8_000
"""From here on a segment ends with the next finished sentence."""
_ENOUGH_MS: Final = 20_000
"""From here on it ends with the next cue, finished or not: long windows cost more than they teach."""
_FINISHED: Final = (".", "!", "?", "…", "。", "！", "？", '."', '!"', '?"', ".”", "!”", "?”", "।", "؟")  # noqa: RUF001


@dataclass(frozen=True)
class Piece:
    """One training segment of a long recording."""

    start_ms: int
    end_ms: int
    text: str
    speaker: str | None


@dataclass(frozen=True)
class _Group:
    """Cues that sound at the same time, and so cannot be cut apart."""

    cues: tuple[Cue, ...]

    @property
    def start_ms(self) -> int:
        return self.cues[0].start_ms

    @property
    def end_ms(self) -> int:
        return max(cue.end_ms for cue in self.cues)

    @property
    def speaker(self) -> str | None:
        speakers = {cue.speaker for cue in self.cues}
        return speakers.pop() if len(speakers) == 1 else None

    @property
    def text(self) -> str:
        return " ".join(cue.text for cue in self.cues)


def pieces_of(cues: list[Cue], longest_s: float) -> tuple[list[Piece], list[Fault]]:
    """Segments of at most `longest_s` seconds, and the cues that cannot be part of one.

    Args:
        cues: sorted by their times.
        longest_s: the longest segment.

    Returns:
        Segments in the order of their times. Cues join while one speaker goes on without a long pause, until a
        sentence ends after 8 s or anything ends after 20 s.
    """
    longest_ms = round(longest_s * 1000)
    pieces: list[Piece] = []
    faults: list[Fault] = []
    open_groups: list[_Group] = []
    for group in _groups(cues):
        if group.end_ms - group.start_ms > longest_ms:
            faults.append(_too_long(group, longest_s))
            _close(open_groups, pieces)
            continue
        if open_groups and not _joins(open_groups, group, longest_ms):
            _close(open_groups, pieces)
        open_groups.append(group)
    _close(open_groups, pieces)
    return pieces, faults


def _groups(cues: list[Cue]) -> list[_Group]:
    groups: list[list[Cue]] = []
    end_ms = -1
    for cue in cues:
        if groups and cue.start_ms < end_ms - _OVERLAP_MS:
            if all((cue.start_ms, cue.text) != (other.start_ms, other.text) for other in groups[-1][-8:]):
                groups[-1].append(cue)
        else:
            groups.append([cue])
        end_ms = max(end_ms, cue.end_ms)
    return [_Group(tuple(group)) for group in groups]


def _joins(open_groups: list[_Group], group: _Group, longest_ms: int) -> bool:
    """Whether a segment goes on with this group."""
    start_ms, last = open_groups[0].start_ms, open_groups[-1]
    so_far_ms = last.end_ms - start_ms
    finished = last.text.endswith(_FINISHED)
    return (
        group.end_ms - start_ms <= longest_ms
        and group.start_ms - last.end_ms <= _PAUSE_MS
        and group.speaker == last.speaker
        and so_far_ms < _ENOUGH_MS
        and not (finished and so_far_ms >= _GOOD_MS)
    )


def _close(open_groups: list[_Group], pieces: list[Piece]) -> None:
    if open_groups:
        text = " ".join(group.text for group in open_groups)
        end_ms = max(group.end_ms for group in open_groups)
        pieces.append(Piece(open_groups[0].start_ms, end_ms, text, open_groups[0].speaker))
        open_groups.clear()


def _too_long(group: _Group, longest_s: float) -> Fault:
    line, seconds = group.cues[0].line, (group.end_ms - group.start_ms) / 1000
    which = f"The cue in line {line} lasts {seconds:.0f} s"
    if len(group.cues) > 1:
        which = f"The {len(group.cues)} overlapping cues from line {line} on last {seconds:.0f} s"
    return Fault(line, "too_long", f"{which}; at most {longest_s:.0f} s can be used.")
