"""Which of a lost worker's runs the loss is counted against. Pure.

A worker that goes silent leaves all of its runs behind, those of other customers included, and nobody saw which of them
did it, or whether it was any: hosts lose power, too. What is known is where each run stood. The evidence, in order:

- Only in the phases load and publish does the worker's own process work on what a customer sent or a trainer left. In
  the others it waits for a trainer in a process of its own.
- A run that has lost workers before without getting further since is more likely to be the cause than one that has
  not. One that got further in between (a later phase, a later checkpoint) starts again at none: it can pass.

The runs with the strongest evidence are the *suspects*: the loss is counted for them. All others are *bystanders*: they
go back to the queue, charged nothing. Where one suspect is left and it has lost ``WORKER_LOST_WORKER_LIMIT``
workers in a row without getting further, the run is ended. Where several are equally suspect it takes ``SHARED`` times
as many, since an innocent run may be among them; pauses of different lengths separate them before that. Runs of one
organization that were all in the hands of the worker's process share the blame as one: several that stop workers
together would otherwise shield each other.

A machine that dies by itself counts against the runs on it, too, because it looks the same from here. It ends none that
gets further between two deaths, and one that does not only when three machines in a row die under it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from schemas.status import Phase
from worker.domain.run import Fence

OWN_PROCESS: Final = frozenset({Phase.LOAD, Phase.PUBLISH})
"""Phases in which the worker's own process works on a run's bytes."""
OWN_PROCESS_WEIGHT: Final = 2
"""Being in such a phase weighs as much as so many workers lost before. A run that was struck once or twice by dying
machines thus does not shield one that stops its worker while loading; one that has lost more than that does outweigh a
run that happens to be loading."""
SHARED: Final = 4
"""Several equal suspects are ended after so many times the limit: no run may go on for ever."""


@dataclass(frozen=True)
class Orphan:
    """A run whose lease has died."""

    fence: Fence
    organization_id: int
    failures: int
    hand_overs: int
    worker_id: str
    phase: str
    steps_done: int
    """Of its newest registered checkpoint, by any attempt; 0: none."""
    losses: int
    """Workers it has lost in a row before this one without getting further."""
    furthest_phase: str
    """Where it stood furthest when it lost them, this time included."""
    furthest_steps: int
    dead_s: float


def suspects_of(orphans: Sequence[Orphan]) -> list[Orphan]:
    """The runs that the loss is counted for, in the given order.

    Args:
        orphans: all runs that one lost worker left behind.
    """
    heaviest = max((_weight(orphan) for orphan in orphans), default=0)
    return [orphan for orphan in orphans if _weight(orphan) == heaviest]


def is_ended(losses: int, suspects: Sequence[Orphan], limit: int) -> bool:
    """Whether a suspect has lost too many workers.

    Args:
        losses: in a row without getting further, this one included.
        suspects: of this loss.
        limit: losses that end a run which is the only suspect.
    """
    organizations = {orphan.organization_id for orphan in suspects}
    together = len(organizations) == 1 and all(orphan.phase in OWN_PROCESS for orphan in suspects)
    return losses >= (limit if len(suspects) == 1 or together else limit * SHARED)


def _weight(orphan: Orphan) -> int:
    return orphan.losses + OWN_PROCESS_WEIGHT * (orphan.phase in OWN_PROCESS)
