"""What each step learns from: the customer's utterances, one by one in several voices, or joined into passages."""

import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from worker.trainer.anchor import some
from worker.trainer.corpus import Batch, Corpus
from worker.trainer.dataset import Dataset, Utterance
from worker.trainer.passages import joined
from worker.trainer.plan import Plan
from worker.trainer.ranks import Ranks
from worker.trainer.step import StepRun
from worker.trainer.voices import voices
from worker.trainer.whisper import Whisper


class Batches:
    """The training split in all the ways in which it is heard; which one is a function of the step's number."""

    def __init__(  # noqa: PLR0913 - what it works on, and how
        self,
        run: StepRun,
        ranks: Ranks,
        model: Whisper,
        dataset: Dataset,
        utterances: Sequence[Utterance],
        plan: Plan,
        precision: torch.dtype,
    ) -> None:
        settings = run.parameters
        self._plan, self._share, self._seed = plan, settings.joined, run.spec.seed
        corpus = partial(
            Corpus,
            model,
            dataset,
            padding_s=settings.padding_s,
            precision=precision,
            language=run.spec.language,
            ranks=ranks,
        )
        self._single = [
            corpus(
                utterances,
                plan.groups,
                file=run.output / f".states-{hearing}",
                voices=voices(settings, f"{self._seed}/{hearing}", utterances),
            )
            for hearing in range(settings.hearings)
        ]
        self._passages = joined(utterances, f"joined/{self._seed}", model.written) if self._share else []
        alone = [[index] for index in range(len(self._passages))]
        self._joined = corpus(self._passages, alone, file=run.output / ".states-joined") if self._share else None

    def share(self, step: int) -> Batch:
        """This process's share of utterances of similar length, or of passages that hold as many."""
        source = random.Random(f"{self._seed}/heard/{step}")  # noqa: S311 - the same choice again is the point
        if self._joined and source.random() < self._share:
            return self._joined.share(self._some_passages(source))
        hearing = self._plan.epoch(step) % len(self._single)
        return self._single[hearing].share(self._plan.batch(step))

    def once(self) -> Iterator[Batch]:
        """Utterances of all lengths as their first hearing has them."""
        return (self._single[0].batch([group]) for group in some(len(self._plan.groups)))

    def _some_passages(self, source: random.Random) -> list[int]:
        chosen: list[int] = []
        order = source.sample(range(len(self._passages)), len(self._passages))
        while order and sum(len(self._passages[one].utterances) for one in chosen) < self._plan.batch_size:
            chosen.append(order.pop())
        return chosen
