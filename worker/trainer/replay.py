"""Ordinary speech beside the customer's: on it the trained decoder is held to what the base says.

Measured: without it a decoder that learned drug names writes ordinary words as if they were drug names
("formally trezurator" for "formerly treasurer to"). The speech belongs to the base language's operator.
"""

import random
from typing import Any, Final

import torch
from torch import Tensor

from worker.trainer.corpus import Corpus
from worker.trainer.dataset import Dataset
from worker.trainer.objective import drift
from worker.trainer.plan import Plan
from worker.trainer.ranks import Ranks
from worker.trainer.step import StepRun
from worker.trainer.whisper import Whisper

_GROUPS_A_STEP: Final = 2


class Replay:
    """The operator's general set, without the part that measures forgetting."""

    def __init__(self, run: StepRun, ranks: Ranks, model: Whisper, teacher: Any, precision: torch.dtype) -> None:
        dataset = Dataset(run.input("general"))
        utterances = dataset.of("train", "dev")
        self._seed, self._teacher, self._precision = run.spec.seed, teacher, precision
        self._ranks = ranks
        self._groups = Plan(tuple(one.seconds for one in utterances), 1, 1, 0, 0.0).groups
        self._corpora = [
            Corpus(
                model,
                dataset,
                utterances,
                self._groups,
                padding_s=run.parameters.padding_s,
                precision=precision,
                file=run.output / f".states-general-{speed}",
                language=run.spec.context.get("language"),
                speed=speed,
                ranks=ranks,
            )
            for speed in run.parameters.replay_speeds
        ]

    @staticmethod
    def possible(run: StepRun) -> bool:
        """Whether the operator supplied speech that is not kept for measuring."""
        folder = run.optional_input("general")
        return folder is not None and run.parameters.replay > 0 and bool(Dataset(folder).of("train", "dev"))

    def drift(self, step: int, student: Any) -> Tensor:
        """How far the student is from the base on a few of these utterances, chosen by the step's number.

        Added up over all processes it is that.
        """
        source = random.Random(f"replay/{self._seed}/{step}")  # noqa: S311 - the same choice again is the point
        start = source.randrange(max(1, len(self._groups) - _GROUPS_A_STEP + 1))
        batch = source.choice(self._corpora).share(range(start, min(start + _GROUPS_A_STEP, len(self._groups))))
        part = self._ranks.part(batch.tokens)
        with torch.no_grad():
            original = batch.scores(self._teacher, self._precision)
        return part * drift(batch.scores(student, self._precision), original)
