"""The worker's stand-in on a node, when its side of the exchange fails in ways that nobody foresaw."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from worker.launchers.outpost import Outpost


class Failing:
    """Every second call fails."""

    def __init__(self) -> None:
        self.calls = {"ask": 0, "keep_up": 0}

    def _call(self, what: str) -> None:
        self.calls[what] += 1
        if self.calls[what] % 2:
            raise ZeroDivisionError

    async def ask(self, number: int) -> None:
        self._call("ask")

    async def keep_up(self) -> None:
        self._call("keep_up")


async def test_the_beat_goes_on_whatever_a_beat_brings(tmp_path: Path):
    side = Failing()
    order = SimpleNamespace(beat_s=0.001, patience_s=1.0)
    outpost = Outpost(cast("Any", side), cast("Any", order), tmp_path)
    beside = [asyncio.create_task(outpost._beat()), asyncio.create_task(outpost._keep_up())]
    async with asyncio.timeout(10):
        while min(side.calls.values()) < 5:
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in beside)
    for task in beside:
        task.cancel()
