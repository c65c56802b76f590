"""A run as its owner sees it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from schemas.wire import Wire


@dataclass(frozen=True)
class Fence:
    """(run, attempt): the right to write. Every write after a claim carries it."""

    run_id: UUID
    attempt: int

    def __str__(self) -> str:
        return f"{self.run_id}:{self.attempt}"


class RunInputs(Wire):
    """What every attempt of a run trains on: fixed at the first claim, stored on the run, never changed."""

    manifest: str
    """Storage key of the manifest (JSON lines of ``schemas.steps.ManifestRow``)."""
    manifest_sha256: str
    rows: int
    base_language_id: int
    base_key: str
    base_weights: str
    """A folder, a storage key or a hub id, as the operator registered it."""
    base_version: str
    recipe: str
    recipe_version: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int
    general_set: str | None = None
    load_verdicts: str | None = None
    """Storage key of the verdicts known without decoding (JSON lines of ``schemas.steps.Verdict``)."""


@dataclass(frozen=True)
class ClaimedRun:
    """A run that this worker owns for as long as it can renew the lease."""

    id: UUID
    custom_model_id: int
    organization_id: int
    base_language_id: int
    attempt: int
    failures: int
    hand_overs: int
    inputs: RunInputs | None
    """None until the first attempt has fixed them."""
    wanted_parameters: dict[str, Any]
    ran_s: float
    """Seconds of running over all earlier attempts."""
    waited_s: float
    created_at: datetime
    requested_at: datetime
    traceparent: str | None
    cancel_requested: bool

    @property
    def fence(self) -> Fence:
        """The right to write."""
        return Fence(self.id, self.attempt)
