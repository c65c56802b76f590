"""A world whose recipe says figures, and a Prometheus of the test's own."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import ROOT, World, world_at
from tests.prometheus.live import Prometheus, prometheus_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path, vhost: str, database_url: str) -> AsyncIterator[World]:
    async with world_at(tmp_path / "world", vhost, database_url) as made:
        recipe = ROOT / "tests" / "prometheus" / "figured_recipe.py"
        trainer = made.folder / "trainer-python"
        trainer.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{recipe}" "{made.folder}" "$@"\n')
        yield made


@pytest.fixture
async def prometheus(tmp_path: Path) -> AsyncIterator[Prometheus]:
    if shutil.which("prometheus") is None and not os.environ.get("CI"):
        pytest.skip("Debian's prometheus is not here")
    async with prometheus_at(tmp_path / "prometheus") as server:
        yield server
