"""A prepared dataset: one file of samples that is mapped, not read, and an index."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from worker.trainer.audio import FULL_SCALE, SAMPLE_RATE


@dataclass(frozen=True)
class Utterance:
    """One segment of the dataset."""

    row: int
    start_sample: int
    samples: int
    text: str
    speaker: str | None
    split: str
    file: str
    offset_s: float | None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / SAMPLE_RATE

    @property
    def places(self) -> tuple[tuple[float, "Utterance"], ...]:
        """What is heard, each with the second at which it begins."""
        return ((0.0, self),)


@dataclass(frozen=True)
class Passage:
    """Utterances of one speaker, one after the other: what a window hears when people go on speaking."""

    utterances: tuple[Utterance, ...] = ()
    pauses_s: tuple[float, ...] = ()
    """Silence before each of them but the first."""

    def followed_by(self, utterance: Utterance, pause_s: float) -> "Passage":
        """The same and one more; the first needs no pause."""
        pauses_s = (*self.pauses_s, pause_s) if self.utterances else ()
        return Passage((*self.utterances, utterance), pauses_s)

    @property
    def seconds(self) -> float:
        """Its length, with the pauses."""
        return sum(one.seconds for one in self.utterances) + sum(self.pauses_s)

    @property
    def text(self) -> str:
        """What is said in it."""
        return " ".join(one.text for one in self.utterances)

    @property
    def places(self) -> tuple[tuple[float, Utterance], ...]:
        """What is heard, each with the second at which it begins."""
        lengths = [one.seconds + pause for one, pause in zip(self.utterances, self.pauses_s, strict=False)]
        return tuple(zip(accumulate(lengths, initial=0.0), self.utterances, strict=True))


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line; a transcript may hold U+2028, which ends a line for ``splitlines()`` only."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


class Dataset:
    """Utterances and their sound."""

    def __init__(self, folder: Path) -> None:
        self.utterances = [Utterance(**row) for row in json_lines(folder / "index.jsonl")]
        self._samples = np.memmap(folder / "audio.i16", dtype="<i2", mode="r")

    def of(self, *splits: str) -> list[Utterance]:
        """The utterances of these splits, in the dataset's order."""
        return [utterance for utterance in self.utterances if utterance.split in splits]

    def sound(self, heard: Sequence[Utterance | Passage], seconds: float, speeds: Sequence[float] = ()) -> torch.Tensor:
        """Their sound, float32 [heard, seconds · 16000], full scale 1.0, padded with silence or cut.

        Another speed is another voice as well: faster is higher, as with a tape. Without a word all keep theirs.
        """
        length = round(seconds * SAMPLE_RATE)
        batch = np.zeros((len(heard), length), np.float32)
        for window, one, speed in zip(batch, heard, speeds or [1.0] * len(heard), strict=True):
            for begin_s, utterance in one.places:
                sound = self._samples[utterance.start_sample : utterance.start_sample + utterance.samples]
                if speed != 1.0:
                    sound = soxr.resample(sound, SAMPLE_RATE, SAMPLE_RATE / speed)
                place = window[round(begin_s / speed * SAMPLE_RATE) :][: len(sound)]
                place[:] = sound[: len(place)]
        return torch.from_numpy(batch).div_(FULL_SCALE + 1)
