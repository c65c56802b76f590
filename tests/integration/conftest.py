"""A shop with its database, a line to its broker and the intake between them; a stage for the store's own tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.messages_support import Line, Shop, line_to, shop_at
from tests.store_support import Stage, stage_at
from worker.broker import connected
from worker.intake.consumer import Intake
from worker.intake.topology import declare
from worker.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with shop_at(database_url) as made:
        yield made


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with stage_at(database_url) as made:
        yield made


@pytest.fixture
async def line(vhost: str) -> AsyncIterator[Line]:
    async with connected(vhost, "test") as connection:
        await declare(connection)
    async with line_to(vhost) as made:
        yield made


@pytest.fixture
def intake(vhost: str, shop: Shop, metrics: Metrics) -> Intake:
    return Intake(vhost, shop.runs, shop.runs.register, metrics)
