"""Which fault comes when: decided by the seed alone, each kind at least 5 % of them, half of all kill or freeze."""

from __future__ import annotations

import random
from math import ceil
from typing import Final

WEIGHTS: Final = {
    # half of all kill or freeze
    "kill_worker": 8,
    "freeze_worker": 8,
    "kill_supervisor": 6,
    "freeze_supervisor": 6,
    "kill_trainer": 6,
    "freeze_trainer": 6,
    "kill_postgres": 5,
    "kill_broker": 5,
    # the other half
    "term_worker": 5,
    "term_trainer": 5,
    "term_supervisor": 5,
    "cut": 5,
    "delay": 5,
    "lost_answers": 5,
    "duplicates": 5,
    "garbage": 5,
    "cancel": 5,
    "delete": 5,
}
KILL_OR_FREEZE: Final = frozenset(kind for kind in WEIGHTS if kind.startswith(("kill_", "freeze_")))


def schedule(seed: int, count: int) -> list[str]:
    """So many faults, in the seed's order."""
    kinds = [kind for kind, weight in WEIGHTS.items() for _ in range(ceil(count * weight / 100))]
    chance = random.Random(f"faults {seed}")
    chance.shuffle(kinds)
    while len(kinds) > count:  # rounded up: take from the commonest, never below 5 % of a kind or half of the half
        spare = max(WEIGHTS, key=lambda kind: (kinds.count(kind) - ceil(count * 0.05), kind not in KILL_OR_FREEZE))
        if kinds.count(spare) <= ceil(count * 0.05):
            break
        kinds.remove(spare)
    return kinds
