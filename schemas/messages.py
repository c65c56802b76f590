"""What travels over the broker: the request that rings, and the events we tell."""

from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.status import TrainingStatus
from schemas.wire import Wire

EXCHANGE: Final = "training"
REQUEST_QUEUE: Final = "training.runs"
REQUEST_ROUTING_KEY: Final = "training.run.requested"
REQUEST_TYPE: Final = "training.run.requested.v1"
DEAD_EXCHANGE: Final = "training.dead"
DEAD_QUEUE: Final = "training.runs.dead"
LARGEST_ID: Final = 2**63 - 1


class RunRequested(Wire):
    """Body of ``training.run.requested.v1``. Carries ids only: never a path, an address, or code."""

    run_id: UUID
    custom_model_id: int = Field(ge=1, le=LARGEST_ID, strict=True)
    organization_id: int = Field(ge=1, le=LARGEST_ID, strict=True)
    requested_at: AwareDatetime
    """When somebody pressed the button, RFC 3339. Shown, never used for limits."""


EventName = Literal["queued", "running", "succeeded", "failed", "cancelled"]

EVENT_NAMES: Final[dict[TrainingStatus, EventName]] = {
    TrainingStatus.READY_TO_RUN: "queued",
    TrainingStatus.RUNNING: "running",
    TrainingStatus.SUCCESS: "succeeded",
    TrainingStatus.FAILED: "failed",
    TrainingStatus.NOT_RUNNING: "cancelled",
}
"""The event that tells a transition, by the status it leads to."""


class RunMoved(Wire):
    """Body of ``training.run.<name>.v1``: one transition. ``event_id`` is the transition's id: deduplicate by it."""

    event_id: UUID
    run_id: UUID
    sequence: int = Field(ge=1)
    """Counts the run's transitions from 1; events of one run are sent in this order."""
    attempt: int = Field(ge=0)
    from_status: TrainingStatus | None = Field(serialization_alias="from", validation_alias="from")
    to_status: TrainingStatus = Field(serialization_alias="to", validation_alias="to")
    at: datetime
    custom_model_id: int
    organization_id: int
    reason_code: str | None = None
