"""A run's story that ends badly in the very moment in which somebody else ends it."""

from __future__ import annotations

import asyncio
import gc
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from worker.clock import Clock
from worker.domain.run import ClaimedRun
from worker.errors import RunLost
from worker.metrics import Metrics
from worker.pipeline.attempt import Attempt, Ending
from worker.pipeline.parts import Timing
from worker.pipeline.runner import Runner
from worker.tracing import OFF

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = ClaimedRun(
    id=uuid.UUID(int=1), custom_model_id=1, organization_id=1, base_language_id=1, attempt=1, failures=0, hand_overs=0,
    inputs=None, wanted_parameters={}, ran_s=0.0, waited_s=0.0, created_at=NOW, requested_at=NOW, traceparent=None,
    cancel_requested=False,
)  # fmt: skip


@pytest.mark.parametrize("ending", [Ending.LOST, Ending.CANCELLED, Ending.HAND_OVER])
async def test_an_error_that_comes_with_the_end_leaves_asyncio_nothing_to_report(
    ending: Ending, tmp_path: Path
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def story(attempt: Attempt, _: object) -> Any:
        attempt.end(ending)
        raise RunLost(str(attempt.fence))

    parts = SimpleNamespace(
        runs=SimpleNamespace(moves=SimpleNamespace(after=lambda *_: None)),
        metrics=Metrics(),
        clock=Clock(),
        timing=Timing(lease_s=60, pause_s=50, stall_s=60, run_limit_s=60),
        tracing=OFF,
    )
    heartbeat = SimpleNamespace(hold=lambda _: None, release=lambda _: None)
    await Runner(parts, heartbeat, story, scratch=tmp_path, hand_over_s=1).run(RUN, 0.0)  # type: ignore[arg-type]
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
