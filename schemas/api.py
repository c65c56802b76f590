"""What the HTTP API says and takes, version 3 and beyond. Field names and JSON types of version 3 never change."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from schemas.messages import LARGEST_ID
from schemas.names import NAME_PATTERN
from schemas.status import Gate, Phase, TrainingStatus
from schemas.wire import Wire

Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


def _whole_number(value: object) -> object:
    """JSON knows one kind of number, so 7.0 is 7; a text or a boolean is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("int_type", "Input should be a whole number")
    return value


IdWanted = Annotated[int, Field(ge=1, le=LARGEST_ID), BeforeValidator(_whole_number)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NAME_PATTERN)]
"""1 to 200 characters, none of them hidden, not only spaces."""
Count = Annotated[int, Field(ge=0)]
Verdict = Literal["waiting_for_pair", "waiting_for_run", "accepted", "rejected"]
Split = Literal["train", "dev", "test"]


class ModelWanted(Wire):
    """Body of create and update. All fields are required."""

    name: Name
    language_id: IdWanted = Field(description="the base language to start from")
    organization_id: IdWanted


class TrainingLog(Wire):
    """Where the newest run of a model stands."""

    language_id: Id = Field(description="the model's own id: a custom model is itself a language")
    training_status: TrainingStatus
    log_name: None = None


class Model(Wire):
    """A custom model, exactly as version 3 shows it."""

    id: Id
    key: str
    name: str
    last_modified: datetime
    organization_id: Id
    language_data: None = None
    is_trainable: bool
    type: Literal[1] = 1
    base_language_id: Id
    base_language_key: str
    training_log: TrainingLog | None = None
    """Absent until a run was asked for, never null."""


class CustomModels(Wire):
    """A page of models."""

    count: Count = Field(description="rows in this page")
    total_results: Count = Field(description="rows that match")
    result: list[Model]


class DataItem(Wire):
    """One file of a model's training data."""

    id: Id
    name: str
    kind: Literal["audio", "transcript", "manifest"]
    bytes: Count
    duration_s: float | None
    split: Split | None
    verdict: Verdict
    reason_code: str | None
    reason: str | None
    created: datetime


class DataItems(Wire):
    """A page of training data."""

    count: Count
    total_results: Count
    result: list[DataItem]


class RefusedFile(Wire):
    """A file that was not stored, and why."""

    name: str
    reason_code: str
    reason: str


class Uploaded(Wire):
    """What became of every file of an upload."""

    count: Count
    result: list[DataItem]
    refused: list[RefusedFile]


class UploadWanted(Wire):
    """A large file that will come in parts."""

    name: str = Field(min_length=1, max_length=200)
    bytes: IdWanted
    split: Split | None = None


class Upload(Wire):
    """A file on its way."""

    id: UUID
    name: str
    bytes: int
    received: int = Field(description="where the next part begins")
    expires: datetime
    item: DataItem | None = Field(description="the data item, once the last byte is there")


class BaseLanguage(Wire):
    """What models start from."""

    id: Id
    key: str
    name: str


class BaseLanguages(Wire):
    """Every base language."""

    count: Count
    total_results: Count
    result: list[BaseLanguage]


class RunFailure(Wire):
    """Why a run, or its last attempt, ended badly."""

    failure_class: str = Field(serialization_alias="class", validation_alias="class")
    code: str | None
    reason: str | None


class Transition(Wire):
    """One move of a run."""

    sequence: int
    from_status: TrainingStatus | None = Field(serialization_alias="from", validation_alias="from")
    to_status: TrainingStatus = Field(serialization_alias="to", validation_alias="to")
    attempt: int
    at: datetime
    reason_code: str | None


class CurvePoint(Wire):
    """One point of a curve."""

    name: str
    steps_done: int
    value: float


class ErrorRates(Wire):
    """Word error rates on the test split, as fractions."""

    base: float | None
    custom: float | None


class Run(Wire):
    """One run, for a list."""

    id: UUID
    custom_model_id: Id
    training_status: TrainingStatus
    requested: datetime
    started: datetime | None
    ended: datetime | None
    attempt: int
    phase: Phase | None
    percent: float
    eta_s: float | None
    since_sign_of_life_s: float | None = Field(
        description="seconds since the trainer last made progress; null unless running"
    )
    cancel_requested: bool
    failure: RunFailure | None
    gate: Gate | None


class RunDetail(Run):
    """One run, whole."""

    failures: int
    data_report: dict[str, Any] | None
    error_rates: ErrorRates
    figures: dict[str, Any] | None
    curve: list[CurvePoint]
    transitions: list[Transition]
    has_log: bool
    has_report: bool


class Runs(Wire):
    """A page of runs, the newest first."""

    count: Count
    total_results: Count
    result: list[Run]


class Version(Wire):
    """What a run published."""

    number: int
    run_id: UUID
    created: datetime
    serving: bool
    figures: dict[str, Any]


class Versions(Wire):
    """A page of versions, the newest first."""

    count: Count
    total_results: Count
    result: list[Version]


class WebhookWanted(Wire):
    """Where events should go."""

    url: str = Field(min_length=1, max_length=2_000, description="https, to a public address")


class Webhook(Wire):
    """Where events go."""

    id: Id
    url: str
    created: datetime
    secret: str | None = Field(
        description="shown once, in the first answer when the webhook is made; null ever after, in the answer to a "
        "repeat with the same Idempotency-Key as well: delete the webhook and make another where it was lost. "
        "Signs every delivery"
    )


class Webhooks(Wire):
    """The organization's webhooks."""

    count: Count
    total_results: Count
    result: list[Webhook]


class Delivery(Wire):
    """One event on its way to a webhook."""

    id: Id
    event_id: UUID
    kind: Literal["event", "test"]
    status: Literal["waiting", "delivered", "failed"]
    attempts: int
    answer_status: int | None
    error: str | None
    created: datetime
    due: datetime
    ended: datetime | None


class Deliveries(Wire):
    """The newest deliveries of a webhook."""

    count: Count
    total_results: Count
    result: list[Delivery]


class Caller(Wire):
    """Whose key this is, and what it may use."""

    organization_id: Id | None = Field(description="null for an operator's key")
    role: Literal["reader", "member", "owner", "operator"]
    key_name: str
    models: Count
    stored_hours: float
    minimum_audio_s: float


class AuditEntry(Wire):
    """One write, read or refusal."""

    id: Id
    at: datetime
    api_key_id: int | None
    action: str
    custom_model_id: int | None
    run_id: UUID | None
    detail: dict[str, Any]
    address: str | None = Field(description="the client's, of a request; null: a command, or not kept then")
    request_id: str | None = Field(description="X-Request-Id of the answer, or of a command")


class AuditEntries(Wire):
    """The newest entries of an organization."""

    count: Count
    result: list[AuditEntry]


class FieldError(Wire):
    """One field at fault."""

    field: str
    code: str
    message: str


class Problem(Wire):
    """An error, RFC 9457, with a code that never changes."""

    type: str
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    code: str
    errors: list[FieldError] | None = None
