"""Which fault comes when: decided by the seed alone, each kind at least 5 % of them, half of all kill or freeze."""

from __future__ import annotations

import random
from itertools import cycle
from math import ceil
from typing import Final

KILL_OR_FREEZE: Final = (
    "kill_worker", "freeze_worker", "kill_supervisor", "freeze_supervisor", "kill_trainer", "freeze_trainer",
    "kill_postgres", "kill_broker",
)  # fmt: skip
OTHERS: Final = (
    "term_worker", "term_trainer", "term_supervisor", "cut", "delay", "lost_answers", "duplicates", "garbage",
    "cancel", "delete",
)  # fmt: skip
_MORE: Final = KILL_OR_FREEZE[:6]
"""Services are started again in seconds, processes in moments: what is left of the half goes to these."""


def schedule(seed: int, count: int) -> list[str]:
    """At least so many faults, in the seed's order."""
    each = ceil(count * 0.05)
    kinds = [kind for kind in (*KILL_OR_FREEZE, *OTHERS) for _ in range(each)] if count else []
    more = cycle(_MORE)
    while len(kinds) < count or sum(kind in KILL_OR_FREEZE for kind in kinds) < len(kinds) / 2:
        kinds.append(next(more))
    random.Random(f"faults {seed}").shuffle(kinds)
    return kinds
