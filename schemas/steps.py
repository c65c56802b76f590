"""What a recipe's step is told: one JSON object on its standard input."""

from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import Field

from schemas.wire import Wire

PROTOCOL: Final = 1
STOPPED_EXIT_CODE: Final = 75
"""EX_TEMPFAIL: the step was asked to stop and did, after its ``stopped`` event."""
FAILURE_EXIT_CODE: Final = 65
"""EX_DATAERR: the step said why in a ``failure`` event."""
ATTEMPT_MARK: Final = "TRAINING_ATTEMPT"
"""Environment variable ``<run id>:<attempt>`` by which every process of an attempt is found on its host."""
PROCESSES: Final = "TRAINER_PROCESSES"
"""Environment variable: how many processes the step may spread over on its host; unset is one."""


class Step(StrEnum):
    """The four steps of a recipe, each a process of its own."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"


class Source(Wire):
    """An input where it lies in object storage: what a node that shares no folder with its worker fetches itself."""

    address: str
    """Storage key of a file, or prefix of a folder."""
    sha256: str | None = None
    """``file_digest`` or ``tree_digest`` of the whole; null where nobody knows it."""
    inside: str = ""
    """The part of the folder that the step is given."""
    lists_recordings: bool = False
    """It is a run's manifest: the recordings in its rows are fetched too, and the rows rewritten to their places."""


class StepSpec(Wire):
    """One step of one attempt: what to read, where to write, with which settings."""

    protocol: Literal[1] = PROTOCOL
    run_id: UUID
    attempt: int = Field(ge=1)
    step: Step
    recipe: str
    recipe_version: str
    seed: int
    language: str = "en"
    """What is spoken, as Whisper spells it: de, yue. Transcripts are written, and errors counted, in it."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters, already validated against the recipe's own list."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Name to address: an absolute path, or a signed https URL."""
    sources: dict[str, Source] = Field(default_factory=dict)
    """Inputs still in object storage. Whoever starts the step on a node turns each into one of ``inputs``."""
    output: str
    """The step's own folder. It exists, and may hold what an earlier process of this attempt left."""
    context: dict[str, Any] = Field(default_factory=dict)
    """Facts for model cards and reports; nothing is decided from them."""


class ManifestRow(Wire):
    """One line of a run's fixed manifest: one candidate training segment."""

    row: int = Field(ge=0)
    data_ids: list[int]
    """The data items (audio, transcript) this row comes from."""
    file: str
    """The audio's name as the customer knows it."""
    audio: str
    """Address of the audio: a storage key in the stored manifest, a path or URL in the one a step reads."""
    audio_sha256: str
    audio_bytes: int = Field(ge=0)
    text: str
    offset_s: float | None = None
    duration_s: float | None = None
    """Null: the whole file."""
    speaker: str | None = None
    split: Literal["train", "dev", "test"] | None = None
    """As marked by the customer."""
    earlier: Literal["train", "dev", "test"] | None = None
    """What it was in an earlier training of the model; without either, ``schemas.split_rule`` decides."""
    source: Literal["txt", "cue", "jsonl"] = "txt"


class Verdict(Wire):
    """What became of one file or segment, in words its owner understands."""

    data_ids: list[int]
    row: int | None = None
    file: str
    verdict: Literal["accepted", "rejected", "waiting_for_pair"]
    reason_code: str | None = None
    reason: str | None = None
    duration_s: float | None = None
    recording_s: float | None = None
    """Seconds of the whole recording as its decoder found them; ``duration_s`` is of the part that is used."""
    split: Literal["train", "dev", "test"] | None = None
    count: int = Field(default=1, ge=1)
    """How many of its kind it stands for, where a file has too many of one to spell out."""


def output_prefix(spec: StepSpec) -> str:
    """Where in storage a step that fetches leaves what its result lists, each under its own path."""
    return f"{attempt_prefix(spec)}/{spec.step.value}"


def checkpoint_prefix(spec: StepSpec, steps_done: int) -> str:
    """Where in storage it leaves a checkpoint."""
    return f"{attempt_prefix(spec)}/checkpoints/{steps_done:08d}"


def attempt_prefix(spec: StepSpec) -> str:
    """Where in storage the attempt that started a step keeps what it makes, and the only place it may write to."""
    return f"runs/{spec.run_id}/{spec.attempt}"
