"""What a recipe's step says while it runs: JSON lines on file descriptor 3."""

import math
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from schemas.failures import FailureClass
from schemas.wire import Wire

EVENTS_DESCRIPTOR: Final = 3
LONGEST_LINE: Final = 65_536
"""Bytes, with the newline. Longer lines are counted and skipped."""


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


FiniteOrNone = Annotated[float | None, AfterValidator(_finite)]
"""A number or none: what a training measures that diverges is often NaN or infinite, and says nothing."""
Steps = Annotated[int, Field(ge=0, lt=2**31)]


class Artifact(Wire):
    """One file a step leaves in its output, relative to it."""

    path: str
    sha256: str
    bytes: int = Field(ge=0, lt=2**63)


class Hello(Wire):
    """First line of every step."""

    event: Literal["hello"] = "hello"
    recipe: str
    recipe_version: str
    pid: int


class Progress(Wire):
    """How far the step is. May be dropped under pressure."""

    event: Literal["progress"] = "progress"
    percent: float = Field(ge=0, le=100)
    steps_done: Steps | None = None
    steps: Steps | None = None
    epoch: FiniteOrNone = None
    eta_s: FiniteOrNone = None
    audio_s: FiniteOrNone = None
    """Seconds of audio worked through so far."""
    note: str | None = Field(default=None, max_length=500)


class Metric(Wire):
    """One point of a curve; of a step's curves the first 16 are shown. May be dropped under pressure."""

    event: Literal["metric"] = "metric"
    name: str = Field(max_length=100)
    value: FiniteOrNone = None
    """None: what was measured is no number, and the curve has a gap there."""
    steps_done: Steps | None = None


class Checkpoint(Wire):
    """A checkpoint lies complete in the output. Never dropped."""

    event: Literal["checkpoint"] = "checkpoint"
    path: str
    sha256: str
    """Digest of the folder, see ``schemas.digest.tree_digest``."""
    bytes: int = Field(ge=0, lt=2**63)
    steps_done: Steps


class Result(Wire):
    """The step is done. Never dropped."""

    event: Literal["result"] = "result"
    figures: dict[str, Any] = Field(default_factory=dict)
    artifacts: list[Artifact] = Field(default_factory=list)


class Failure(Wire):
    """The step cannot be done, and this is why. Never dropped."""

    event: Literal["failure"] = "failure"
    failure_class: FailureClass = Field(validation_alias="class", serialization_alias="class")
    code: str = Field(max_length=100)
    message: str = Field(max_length=2_000)
    """A sentence the customer can read."""
    detail: str = Field(default="", max_length=20_000)
    """For the operator."""


class Stopped(Wire):
    """The step was asked to stop and did; its last checkpoint counts. Never dropped."""

    event: Literal["stopped"] = "stopped"
    steps_done: Steps | None = None


Event = Annotated[Hello | Progress | Metric | Checkpoint | Result | Failure | Stopped, Field(discriminator="event")]
EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)
DROPPABLE: Final = (Progress, Metric)


def encode(event: Event) -> bytes:
    """One event as its line, newline included.

    Raises:
        ValueError: the line would be longer than ``LONGEST_LINE``.
    """
    line = event.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
    if len(line) > LONGEST_LINE:
        raise ValueError(f"event line of {len(line)} bytes; at most {LONGEST_LINE}: put large figures into a file")
    return line
