"""A world per test, on the session's broker and database server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import World, world_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path, vhost: str, database_url: str) -> AsyncIterator[World]:
    async with world_at(tmp_path, vhost, database_url) as made:
        yield made
