"""The chaos suite itself: a small part is clean, seeds that once failed stay clean, and broken builds are caught."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.chaos.schedule import KILL_OR_FREEZE, OTHERS, schedule
from tests.chaos.suite import play_part

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    # the suite cuts connections of libraries that complain about it when they are collected
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

KEPT_SEEDS: dict[int, str] = {
    1: "a broker connection that closed during its handshake ended the worker; so did asyncpg's own state error",
    31: "nobody paused the trainer of a frozen worker whose supervisor was frozen as well (shown directly in test_local)",
}
"""Seeds that once failed, with what they found."""

OUTLASTS_A_TAKEOVER = {"steps": 30, "step_s": 0.4}
FREEZE = "freeze_busy_worker_beyond_its_lease"
BROKEN = {
    # what is done to them, the counters of which at least one must rise, runs, share of long trainings
    "no_fence": ([FREEZE] * 3, {"doubled", "illegal_transitions"}, 8, 1.0),
    "no_supervisor": ([FREEZE] * 3, {"doubled", "orphan_processes"}, 8, 1.0),
    "ack_before_commit": (["kill_postgres", "kill_worker"] * 6, {"lost"}, 30, 0.0),
}


@pytest.fixture(autouse=True)
def quiet_libraries() -> None:
    for library in ("asyncpg", "aio_pika", "aiormq", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


@pytest.mark.parametrize("count", [40, 100, 200, 334, 1000])
def test_every_kind_is_five_percent_and_half_kill_or_freeze(count: int) -> None:
    kinds = schedule(3, count)
    found = Counter(kinds)
    assert count <= len(kinds) <= count * 1.1
    assert set(found) == {*KILL_OR_FREEZE, *OTHERS}
    assert all(number >= 0.05 * count for number in found.values())
    assert sum(found[kind] for kind in KILL_OR_FREEZE) >= len(kinds) / 2


def test_same_seed_gives_the_same_faults() -> None:
    assert schedule(5, 200) == schedule(5, 200)
    assert schedule(5, 200) != schedule(6, 200)


@pytest.mark.parametrize("seed", sorted(KEPT_SEEDS))
def test_seed_that_once_failed_harms_nobody(tmp_path: Path, seed: int) -> None:
    verdict, result = asyncio.run(play_part(tmp_path, seed, 40, schedule(seed, 40), quiet=True))
    assert verdict.clean, verdict.sentences
    assert result["runs"] == 40


@pytest.mark.parametrize("build", sorted(BROKEN))
def test_broken_build_is_caught(tmp_path: Path, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a counter rises, over several seeds: chance may spare a broken build once."""
    monkeypatch.setenv("CHAOS_BROKEN_BUILD", build)
    faults, counters, runs, share = BROKEN[build]
    for seed in (1, 2, 3):
        part = play_part(
            tmp_path / str(seed),
            seed,
            runs,
            faults,
            module="tests.chaos.broken",
            crowd=2,
            slots=9,
            long_share=share,
            long_plan=OUTLASTS_A_TAKEOVER,
            quiet=True,
        )
        verdict, result = asyncio.run(part)
        if any(verdict.counts[counter] for counter in counters):
            return
    pytest.fail(f"nothing was noticed: {result}")
