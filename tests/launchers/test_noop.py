"""The launcher that trains nothing says so."""

from pathlib import Path
from uuid import uuid4

from schemas.steps import Step, StepSpec
from worker.launchers.noop import NoopLauncher
from worker.launchers.verdict import StepDone, classify


async def test_every_step_ends_at_once_with_a_result_that_names_the_launcher():
    spec = StepSpec(
        run_id=uuid4(), attempt=1, step=Step.TRAIN, recipe="r", recipe_version="1", seed=1, output="/nowhere"
    )
    handle = await NoopLauncher().start(spec, lease_s=60, log=Path("/nowhere/log"))
    (event,) = [event async for event in handle.events()]
    verdict = classify(await handle.wait())
    assert isinstance(verdict, StepDone)
    assert verdict.result == event
    assert event.figures == {"launcher": "noop"}
