"""A prepared dataset: one file of samples that is mapped, not read, and an index."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


class Dataset:
    """Utterances and their sound."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
        self.utterances = [Utterance(**json.loads(line)) for line in lines]
        self._samples = np.memmap(folder / "audio.i16", dtype="<i2", mode="r")

    def of(self, *splits: str) -> list[Utterance]:
        """The utterances of these splits, in the dataset's order."""
        return [utterance for utterance in self.utterances if utterance.split in splits]

    def sound(self, utterances: Sequence[Utterance], seconds: float, speed: float = 1.0) -> torch.Tensor:
        """Their sound, float32 [utterances, seconds · 16000], full scale 1.0, padded with silence or cut.

        Another speed is another voice as well: faster is higher, as with a tape.
        """
        length = round(seconds * SAMPLE_RATE)
        batch = np.zeros((len(utterances), length), np.float32)
        for place, utterance in zip(batch, utterances, strict=True):
            sound = self._samples[utterance.start_sample : utterance.start_sample + utterance.samples]
            if speed != 1.0:
                sound = soxr.resample(sound, SAMPLE_RATE, SAMPLE_RATE / speed)
            place[: len(sound)] = sound[:length]
        return torch.from_numpy(batch).div_(FULL_SCALE + 1)
