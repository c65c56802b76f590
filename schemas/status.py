"""``training_status``: the public numbers. Clients switch on them, so they never change."""

from enum import IntEnum, StrEnum
from typing import Final


class TrainingStatus(IntEnum):
    """Where a run stands, as every client sees it."""

    NOT_RUNNING = 1
    """Nothing was asked for, or the last run was cancelled."""
    READY_TO_RUN = 2
    """Queued: accepted, waiting for a worker or for its next attempt."""
    RUNNING = 3
    """A worker owns it."""
    SUCCESS = 4
    """Finished and its figures stand; whether its model is in use is the gate's answer."""
    FAILED = 5
    """Finished; the reason is on the run."""

    @property
    def is_terminal(self) -> bool:
        """True where a run is over for good."""
        return self in TERMINAL


TERMINAL: Final = frozenset({TrainingStatus.NOT_RUNNING, TrainingStatus.SUCCESS, TrainingStatus.FAILED})

LEGAL_MOVES: Final[frozenset[tuple[TrainingStatus | None, TrainingStatus]]] = frozenset(
    {
        (None, TrainingStatus.READY_TO_RUN),
        (TrainingStatus.READY_TO_RUN, TrainingStatus.RUNNING),
        (TrainingStatus.RUNNING, TrainingStatus.SUCCESS),
        (TrainingStatus.RUNNING, TrainingStatus.FAILED),
        (TrainingStatus.RUNNING, TrainingStatus.READY_TO_RUN),
        (TrainingStatus.READY_TO_RUN, TrainingStatus.FAILED),
        (TrainingStatus.READY_TO_RUN, TrainingStatus.NOT_RUNNING),
        (TrainingStatus.RUNNING, TrainingStatus.NOT_RUNNING),
    }
)
"""Every (from, to) a run may take. ``sql/migrations`` holds the same list as a CHECK; a test compares them."""


class Phase(StrEnum):
    """What the owner of a running run is doing."""

    LOAD = "load"
    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class Gate(StrEnum):
    """Whether a successful run's model is worth using, and if not, why."""

    PUBLISHED = "published"
    NO_IMPROVEMENT = "no_improvement"
    FORGETS = "forgets"
    TOO_LITTLE_TEST_DATA = "too_little_test_data"
