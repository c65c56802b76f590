"""How an attempt ends: a closed union. Every ending goes through ``worker.store.runs.RunStore.settle``."""

from dataclasses import dataclass, field
from typing import Any

from schemas.failures import FailureClass
from schemas.status import Gate


@dataclass(frozen=True)
class Version:
    """What a successful attempt publishes: artifacts under its own prefix, complete and checked."""

    address: str
    """Storage prefix."""
    sha256: str
    """Tree digest of what lies there."""


@dataclass(frozen=True)
class Succeeded:
    """The run finished and its figures stand. ``version`` is None where the gate refused the model."""

    figures: dict[str, Any]
    gate: Gate
    version: Version | None
    data_report: dict[str, Any] | None = None
    report_address: str | None = None


@dataclass(frozen=True)
class Failed:
    """The attempt failed; the retry policy says whether the run did."""

    failure_class: FailureClass
    code: str
    reason: str
    """A sentence the customer can read."""
    detail: str = ""
    """For the operator."""
    data_report: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class HandedOver:
    """The worker shuts down, or the cluster wants its node: back to the queue with the checkpoint. Not a failure."""


@dataclass(frozen=True)
class Cancelled:
    """Somebody asked for it, or the model was deleted."""


@dataclass(frozen=True)
class Lost:
    """The run is not ours any more: nothing may be written."""


Outcome = Succeeded | Failed | HandedOver | Cancelled | Lost
