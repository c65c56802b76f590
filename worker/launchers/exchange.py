"""The folder through which a worker and a step on another machine talk: small files, each written by one side.

Both see the same file system. Below ``<root>/<run id>/<attempt>-<step>-<serial>/``, where
the serial counts the starts of the same step in the same attempt:

==============  =========  ==================================================================================
file            written    content
==============  =========  ==================================================================================
``order.json``  worker     what to run and how: the StepSpec, the options of the node's own launcher
``owner``       worker     the token of the owner whose grants count; whoever adopts replaces it
``ask``         step       a number, one more at every beat
``grant.json``  worker     the right to run: the newest ``ask`` it answers, the seconds left, stop, kill
``events``      step       event lines
``log``         step       the output, bounded
``started``     step       made once: a cluster that starts a job twice starts it in vain
``ended.json``  step       the facts of the end; the step's last file
``closed``      worker     made by the owner that has taken everything in: nobody adopts the step any more
==============  =========  ==================================================================================

The right counts from the moment the step *asked*, on the step's own clock, so the two clocks need not agree and a
slow network only shortens it. Files replaced as a whole are written beside and renamed.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from schemas.steps import Step, StepSpec

OUTPOST_LOG: Final = "outpost.log"
"""What the outpost itself prints: nothing, or why it could not work."""


class Order(BaseModel):
    """What the step's side must know. Readable by its user only: addresses in it may be signed."""

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


class Grant(BaseModel):
    """The owner's word to its step."""

    model_config = ConfigDict(frozen=True)

    owner: str
    ask: int
    """The newest question it answers; 0 when none had been seen."""
    remaining_s: float
    stop: bool
    kill: bool


class Exchange:
    """One step's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = folder / "events"
        self.log = folder / "log"

    @property
    def name(self) -> str:
        """Unique: ``<run id>-<attempt>-<step>-<serial>``."""
        return f"{self.folder.parent.name}-{self.folder.name}"

    @property
    def attempt(self) -> int:
        """The attempt that started it."""
        return int(self.folder.name.split("-")[0])

    @property
    def serial(self) -> int:
        """How many starts of the same step in the same attempt this makes."""
        return int(self.folder.name.split("-")[2])

    @classmethod
    def newest(cls, root: Path, run_id: UUID, attempt: int, step: Step) -> Self | None:
        """The last start of this step in the newest attempt up to this one, if there was any."""
        starts = [cls(folder) for folder in (root / str(run_id)).glob(f"*-{step}-*")]
        known = [start for start in starts if start.attempt <= attempt]
        return max(known, key=lambda start: (start.attempt, start.serial), default=None)

    @classmethod
    def next(cls, root: Path, run_id: UUID, attempt: int, step: Step) -> Self:
        """The folder, not yet made, for one more start of this step."""
        newest = cls.newest(root, run_id, attempt, step)
        serial = newest.serial + 1 if newest is not None and newest.attempt == attempt else 1
        return cls(root / str(run_id) / f"{attempt}-{step}-{serial}")

    @classmethod
    def of_earlier_attempts(cls, root: Path, run_id: UUID, below_attempt: int) -> list[Self]:
        """The run's starts in smaller attempts that were begun and have not said that they ended."""
        found = [cls(folder) for folder in sorted((root / str(run_id)).glob("*-*-*"))]
        return [exchange for exchange in found if exchange.attempt < below_attempt and exchange.ended() is None]

    def create(self, order: Order, token: str) -> None:
        """Lay the folder, the order and the first owner.

        Raises:
            FileExistsError: somebody else laid it in the same moment.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.mkdir(mode=0o700)
        self._write("order.json", order.model_dump_json())
        self.take_over(token)

    def begin(self) -> None:
        """The step's first act.

        Raises:
            FileExistsError: this very step was begun before.
        """
        os.close(os.open(self.folder / "started", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    def order(self) -> Order:
        """What to run."""
        return Order.model_validate_json(self._read("order.json") or "")

    def take_over(self, token: str) -> None:
        """From now on only this owner's grants count."""
        self._write("owner", token)

    def is_owned_by(self, token: str) -> bool:
        """Whether nobody else has taken over."""
        return self._read("owner") == token

    def is_taken_from(self, token: str) -> bool:
        """Whether somebody else has taken over. A folder that is away says nothing."""
        return self._read("owner") not in (None, token)

    def close(self, token: str) -> None:
        """Say that its end was taken in, if that is for this owner to say."""
        if self.is_owned_by(token):
            self._write("closed", "")

    def is_closed(self) -> bool:
        """Whether its end was taken in by an owner: it is over for good, and nothing is left to adopt."""
        return (self.folder / "closed").exists()

    def ask(self, number: int) -> None:
        """The step's next question for its right."""
        self._write("ask", str(number))

    def asked(self) -> int:
        """The newest question; 0 before the first."""
        return int(self._read("ask") or 0)

    def grant(self, grant: Grant) -> None:
        """Answer, if the grant's owner still is the owner."""
        if self.is_owned_by(grant.owner):
            self._write("grant.json", grant.model_dump_json())

    def command_kill(self, token: str) -> None:
        """Take over only to end it."""
        self.take_over(token)
        self.grant(Grant(owner=token, ask=0, remaining_s=0.0, stop=False, kill=True))

    def granted(self) -> Grant | None:
        """The present owner's newest word."""
        content = self._read("grant.json")
        if content is None:
            return None
        grant = Grant.model_validate_json(content)
        return grant if self.is_owned_by(grant.owner) else None

    def end(self, facts: dict[str, Any]) -> None:
        """The facts of the end, after everything else is written."""
        self._write("ended.json", json.dumps(facts))

    def ended(self) -> dict[str, Any] | None:
        """The facts of the end, once there are any."""
        content = self._read("ended.json")
        return None if content is None else json.loads(content)

    def _write(self, name: str, content: str) -> None:
        # two owners may write at once for a moment: each beside under its own name
        beside = self.folder / f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        beside.replace(self.folder / name)

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return None


_KEPT_S: Final = 7 * 24 * 3600.0


def remove_old(root: Path) -> int:
    """Remove the folders of runs in which nothing was written for a week; how many."""
    limit = time.time() - _KEPT_S
    old = [run for run in root.glob("*/") if max(path.stat().st_mtime for path in [run, *run.glob("*")]) < limit]
    for run in old:
        shutil.rmtree(run, ignore_errors=True)
    return len(old)
