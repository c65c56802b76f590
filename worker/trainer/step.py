"""What every recipe step is given: its orders, its events, and the wish to stop."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.digest import file_digest
from schemas.events import Artifact, Metric, Progress, Result
from schemas.recipes import WhisperParameters
from schemas.steps import StepSpec
from worker.trainer.emitter import Emitter
from worker.trainer.failures import StepFailureError, StepStoppedError, bad_data


class StopRequest:
    """Set by SIGTERM; steps look at it wherever they can stop cleanly."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, *_signal: object) -> None:
        """Take the signal."""
        self.requested = True

    def check(self, steps_done: int | None = None) -> None:
        """Stop here if asked to.

        Raises:
            StepStoppedError: SIGTERM came.
        """
        if self.requested:
            raise StepStoppedError(steps_done)


@dataclass(frozen=True)
class StepRun:
    """One run of one step."""

    spec: StepSpec
    parameters: WhisperParameters
    emitter: Emitter
    stop: StopRequest

    @property
    def output(self) -> Path:
        """The step's own folder."""
        return Path(self.spec.output)

    def input(self, name: str) -> Path:
        """A required input's place on this machine.

        Raises:
            StepFailureError: it was not given or is not there.
        """
        found = self.optional_input(name)
        if found is None:
            raise bad_data("input_missing", "Training data is missing.", f"no input named {name}")
        return found

    def optional_input(self, name: str) -> Path | None:
        """An input's place, or None when it was not given."""
        address = self.spec.inputs.get(name)
        if address is None:
            return None
        path = Path(address)
        if not path.exists():
            from schemas.failures import FailureClass  # noqa: PLC0415 - only on this road

            raise StepFailureError(
                FailureClass.INFRASTRUCTURE,
                "input_unreachable",
                "A file this training needs could not be reached.",
                f"{name}: {address}",
            )
        return path

    def progress(self, percent: float, **facts: Any) -> None:
        """Say how far the step is, 0 to 100."""
        self.emitter.emit(Progress(percent=max(0.0, min(100.0, percent)), **facts))

    def metric(self, name: str, value: float, steps_done: int | None = None) -> None:
        """Say one point of a curve."""
        self.emitter.emit(Metric(name=name, value=value, steps_done=steps_done))

    def result(self, figures: dict[str, Any], paths: list[str], known: Mapping[str, str] | None = None) -> None:
        """End the step well: figures, and the files it leaves (relative to its output).

        Args:
            figures: what the step found.
            paths: the files.
            known: SHA-256 of files that were digested while they were written. The worker checks them all the same.
        """
        artifacts = [
            Artifact(
                path=path,
                sha256=(known or {}).get(path) or file_digest(self.output / path),
                bytes=(self.output / path).stat().st_size,
            )
            for path in sorted(paths)
        ]
        self.emitter.emit(Result(figures=figures, artifacts=artifacts))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_atomically(path, lambda place: place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, bring it to disk and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def files_below(folder: Path, output: Path) -> list[str]:
    """Every file below `folder`, relative to `output`."""
    return [path.relative_to(output).as_posix() for path in folder.rglob("*") if path.is_file()]
