"""What a recipe's step says while it runs: JSON lines on file descriptor 3."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from schemas.failures import FailureClass
from schemas.wire import Wire

EVENTS_DESCRIPTOR: Final = 3
LONGEST_LINE: Final = 65_536
"""Bytes, with the newline. Longer lines are counted and skipped."""


class Artifact(Wire):
    """One file a step leaves in its output, relative to it."""

    path: str
    sha256: str
    bytes: int = Field(ge=0)


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
    steps_done: int | None = None
    steps: int | None = None
    epoch: float | None = None
    eta_s: float | None = None
    audio_s: float | None = None
    """Seconds of audio worked through so far."""
    note: str | None = Field(default=None, max_length=500)


class Metric(Wire):
    """One point of a curve. May be dropped under pressure."""

    event: Literal["metric"] = "metric"
    name: str = Field(max_length=100)
    value: float
    steps_done: int | None = None


class Checkpoint(Wire):
    """A checkpoint lies complete in the output. Never dropped."""

    event: Literal["checkpoint"] = "checkpoint"
    path: str
    sha256: str
    """Digest of the folder, see ``schemas.digest.tree_digest``."""
    bytes: int = Field(ge=0)
    steps_done: int = Field(ge=0)


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
    steps_done: int | None = None


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
