"""Which recording and which transcript belong together, by their names alone."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from worker.domain.data import DataItem

_BEST_AUDIO: Final = {".wav": 0, ".flac": 1}
_BEST_TRANSCRIPT: Final = {".vtt": 0, ".srt": 1, ".txt": 2}


@dataclass(frozen=True)
class Pair:
    """A recording and its transcripts, the best first: times beat none. The first that can be read is used."""

    audio: DataItem
    transcripts: Sequence[DataItem]


@dataclass(frozen=True)
class Pairing:
    """What goes together, and what is left over."""

    pairs: list[Pair]
    alone: list[DataItem]
    """Audio without transcript, transcripts without audio."""
    spare: list[tuple[DataItem, DataItem]]
    """Recordings beside a better one of the same stem: lossless beats compressed, then the names decide."""


def paired(audio: Iterable[DataItem], transcripts: Iterable[DataItem]) -> Pairing:
    """Pair by stem. The order in which files were uploaded makes no difference."""
    by_stem: dict[str, tuple[list[DataItem], list[DataItem]]] = defaultdict(lambda: ([], []))
    for item in audio:
        by_stem[item.stem][0].append(item)
    for item in transcripts:
        by_stem[item.stem][1].append(item)
    pairing = Pairing([], [], [])
    for stem in sorted(by_stem):
        recordings, texts = by_stem[stem]
        recordings.sort(key=lambda item: (_rank(item, _BEST_AUDIO), item.name, item.id))
        texts.sort(key=lambda item: (_rank(item, _BEST_TRANSCRIPT), item.name, item.id))
        if not recordings or not texts:
            pairing.alone.extend(recordings + texts)
            continue
        pairing.pairs.append(Pair(recordings[0], texts))
        pairing.spare.extend((item, recordings[0]) for item in recordings[1:])
    return pairing


def _rank(item: DataItem, best: dict[str, int]) -> int:
    return best.get(PurePosixPath(item.name).suffix.lower(), len(best))
