"""Calls that arrive while a statement is under way share the next one.

One caller alone waits for nobody; a hundred cost a few statements instead of a hundred commits.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from worker.errors import DatabaseRefused

T = TypeVar("T")
R = TypeVar("R")


class Batch(Generic[T, R]):
    """Collects items and runs them together.

    Args:
        run: one statement over several items; answers in the items' order.
        key: items with the same key never share a statement.
        most: items in one statement at most.
        lanes: statements under way at once.
        gather_s: seconds that the first caller waits for company.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[list[R]]],
        key: Callable[[T], object],
        *,
        most: int = 256,
        lanes: int = 2,
        gather_s: float = 0.0,
    ) -> None:
        self._run = run
        self._key = key
        self._most = most
        self._lanes = lanes
        self._gather_s = gather_s
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def __call__(self, item: T) -> R:
        """Run one item, together with whoever else is here.

        Raises:
            DatabaseRefused: this item was refused, alone: what is wrong with one harms no other.
            WorkerError: what else the statement raised, the same for all who shared it.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        self._start()
        return await answer

    def _start(self) -> None:
        while self._waiting and len(self._under_way) < self._lanes:
            lane = asyncio.ensure_future(self._gathered() if self._gather_s else self._one(self._take()))
            self._under_way.add(lane)
            lane.add_done_callback(self._ended)

    def _ended(self, lane: asyncio.Task[None]) -> None:
        self._under_way.discard(lane)
        self._start()

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        taken: list[tuple[T, asyncio.Future[R]]] = []
        left: list[tuple[T, asyncio.Future[R]]] = []
        keys = set[object]()
        for item, answer in self._waiting:
            if len(taken) < self._most and self._key(item) not in keys:
                keys.add(self._key(item))
                taken.append((item, answer))
            else:
                left.append((item, answer))
        self._waiting = left
        return taken

    async def _gathered(self) -> None:
        await asyncio.sleep(self._gather_s)
        if self._waiting:
            await self._one(self._take())

    async def _one(self, taken: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._run([item for item, _ in taken])
        except BaseException as error:
            if isinstance(error, DatabaseRefused) and len(taken) > 1:
                for one in taken:
                    await self._one([one])
                return
            for _, answer in taken:
                if not answer.done():
                    answer.set_exception(error if isinstance(error, Exception) else ConnectionError("shutting down"))
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), result in zip(taken, results, strict=True):
            if not answer.done():
                answer.set_result(result)
