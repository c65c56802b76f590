"""How often an organization may have host names looked up for it, and how many at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from worker.api.access import Limiter
from worker.api.problems import Refused

_PER_S: Final = 0.5
_BURST: Final = 30
"""Look-ups at once, then one every two seconds: an organization has ten webhooks at most."""
_AT_ONCE: Final = 2


class Registrations:
    """Turns at looking up the host of a new webhook, in this process.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._limiter = Limiter(_PER_S, _BURST, now)
        self._turns: dict[int, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, organization_id: int) -> AsyncIterator[None]:
        """Wait for those of the same organization that came before; others wait for nobody.

        Raises:
            Refused: the organization asked too often.
        """
        try:
            self._limiter.take(organization_id)
        except Refused as refused:
            raise Refused(
                "rate_limited", "Too many webhooks were registered in a short time.", headers=refused.headers
            ) from None
        turns, waiting = self._turns.get(organization_id, (asyncio.Semaphore(_AT_ONCE), 0))
        self._turns[organization_id] = turns, waiting + 1
        try:
            async with turns:
                yield
        finally:
            turns, waiting = self._turns[organization_id]
            if waiting == 1:
                del self._turns[organization_id]
            else:
                self._turns[organization_id] = turns, waiting - 1
