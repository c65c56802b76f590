"""What every launcher offers, whatever machine the trainer runs on.

The words: a launcher *starts* a step and gives a handle. The owner *feeds* the handle with its right to run;
unfed, the trainer is paused, then killed. Whoever takes a run over *adopts* what an earlier attempt left
running, or makes sure that it is *stopped*, before anything new starts.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import UUID

from schemas.events import Event, Failure, Result, Stopped
from schemas.steps import Step, StepSpec
from worker.errors import WorkerError


class LauncherUnavailable(WorkerError):  # noqa: N818 - a state of the world, not an error of the run
    """Nothing can be started or known right now: the run waits and is not charged a failure.

    Attributes:
        code: ``no_device``, ``no_right``, ``cannot_fork``, ``cluster_unreachable``, ``cluster_refused``.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class EndReason(StrEnum):
    """Who or what ended the trainer."""

    EXITED = "exited"
    """It ended by itself, or a stranger's signal ended it."""
    KILLED = "killed"
    """The owner's ``kill``."""
    UNFED = "unfed"
    """The right to run was not renewed in time, nor during the patience afterwards."""
    OWNER_GONE = "owner_gone"
    """The owner died. Seen only by whoever adopts or inspects a remote step."""
    MEMORY_LIMIT = "memory_limit"
    """Its processes together passed the memory limit that was set."""
    EVENT_GARBAGE = "event_garbage"
    """It wrote more unreadable event lines than are borne with."""
    NOT_STARTED = "not_started"
    """Its program could not be executed."""
    TAKEN_OVER = "taken_over"
    """Another owner adopted it, or ends it: it is over for us, and its files are not ours to remove."""
    SUPERVISOR_LOST = "supervisor_lost"
    """Its guard died or froze, so it was ended: nobody could have kept it inside its right."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The facts of a step's end. ``classify`` says what they mean."""

    reason: EndReason
    exit_code: int | None
    """Null when a signal ended it, or when nobody saw its end."""
    signal: int | None
    out_of_memory: bool
    """It was killed for memory: by our limit, or by the kernel as far as its counters tell."""
    max_rss_bytes: int
    """Largest memory of the whole process tree at a sample, or of one process at any time."""
    cpu_s: float
    """Processor seconds, user and system, of the trainer and its descendants."""
    paused_s: float
    last_word: Result | Failure | Stopped | None
    """The last event that says how it ended, if there was one."""
    garbage_lines: int = 0
    dropped_events: int = 0
    """Progress and metric events that nobody fetched in time."""
    detail: str = ""
    """For the operator: the last lines of the output, samples of garbage."""


class Handle(Protocol):
    """One started step."""

    @property
    def spec(self) -> StepSpec:
        """What it was told. An adopted step writes where its own attempt told it to, not where ours would."""

    @property
    def waits(self) -> bool:
        """Whether its cluster has not begun it yet: nothing moves, and that is no stall."""

    def events(self) -> AsyncIterator[Event]:
        """The step's events in order; ends when the trainer and every descendant are gone."""

    def feed(self, remaining_s: float) -> None:
        """Give the right to run for so many seconds from now; zero pauses at once. Cheap, never raises."""

    async def ask_stop(self) -> None:
        """Ask for a checkpoint and an end (SIGTERM to the trainer's group). Returns at once; never raises."""

    async def kill(self) -> None:
        """End it now: on return the group and every descendant are gone. Harmless when it has ended.

        Says also that everything it left has been taken in: nobody adopts it any more. What another owner has
        taken over is left alone.
        """

    async def wait(self) -> Ended:
        """The facts, once it has ended. Does not depend on anybody reading ``events``."""


class Launcher(Protocol):
    """A kind of place where steps run."""

    @property
    def fetches(self) -> bool:
        """Whether its steps take their inputs from object storage (``StepSpec.sources``) by themselves.

        Their checkpoints and artifacts lie in storage too when the event that tells of them arrives, below
        ``schemas.steps.output_prefix``. Otherwise steps read and write the paths that they are told.
        """

    async def start(self, spec: StepSpec, *, lease_s: float, log: Path) -> Handle:
        """Start a step with the right to run for ``lease_s`` seconds; its output is appended to ``log``.

        Returns before the trainer's program runs: what goes wrong there is told by ``Handle.wait``.

        Raises:
            LauncherUnavailable: no device is free, or the cluster does not answer.
        """

    async def adopt(self, run_id: UUID, attempt: int, step: Step, *, lease_s: float, log: Path) -> Handle | None:
        """Take over this step of the newest attempt up to this one that started it, if it still runs.

        The same process goes on, under a new owner, and all its events are replayed. A step that ended by itself
        while nobody owned it is handed over with its end.

        Raises:
            LauncherUnavailable: it cannot be known whether it runs.
        """

    async def ensure_stopped(self, run_id: UUID, below_attempt: int) -> None:
        """Return when every attempt of the run with a smaller number is known to be dead.

        Raises:
            LauncherUnavailable: it cannot be known; the run waits.
        """

    async def sweep(self) -> int:
        """Clear what earlier workers left and nobody will ask for: processes, folders. How many; never urgent."""

    async def close(self) -> None:
        """End whatever this launcher started that cannot outlive the worker, and let go of its resources."""
