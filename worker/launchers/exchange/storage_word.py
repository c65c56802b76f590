"""What passes through object storage between an owner and a step: names of objects, wants, and the owner's word."""

from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from worker.launchers.exchange.interface import Grant, Order

ROOT: Final = "steps"
STARTED: Final = "started"
ASK: Final = "ask"
OWNER: Final = "owner"
WORD: Final = "word"
LOG: Final = "log"
ENDED: Final = "ended.json"
PIECE_BYTES: Final = 262_144
"""The most that one object of event lines holds. An object cannot grow, and is never put again with more in it: a
request that was given up, and repeated, may still arrive after its successors."""

LONGEST_QUESTION: Final = 512 * 1024
"""Bytes."""
LONGEST_WORD: Final = 64 * 2**20
"""Bytes. The first word lists every file of every input; the later ones are small."""
LARGEST_UPLOAD: Final = 5 * 2**30
"""Bytes that one signed PUT can carry, by S3's own limit."""

GET: Final = "get:"
"""Want: read the object under a storage key, which is one of the step's inputs."""
PUT: Final = "put:"
"""Want: write below the attempt's own prefix, among the step's outputs or its checkpoints."""
OWN: Final = "own:"
"""Want: write (``owner`` and ``word``: read) an object of the exchange itself."""


def exchange_prefix(run_id: UUID | str) -> str:
    """Where everything lies that the owners and the steps of a run tell each other."""
    return f"{ROOT}/{run_id}"


def event_piece(index: int) -> str:
    """The name of a piece of the event lines."""
    return f"events/{index:05d}"


class InputFile(BaseModel):
    """One file of an input."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Below the input's address; empty: the input is this file."""
    bytes: int = Field(ge=0)


class Word(BaseModel):
    """The owner's word: a grant, and the addresses that the question wanted. Sealed for the step alone."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    grant: Grant
    addresses: dict[str, str]
    """By want. Those of ``ask``, ``owner`` and ``word`` are always there."""
    fresh_s: float = Field(gt=0)
    """For so long after it was said every address in it is certainly good."""
    order: Order | None = None
    """Until the first question: the step knows nothing before."""
    inputs: dict[str, list[InputFile]] = Field(default_factory=dict)
    """Beside the order: what each of the spec's ``sources`` consists of."""
