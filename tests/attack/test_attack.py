"""A short attack on this checkout: one slice of a third of the kinds, without a judgement of times."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from tests.attack.attacker import KINDS
from tests.attack.deployment import ROOT
from tests.attack.judge import Tally
from tests.attack.suite import attack, open_enough_files

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.attack,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that are cut on purpose
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLOW = {"recording_that_hangs", "recording_that_eats", "waiting_runs_by_the_dozen", "silent_connections"}
"""Kinds whose traces take the longest to clear away: the long suite has them."""
SLICES_S = (0.5, 0.2, 0.2)


def test_short_attack_harms_leaks_and_hides_nothing(tmp_path: Path) -> None:
    for library in ("asyncpg", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    open_enough_files()
    names = [name for name in sorted(KINDS) if name not in SLOW]
    always = ("recording_that_spies", "wrong_keys", "training_on_marks")
    kinds = [KINDS[name] for name in dict.fromkeys((*names[::3], *always))]
    tally = Tally()
    asyncio.run(attack(tmp_path, ROOT, 1, 240, tally, kinds=kinds, lengths=SLICES_S, quiet=True))
    assert tally.faults(least_kinds=len(kinds), timing=False) == [], tally.not_prepared
