"""Which utterances are trained on at which step, and at which rate: pure functions of seed and step number.

A resumed training needs no more than the number of its step to go on as if nothing had happened.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

GROUP: Final = 4
"""Utterances that always go through the encoder together, so that their states never depend on the batch."""
_JITTER: Final = 6.0
"""By how many groups the order by length is disturbed each epoch: similar lengths, other neighbours."""
_LAST_RATE: Final = 0.1
"""The schedule's end, as a share of its peak."""


@dataclass(frozen=True)
class Plan:
    """All steps of a training."""

    seconds: tuple[float, ...]
    """Length of every utterance."""
    batch_size: int
    epochs: int
    seed: int
    warmup_fraction: float

    @cached_property
    def groups(self) -> list[list[int]]:
        """Utterances of similar length, by index, four at a time, shortest first."""
        order = sorted(range(len(self.seconds)), key=lambda index: (self.seconds[index], index))
        return [order[start : start + GROUP] for start in range(0, len(order), GROUP)]

    @property
    def groups_a_batch(self) -> int:
        """At least one."""
        return max(1, self.batch_size // GROUP)

    @property
    def steps_an_epoch(self) -> int:
        """Batches in one pass over the data."""
        return math.ceil(len(self.groups) / self.groups_a_batch)

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.steps_an_epoch * self.epochs

    def epoch(self, step: int) -> int:
        """The pass over the data that a step belongs to, from 0."""
        return step // self.steps_an_epoch

    def batch(self, step: int) -> Sequence[int]:
        """The groups of one step."""
        batches = _epoch(len(self.groups), self.groups_a_batch, f"{self.seed}/{self.epoch(step)}")
        return batches[step % self.steps_an_epoch]

    def rate(self, step: int) -> float:
        """Share of the peak learning rate: up in a line, down along a cosine."""
        warmup = max(1.0, self.warmup_fraction * self.steps)
        rising = min(1.0, (step + 1) / warmup)
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rising * (_LAST_RATE + (1 - _LAST_RATE) * falling)


@lru_cache(maxsize=4)
def _epoch(groups: int, groups_a_batch: int, seed: str) -> list[list[int]]:
    source = random.Random(seed)  # noqa: S311 - no secret: the same order again is the point
    order = sorted(range(groups), key=lambda group: group + source.uniform(0, _JITTER))
    batches = [order[start : start + groups_a_batch] for start in range(0, groups, groups_a_batch)]
    source.shuffle(batches)
    return batches
