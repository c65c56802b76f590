"""One attempt while it lasts: what it holds, how far it is, and who wants it to end."""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from schemas.status import Phase
from worker.domain.run import ClaimedRun, Fence, Progress
from worker.launchers.interface import Handle

CURVES: Final = 16
"""Of a recipe that measures more, such as a norm for each layer, the first so many are shown."""
CURVE_POINTS: Final = 64
"""Of each: a run's row is written every second."""
_LONGEST_ETA_S: Final = 10 * 365 * 86_400.0


class Ending(StrEnum):
    """Why an attempt should end before its story does. A later, stronger one replaces a weaker one."""

    HAND_OVER = "hand_over"
    HAND_OVER_NOW = "hand_over_now"
    """The grace is over, or somebody asked twice: no time for another checkpoint."""
    CANCELLED = "cancelled"
    LOST = "lost"


_STRENGTH: Final = {
    None: 0,
    Ending.HAND_OVER: 1,
    Ending.HAND_OVER_NOW: 2,
    Ending.CANCELLED: 3,
    Ending.LOST: 4,
}


class Attempt:
    """What the pipeline, the heartbeat and the shutdown share about one attempt.

    Args:
        run: the claimed run.
        folder: scratch of this attempt on this host.
        log: the run's own log.
        right_until: monotonic second until which the trainer may run without another renewal.
        monotonic: the process's clock.
    """

    def __init__(
        self, run: ClaimedRun, folder: Path, log: Path, right_until: float, monotonic: Callable[[], float]
    ) -> None:
        self.run = run
        self.folder = folder
        self.log = log
        self.started_at: Final = monotonic()
        self.phase = Phase.LOAD
        self.percent = 0.0
        self.eta_s: float | None = None
        self.progress_at = monotonic()
        self._audio_s: float | None = None
        self.staged = False
        """True once everything to publish lies in storage: from here finishing is quicker than handing over."""
        self.taken_over = False
        """True when another attempt goes on with the step that this one started, in this one's folder."""
        self.settling = False
        """True once its outcome is on the way to the database: nothing can change it any more."""
        self.phase_seconds: dict[str, float] = {}
        self.ending: Ending | None = None
        self._monotonic = monotonic
        self._right_until = right_until
        self._handle: Handle | None = None
        self._ending_changed = asyncio.Event()
        self._unwritten = True
        self._figures: dict[str, float] = {}
        self._curves: dict[str, list[tuple[int, float]]] = {}

    @property
    def fence(self) -> Fence:
        """The right to write."""
        return self.run.fence

    # --- the lease -----------------------------------------------------------------------------------------------

    def right_left_s(self) -> float:
        """Seconds for which a trainer may run without another renewal."""
        return max(0.0, self._right_until - self._monotonic())

    def renewed(self, right_until: float) -> None:
        """A renewal was answered: pass the right on to whatever runs."""
        self._right_until = right_until
        if self._handle is not None:
            self._handle.feed(self.right_left_s())

    def runs_under(self, handle: Handle | None) -> None:
        """What is fed from now on."""
        self._handle = handle
        if handle is not None:
            handle.feed(self.right_left_s())

    # --- the end -------------------------------------------------------------------------------------------------

    def end(self, ending: Ending) -> None:
        """Ask the attempt to end; a stronger wish replaces a weaker one."""
        if _STRENGTH[ending] > _STRENGTH[self.ending]:
            self.ending = ending
            self._ending_changed.set()

    async def ending_changes(self) -> Ending:
        """Wait for a wish to end, or for a stronger one."""
        await self._ending_changed.wait()
        self._ending_changed.clear()
        assert self.ending is not None
        return self.ending

    async def ask_trainer_to_stop(self) -> bool:
        """Ask what runs for a checkpoint and an end. False: nothing runs."""
        if self._handle is None:
            return False
        await self._handle.ask_stop()
        return True

    # --- progress ------------------------------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """Another phase begins."""
        self.phase, self.percent, self.eta_s, self._audio_s = phase, 0.0, None, None
        self.sign_of_progress()

    def sign_of_progress(self) -> None:
        """Something moved: the stall clock starts again."""
        self.progress_at = self._monotonic()
        self._unwritten = True

    def advance(self, percent: float, eta_s: float | None = None) -> None:
        """The phase is so far, 0 to 100."""
        self.percent = min(100.0, max(0.0, percent))
        self.eta_s = eta_s if eta_s is not None and 0 <= eta_s <= _LONGEST_ETA_S else None
        self.sign_of_progress()

    def audio_since(self, audio_s: float) -> float:
        """Seconds of audio worked through since the last call in this phase; the first says where it begins."""
        before, self._audio_s = self._audio_s, audio_s
        return 0.0 if before is None else max(0.0, audio_s - before)

    def note_figure(self, name: str, value: float | None, steps_done: int | None) -> None:
        """A point of a curve; of a long one every second point is kept. None: it is no number."""
        self.sign_of_progress()
        if value is None or (name not in self._figures and len(self._figures) >= CURVES):
            return
        self._figures[name] = value
        if steps_done is not None:
            curve = self._curves.setdefault(name, [])
            curve.append((steps_done, value))
            if len(curve) > CURVE_POINTS:
                del curve[1::2]

    def unwritten_progress(self) -> Progress | None:
        """What is worth writing since the last time, if anything is."""
        if not self._unwritten:
            return None
        self._unwritten = False
        points = sorted((steps, name, value) for name, curve in self._curves.items() for steps, value in curve)
        live: dict[str, Any] = {"figures": self._figures, "curve": points}
        return Progress(self.fence, self.phase.value, self.percent, self.eta_s, live)
