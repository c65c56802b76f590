"""What follows from a failure: another attempt after a pause, or the end. Pure; the documentation is made from it."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from schemas.failures import FailureClass


@dataclass(frozen=True)
class Rule:
    """What a class of failure means for the run and for the people."""

    retry: bool
    counts: bool
    """Whether it uses up the retry budget. Waiting for capacity does not."""
    first_pause_s: float
    customer: str
    """Used where the failure brings no better sentence."""
    operator: str


RULES: Final = MappingProxyType(
    {
        FailureClass.DATA: Rule(
            retry=False,
            counts=True,
            first_pause_s=0,
            customer="The uploaded data cannot be trained on.",
            operator="Nothing to do here: the data report on the run lists each refused file with its reason.",
        ),
        FailureClass.OUT_OF_MEMORY: Rule(
            retry=True,
            counts=True,
            first_pause_s=60,
            customer="The training needed more memory than was available.",
            operator="Raise WORKER_TRAINER_MEMORY_BYTES, lower the recipe's batch_size, or take a larger machine.",
        ),
        FailureClass.CRASHED: Rule(
            retry=True,
            counts=True,
            first_pause_s=30,
            customer="The training stopped unexpectedly.",
            operator="Read the end of the run's log; the exit code or signal is in the failure's detail.",
        ),
        FailureClass.STALLED: Rule(
            retry=True,
            counts=True,
            first_pause_s=60,
            customer="The training stopped making progress.",
            operator="Read the run's log; look at the host's disk, GPU and storage; the stall limit is WORKER_STALL_S.",
        ),
        FailureClass.CAPACITY: Rule(
            retry=True,
            counts=False,
            first_pause_s=15,
            customer="The training is waiting for a free machine.",
            operator="No device or no room in the cluster: add capacity or wait; the run is not harmed.",
        ),
        FailureClass.INFRASTRUCTURE: Rule(
            retry=True,
            counts=True,
            first_pause_s=30,
            customer="A part of our service was not available.",
            operator="Storage, disk or network of ours failed: the detail names it. Runs retry by themselves.",
        ),
        FailureClass.TIMEOUT: Rule(
            retry=False,
            counts=True,
            first_pause_s=0,
            customer="The run took longer than a run may take.",
            operator="See WORKER_RUN_LIMIT_S and WORKER_WAIT_LIMIT_S; a long wait means too few slots.",
        ),
        FailureClass.LOST_WORKER: Rule(
            retry=True,
            counts=True,
            first_pause_s=5,
            customer="The machine that trained the model was lost.",
            operator="A worker died or was cut off. Counted apart from failures: see `lease_expired` below.",
        ),
        FailureClass.CANCELLED: Rule(
            retry=False,
            counts=False,
            first_pause_s=0,
            customer="The run was cancelled.",
            operator="Somebody cancelled the run or deleted its model.",
        ),
        FailureClass.BUG: Rule(
            retry=True,
            counts=True,
            first_pause_s=30,
            customer="The training failed because of a mistake of ours.",
            operator="An exception nobody foresaw: the traceback is in the failure's detail. Please report it.",
        ),
    }
)

LONGEST_PAUSE_S: Final = 900.0
LONGEST_WAIT_S: Final = 240.0
"""Between two looks for a free place: nobody calls when there is one."""
_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True)
class Retry:
    """Back to the queue, not before ``delay_s`` from now."""

    delay_s: float
    counts: bool


@dataclass(frozen=True)
class GiveUp:
    """The run fails for good."""


def after_failure(
    failure_class: FailureClass, failures: int, limit: int, random: Callable[[], float], *, waits: int = 0
) -> Retry | GiveUp:
    """Decide what follows from a failure.

    Args:
        failure_class: what went wrong.
        failures: failures of this run before this one.
        limit: how many failures a run may have in all.
        random: uniform in [0, 1); full jitter over the upper half, so that a crowd does not come back at once.
        waits: attempts of this run before this one that failed without being counted.
    """
    rule = RULES[failure_class]
    if not rule.retry or (rule.counts and failures + 1 >= limit):
        return GiveUp()
    return Retry(pause_s(failure_class, failures if rule.counts else waits, random), rule.counts)


def pause_s(failure_class: FailureClass, before: int, random: Callable[[], float]) -> float:
    """Seconds until the next attempt: doubled each time, with full jitter over the upper half.

    Args:
        failure_class: what went wrong.
        before: how often it did so before.
        random: uniform in [0, 1).
    """
    rule = RULES[failure_class]
    longest_s = LONGEST_PAUSE_S if rule.counts else LONGEST_WAIT_S
    return min(longest_s, rule.first_pause_s * 2.0 ** min(before, _MOST_DOUBLINGS)) * (0.5 + 0.5 * random())
