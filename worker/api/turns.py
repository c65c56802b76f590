"""Changes of one model's data, one after another: waited for in this process and without a database connection."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from worker.api.problems import Refused

WAIT_S: Final = 10.0
"""Longest wait for other changes of the same model, in this process and in others."""


def busy() -> Refused:
    """Another change of the same model takes long."""
    return Refused(
        "unavailable",
        "Other requests are changing this model's data. Try again in a moment.",
        headers={"Retry-After": "5"},
    )


class Turns:
    """A queue for each model that is being changed. Used within one event loop only."""

    def __init__(self) -> None:
        self._locks: dict[int, asyncio.Lock] = {}
        self._interested: Counter[int] = Counter()

    @asynccontextmanager
    async def of(self, model_id: int) -> AsyncIterator[None]:
        """The model's turn, for as long as the block lasts.

        Raises:
            Refused: others take too long.
        """
        lock = self._locks.setdefault(model_id, asyncio.Lock())
        self._interested[model_id] += 1
        try:
            try:
                async with asyncio.timeout(WAIT_S):
                    await lock.acquire()
            except TimeoutError:
                raise busy() from None
            try:
                yield
            finally:
                lock.release()
        finally:
            self._interested[model_id] -= 1
            if not self._interested[model_id]:
                del self._interested[model_id], self._locks[model_id]
