"""A launcher that starts no process: for measuring the orchestration alone. It trains nothing.

Every step ends at once with an empty result. Never a fallback: it is chosen by its own name only, and a run
that went through it has figures that say so.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from schemas.events import Event, Result
from schemas.steps import Step, StepSpec
from worker.launchers.interface import Ended, EndReason

_RESULT = Result(figures={"launcher": "noop"})
_ENDED = Ended(
    reason=EndReason.EXITED,
    exit_code=0,
    signal=None,
    out_of_memory=False,
    max_rss_bytes=0,
    cpu_s=0.0,
    paused_s=0.0,
    last_word=_RESULT,
)


@dataclass(frozen=True, slots=True)
class NoopHandle:
    """A step that was over before it began."""

    spec: StepSpec
    waits: bool = False

    async def events(self) -> AsyncIterator[Event]:
        """The empty result."""
        yield _RESULT

    def feed(self, remaining_s: float) -> None:
        """Nothing runs."""

    async def ask_stop(self) -> None:
        """Nothing runs."""

    async def kill(self) -> None:
        """Nothing runs."""

    async def wait(self) -> Ended:
        """At once."""
        return _ENDED


class NoopLauncher:
    """Starts nothing and says so."""

    fetches = False

    async def start(self, spec: StepSpec, *, lease_s: float, log: Path) -> NoopHandle:
        """A handle on a step that has ended."""
        _ = lease_s, log
        return NoopHandle(spec)

    async def adopt(self, run_id: UUID, attempt: int, step: Step, *, lease_s: float, log: Path) -> None:
        """Nothing ever runs."""

    async def ensure_stopped(self, run_id: UUID, below_attempt: int) -> None:
        """Nothing ever runs."""

    async def sweep(self) -> int:
        """Nothing is ever left."""
        return 0

    async def close(self) -> None:
        """Nothing to let go of."""
