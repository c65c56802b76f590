"""Why an attempt ended badly: the closed list of classes. ``worker.domain.retry`` says what follows from each."""

from enum import StrEnum


class FailureClass(StrEnum):
    """The class of a failure; the code beside it says which one of that class."""

    DATA = "data"
    """The customer's data cannot be trained on."""
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    """The trainer ended without a word."""
    STALLED = "stalled"
    """The trainer lived but made no progress for too long."""
    CAPACITY = "capacity"
    """No place to train: no device, the cluster is full or away. Waiting, not failing."""
    INFRASTRUCTURE = "infrastructure"
    """Storage, disk or another part of ours was away."""
    TIMEOUT = "timeout"
    """A cap on run time or waiting time was reached."""
    LOST_WORKER = "lost_worker"
    """The lease ran out with nobody renewing it."""
    CANCELLED = "cancelled"
    BUG = "bug"
    """Our own fault: an exception nobody foresaw."""
