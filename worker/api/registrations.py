"""How often an organization may have host names looked up for it, and how many at once."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from worker.api.access import Limiter
from worker.api.problems import Refused
from worker.fair import FairShares

_PER_S: Final = 0.5
_BURST: Final = 30
"""Look-ups at once, then one every two seconds: an organization has ten webhooks at most."""
_AT_ONCE: Final = 2
_ALL_AT_ONCE: Final = 1 << 20
"""More than there are connections: nobody waits for another organization."""


class Registrations:
    """Turns at looking up the host of a new webhook, in this process.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._limiter = Limiter(_PER_S, _BURST, now)
        self._turns = FairShares(_ALL_AT_ONCE, _AT_ONCE)

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
        async with self._turns.turn(organization_id):
            yield
