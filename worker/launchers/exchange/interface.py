"""What a worker and a step on another machine say to each other, and how either side says it.

The words: the worker lays an *order* and grants the right to run in answer to the step's *questions*; the step says
events, output and the facts of its end. The right counts from the moment the step *asked*, on the step's own clock,
so the two clocks need not agree and a slow road only shortens it.

There are two roads: a folder that both see (``folder``), and object storage that the worker reaches with its
credentials and the step by signed addresses (``storage``, ``storage_node``).
"""

from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.events import Event
from schemas.steps import Step, StepSpec
from worker.errors import StorageAway, WorkerError
from worker.launchers.interface import Ended, EndReason
from worker.launchers.step_rules import Isolation


class UnreadableWord(WorkerError):  # noqa: N818 - what the other side is to blame for
    """What the other side wrote does not fit its model, is larger than it may be, or lies in no plain file."""


EXCHANGE_AWAY: Final = (OSError, StorageAway, UnreadableWord)
"""What either road raises while it is interrupted: nothing is known, and later it may be there again."""
MOST_WANTS: Final = 256
LONGEST_ORDER: Final = 16 * 2**20
"""Bytes."""
LONGEST_FACTS: Final = 2**20
"""Bytes."""


class Order(BaseModel):
    """What the step's side must know. For its eyes only: addresses in it may be signed."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    spec: StepSpec
    command: tuple[str, ...]
    beat_s: float
    patience_s: float
    memory_limit_bytes: int
    log_limit_bytes: int
    niceness: int
    threads: int | None
    processes: int = 1
    added_environment: dict[str, str]
    garbage_limit: int
    isolation: Isolation = "best_available"
    network: bool = False
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()


class Question(BaseModel):
    """What the step wants to know: may it go on, and where."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    number: int = Field(default=0, ge=0)
    """One more at every beat; 0: it has not asked yet."""
    wants: tuple[str, ...] = Field(default=(), max_length=MOST_WANTS)
    """What it wants signed addresses for; see ``storage``."""
    log_version: int = 0
    """How often its output was put into storage."""


class Grant(BaseModel):
    """The owner's word to its step."""

    model_config = ConfigDict(frozen=True)

    owner: str
    ask: int
    """The newest question it answers; 0 when none had been seen."""
    remaining_s: float
    stop: bool
    kill: bool


class EndFacts(BaseModel):
    """``interface.Ended`` without the last event, which is among the events."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    reason: EndReason
    exit_code: int | None
    signal: int | None
    out_of_memory: bool
    max_rss_bytes: int
    cpu_s: float
    paused_s: float
    garbage_lines: int
    dropped_events: int
    detail: str = Field(max_length=100_000)

    @classmethod
    def of(cls, ended: Ended) -> Self:
        """What is to be told of an end."""
        facts = asdict(ended)
        del facts["last_word"]
        return cls(**facts)


class Exchange(Protocol):
    """One start of one step, seen by its owner. Every method may raise one of ``EXCHANGE_AWAY``."""

    name: str
    """Unique: ``<run id>-<attempt>-<step>-<serial>``, where the serial counts the starts in the same attempt."""
    attempt: int
    """The attempt that started it."""
    serial: int
    output: Path | None
    """Where the cluster writes what the outpost prints; None: nowhere that we could read."""
    log: Path
    """The step's output on this host, as far as ``bring_log`` brought it."""

    async def create(self, order: Order, token: str) -> None:
        """Lay the order and name the first owner.

        Raises:
            FileExistsError: somebody else laid it in the same moment.
        """

    async def arguments(self) -> Sequence[str]:
        """What the outpost is told on its command line, where other users of the cluster may see it."""

    async def order(self) -> Order:
        """What to run."""

    async def take_over(self, token: str) -> None:
        """From now on only this owner's grants count."""

    async def is_taken_from(self, token: str) -> bool:
        """Whether somebody else has taken over. What cannot be read says nothing."""

    async def close(self, token: str) -> None:
        """Say that its end was taken in, if that is for this owner to say: nobody adopts the step any more."""

    async def is_closed(self) -> bool:
        """Whether its end was taken in by an owner: it is over for good, and nothing is left to adopt."""

    async def question(self) -> Question:
        """The step's newest question."""

    async def grant(self, grant: Grant, question: Question) -> bool:
        """Answer, if the grant's owner still is the owner. False: there is nobody yet who could read it."""

    async def command_kill(self, token: str) -> None:
        """Take over only to end it, begun or not."""

    async def more_events(self) -> bytes:
        """The next bytes of the event lines, some at a time; none when there are no more yet."""

    async def bring_log(self, question: Question, *, whole: bool = False) -> None:
        """Make ``log`` current; ``whole``: now that nobody writes it any more."""

    async def ended(self) -> EndFacts | None:
        """The facts of the end, once there are any. They are written after everything else."""

    async def outpost_output(self) -> str:
        """The last that the outpost itself printed: nothing, or why it could not work."""


