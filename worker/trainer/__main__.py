"""One recipe step as a process: `python -m worker.trainer` with a `StepSpec` on stdin and events on descriptor 3."""

import importlib
import os
import signal
import sys
import traceback
from typing import Any

from pydantic import ValidationError

from schemas.events import Failure, Hello, Stopped
from schemas.failures import FailureClass
from schemas.recipes import recipes
from schemas.steps import FAILURE_EXIT_CODE, STOPPED_EXIT_CODE, StepSpec
from worker.trainer.emitter import Emitter
from worker.trainer.failures import StepFailureError, StepStoppedError, classified
from worker.trainer.memory import keep_freed_memory
from worker.trainer.step import StepRun, StopRequest


def main() -> int:
    """Run the step on stdin and return the exit code that tells how it ended."""
    # libgomp's threads spin while they wait: on a machine that is not ours alone that doubled the processor time
    # of an encoder pass (measured with 2 threads) and made it slower. Read when torch is loaded, not before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop)
    emitter = Emitter()
    try:
        _run(emitter, stop)
    except StepStoppedError as stopped:
        emitter.emit(Stopped(steps_done=stopped.steps_done))
        return STOPPED_EXIT_CODE
    except BaseException as error:  # noqa: BLE001 - whatever it was, its owner must hear a class for it
        traceback.print_exc()
        failure = classified(error)
        emitter.emit(
            Failure(
                failure_class=failure.failure_class,
                code=failure.code,
                message=failure.message[:2_000],
                detail=failure.detail[:20_000],
            )
        )
        return FAILURE_EXIT_CODE
    return 0


def _run(emitter: Emitter, stop: StopRequest) -> None:
    try:
        spec = StepSpec.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        raise StepFailureError(FailureClass.BUG, "spec_unreadable", "Training could not start.", str(error)) from error
    recipe = recipes().get(spec.recipe)
    if recipe is None or recipe.version != spec.recipe_version:
        raise StepFailureError(
            FailureClass.CAPACITY,  # while a release rolls out, workers and nodes differ for a while
            "recipe_unknown",
            "The training is waiting for a machine that has its recipe.",
            f"asked for {spec.recipe} {spec.recipe_version}, have {recipe.version if recipe else 'none'}",
        )
    emitter.emit(Hello(recipe=recipe.name, recipe_version=recipe.version, pid=os.getpid()))
    try:
        parameters: Any = recipe.parameters.model_validate(spec.parameters)
    except ValidationError as error:
        raise StepFailureError(
            FailureClass.BUG, "parameters_refused", "Training could not start: its settings are wrong.", str(error)
        ) from error
    # Imported late and by name: `prepare` must not pay for torch.
    step = importlib.import_module(recipe.steps[spec.step])
    stop.check()
    step.run(StepRun(spec, parameters, emitter, stop))


if __name__ == "__main__":
    raise SystemExit(main())
