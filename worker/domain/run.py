"""A run, from the request to its owner's notes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import Field

from schemas.wire import Wire


@dataclass(frozen=True)
class Request:
    """One run somebody asks for."""

    run_id: UUID
    custom_model_id: int
    organization_id: int
    requested_at: datetime
    traceparent: str | None = None
    parameters: dict[str, Any] | None = None
    priority: int = 0


@dataclass(frozen=True)
class Claim:
    """Free slots that ask for runs."""

    worker_id: str
    """Who will own them."""
    lease_s: float
    """Seconds the first lease lasts."""
    transition_ids: tuple[UUID, ...]
    """One for each slot, for ``RunStore.claims_of`` in case the answer is lost."""

    @classmethod
    def of(cls, worker_id: str, lease_s: float, slots: int) -> Self:
        """A claim for so many slots."""
        return cls(worker_id, lease_s, tuple(uuid4() for _ in range(slots)))

    def arguments(self) -> tuple[object, ...]:
        """Arguments of the ``claim_runs`` query."""
        return self.worker_id, len(self.transition_ids), self.lease_s, list(self.transition_ids)


@dataclass(frozen=True)
class Fence:
    """(run, attempt): the right to write. Every write after a claim carries it."""

    run_id: UUID
    attempt: int

    def __str__(self) -> str:
        return f"{self.run_id}:{self.attempt}"


class RunInputs(Wire):
    """What every attempt of a run trains on: fixed at the first claim, stored on the run, never changed.

    But for the recipe's version and the settings that it completes: they are those of the worker that goes on with it.
    """

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
    language: str = "en"
    """Of the base. Runs whose inputs were fixed before it was known were begun in English, and end in it."""
    load_verdicts: str | None = None
    """Storage key of the verdicts known without decoding (JSON lines of ``schemas.steps.Verdict``)."""
    digests: str | None = None
    """Storage key of what the judged files held: SHA-256 by id; a file may be replaced while it is judged."""


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
    bystander_losses: int = 0
    """Workers it has lost while another of their runs was the likelier cause."""

    @property
    def waits(self) -> int:
        """Attempts before this one that ended for want of a place, and are charged nowhere."""
        return self.attempt - 1 - self.failures - self.hand_overs - self.bystander_losses

    @property
    def fence(self) -> Fence:
        """The right to write."""
        return Fence(self.id, self.attempt)


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``live`` holds the newest figures and the curve so far, for whoever watches."""

    fence: Fence
    phase: str
    percent: float
    eta_s: float | None
    live: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A registered checkpoint."""

    attempt: int
    steps_done: int
    address: str
    sha256: str
    bytes: int
    recipe_version: str
