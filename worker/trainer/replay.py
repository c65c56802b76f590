"""Ordinary speech beside the customer's: on it the trained decoder is held to what the base says.

Measured: without it a decoder that learned drug names writes ordinary words as if they were drug names
("formally trezurator" for "formerly treasurer to"). The speech belongs to the base language's operator.
"""

from typing import Any, Final

import torch
from torch import Tensor

from worker.trainer.corpus import Corpus
from worker.trainer.dataset import Dataset
from worker.trainer.objective import drift
from worker.trainer.plan import Plan
from worker.trainer.ranks import Ranks
from worker.trainer.step import StepRun
from worker.trainer.voices import voices
from worker.trainer.whisper import Whisper

_PADDING_S: Final = 8.0
"""Silence after an utterance, at least: with less the base itself mishears ordinary speech, and is no teacher."""
_UTTERANCES_A_STEP: Final = 8
"""With four the gradient differs so much from step to step that the customer's words are learned late."""


class Replay:
    """The operator's general set, without the part that measures forgetting."""

    def __init__(self, run: StepRun, ranks: Ranks, model: Whisper, teacher: Any, precision: torch.dtype) -> None:
        dataset = Dataset(run.input("general"))
        utterances = dataset.of("train", "dev")
        self._teacher, self._precision = teacher, precision
        self._ranks = ranks
        self._plan = Plan(tuple(one.seconds for one in utterances), _UTTERANCES_A_STEP, 1, run.spec.seed, 0.0)
        self._corpora = [
            Corpus(
                model,
                dataset,
                utterances,
                self._plan.groups,
                padding_s=max(_PADDING_S, run.parameters.padding_s),
                precision=precision,
                file=run.output / f".states-general-{hearing}",
                language=run.spec.context.get("language"),
                voices=voices(run.parameters, f"general/{run.spec.seed}/{hearing}", utterances),
                ranks=ranks,
            )
            for hearing in range(run.parameters.replay_hearings)
        ]

    @staticmethod
    def possible(run: StepRun) -> bool:
        """Whether the operator supplied speech that is not kept for measuring."""
        folder = run.optional_input("general")
        return folder is not None and run.parameters.replay > 0 and bool(Dataset(folder).of("train", "dev"))

    def drift(self, step: int, student: Any) -> Tensor:
        """How far the student is from the base on the step's few of these utterances: all of them in turn.

        Added up over all processes it is that.
        """
        hearing = self._plan.epoch(step) % len(self._corpora)
        batch = self._corpora[hearing].share(self._plan.batch(step))
        part = self._ranks.part(batch.tokens)
        with torch.no_grad():
            original = batch.scores(self._teacher, self._precision)
        return part * drift(batch.scores(student, self._precision), original)