class Exchanges(Protocol):
    """Every exchange of every step: one road."""

    fetches: bool
    """Whether steps fetch their inputs from object storage and leave their outputs there, by themselves."""

    async def newest(self, run_id: UUID, attempt: int, step: Step) -> Exchange | None:
        """The last start of this step in the newest attempt up to this one, if there was any."""

    async def next(self, run_id: UUID, attempt: int, step: Step) -> Exchange:
        """The exchange, not yet laid, for one more start of this step."""

    async def of_earlier_attempts(self, run_id: UUID, below_attempt: int) -> Sequence[Exchange]:
        """The run's starts in smaller attempts that have not said that they ended."""

    async def remove_old(self) -> int:
        """Remove what belongs to runs in which nothing was written for a week; how many runs."""


class NodeSide(Protocol):
    """The same exchange, seen by the step's outpost on its node. Methods may raise one of ``EXCHANGE_AWAY``."""

    log: Path
    """Where the step's output is to be written."""

    async def begin(self) -> Order:
        """The step's first act.

        Raises:
            FileExistsError: this very step was begun before: a cluster that starts a job twice starts it in vain.
        """

    async def ask(self, number: int) -> Grant | None:
        """Ask for the right, and read the present owner's newest word; perhaps an answer to an earlier question."""

    async def fetched(self, spec: StepSpec, scratch: Path) -> StepSpec:
        """The spec with every input and the output as paths on this node.

        Raises:
            InputError: an input cannot be had.
        """

    async def pass_on(self, event: Event) -> None:
        """Tell the owner; of files only when the owner can read them."""

    async def keep_up(self) -> None:
        """Bring on what was written since the last time: events, output."""

    def give_up(self) -> None:
        """The step is to be killed: nothing is worth waiting for any more."""

    async def end(self, facts: EndFacts) -> None:
        """The facts of the end, after everything else was brought on."""


class InputError(Exception):
    """An input could not be brought to the node.

    Attributes:
        code: ``input_unreachable``, ``input_spoiled``, ``node_disk``.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


Model = TypeVar("Model", bound=BaseModel)


def understood(model: type[Model], content: str | bytes) -> Model:
    """What the other side wrote, checked.

    Raises:
        UnreadableWord: it is something else.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise UnreadableWord(f"not a {model.__name__}: {error}") from error


Said = TypeVar("Said")
Otherwise = TypeVar("Otherwise")


async def readable_or(otherwise: Otherwise, reading: Awaitable[Said]) -> Said | Otherwise:
    """What the other side said. What cannot be read says nothing, and must not stand in the way of a step's end."""
    try:
        return await reading
    except UnreadableWord:
        return otherwise


Start = TypeVar("Start", bound=Exchange)


def starts_up_to(found: Sequence[Start], attempt: int) -> Start | None:
    """Of the starts of one step, the newest in an attempt that is not above this one."""
    known = [start for start in found if start.attempt <= attempt]
    return max(known, key=lambda start: (start.attempt, start.serial), default=None)
