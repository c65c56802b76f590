"""Buckets of tokens: how often somebody may do something, in bounded memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

_OVERFLOW: Final = object()


class Buckets:
    """A bucket of tokens for each owner.

    A bucket that is full again says nothing and goes first. When none is, a new owner shares one bucket with all other
    new owners: whoever fills the memory with owners gains no tokens, and takes none from those who are remembered.

    Args:
        per_s: tokens that come in a second.
        burst: tokens that a full bucket holds.
        now: monotonic seconds.
        most: owners that are remembered.
    """

    def __init__(self, per_s: float, burst: float, now: Callable[[], float], most: int = 50_000) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._now = now
        self._most = most
        # The least recently used first: it is the fullest.
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, owner: Hashable) -> float:
        """Take one token: 0, or the seconds until there is one."""
        now = self._now()
        owner = self._remembered(owner, now)
        tokens = self._tokens(owner, now)
        self._buckets[owner] = (tokens - 1 if tokens >= 1 else tokens, now)
        self._buckets.move_to_end(owner)
        return 0.0 if tokens >= 1 else (1 - tokens) / self._per_s

    def give_back(self, owner: Hashable) -> None:
        """Put one token back."""
        now = self._now()
        owner = self._remembered(owner, now)
        self._buckets[owner] = (min(self._burst, self._tokens(owner, now) + 1), now)
        self._buckets.move_to_end(owner)

    def _tokens(self, owner: Hashable, now: float) -> float:
        tokens, at = self._buckets.get(owner, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._per_s)

    def _remembered(self, owner: Hashable, now: float) -> Hashable:
        """The owner, where there is room for it, or where it has a bucket; else the one that all others share."""
        if owner in self._buckets or len(self._buckets) < self._most:
            return owner
        oldest = next(one for one in self._buckets if one is not _OVERFLOW)
        if self._tokens(oldest, now) >= self._burst:
            del self._buckets[oldest]
            return owner
        return _OVERFLOW
