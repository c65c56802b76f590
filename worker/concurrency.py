"""Many waits at once, a bounded number of them."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_order(
    items: Iterable[Item], function: Callable[[Item], Awaitable[Result]], at_once: int
) -> AsyncGenerator[Result, None]:
    """The results of `function` for every item, in the items' order, with `at_once` of them under way.

    The first error ends it: what is still under way is cancelled and seen to its end. Callers that may stop
    early wrap it in ``contextlib.aclosing``.
    """
    waiting: deque[asyncio.Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(asyncio.ensure_future(function(item)))
            if len(waiting) >= at_once:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def all_of(items: Iterable[Item], function: Callable[[Item], Awaitable[Result]], at_once: int) -> list[Result]:
    """Every result of `in_order`, as a list."""
    return [result async for result in in_order(items, function, at_once)]
