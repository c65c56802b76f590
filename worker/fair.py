"""Places that many share, so that none of them can take all."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager


class FairShares:
    """A number of places. One holder gets at most a part of them, and the last ones are for holders that have none.

    Used within one event loop only.

    Args:
        total: places there are; at least 1.
        most: places of one holder at most.
        reserve: places that only a holder without any may take.
    """

    def __init__(self, total: int, most: int, reserve: int = 0) -> None:
        self.total = total
        self.most = max(1, most)
        self.reserve = min(reserve, total - 1)
        self._held: Counter[Hashable] = Counter()
        self._taken = 0
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def taken(self) -> int:
        """Places that are held."""
        return self._taken

    def held(self, holder: Hashable) -> int:
        """Places that one holder has."""
        return self._held.get(holder, 0)

    def try_take(self, holder: Hashable, amount: int = 1) -> bool:
        """Take places at once; False: the holder's share or all places are taken."""
        held = self.held(holder)
        free = self.total - self._taken - (self.reserve if held else 0)
        if amount > free or held + amount > self.most:
            return False
        self._held[holder] = held + amount
        self._taken += amount
        return True

    def release(self, holder: Hashable, amount: int = 1) -> None:
        """Give places back; those who wait get them, who has least first."""
        self._put_back(holder, amount)
        if self._waiting:
            self._grant()

    def _put_back(self, holder: Hashable, amount: int) -> None:
        self._taken -= amount
        self._held[holder] -= amount
        if self._held[holder] <= 0:
            del self._held[holder]

    @contextmanager
    def place(self, holder: Hashable) -> Iterator[bool]:
        """One place for as long as the block lasts, if there is one; says whether there is."""
        mine = self.try_take(holder)
        try:
            yield mine
        finally:
            if mine:
                self.release(holder)

    @asynccontextmanager
    async def turn(self, holder: Hashable) -> AsyncIterator[None]:
        """One place for as long as the block lasts, waited for in turn; the caller bounds the wait."""
        await self._take(holder)
        try:
            yield
        finally:
            self.release(holder)

    async def _take(self, holder: Hashable) -> None:
        if holder not in self._waiting and self.try_take(holder):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(holder)
            else:
                self._forget(holder, granted)
            raise

    def _forget(self, holder: Hashable, granted: asyncio.Future[None]) -> None:
        queue = self._waiting.get(holder)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[holder]

    def _grant(self) -> None:
        """Who holds least is asked first; of equals who has waited longest since it last got one."""
        for holder in sorted(self._waiting, key=self.held):
            queue = self._waiting[holder]
            while queue and self.try_take(holder):
                granted = queue.popleft()
                if granted.cancelled():
                    self._put_back(holder, 1)
                else:
                    granted.set_result(None)
                    self._waiting.move_to_end(holder)  # or a long queue would be served before everybody who came later
            if not queue:
                del self._waiting[holder]
            if self._taken >= self.total:
                return
