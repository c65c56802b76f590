"""An outage of the database is not a failure of the run: wait, and try again."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from worker.clock import Clock
from worker.errors import DatabaseAway

T = TypeVar("T")
_FIRST_S: Final = 0.2
_LONGEST_S: Final = 5.0
_log = structlog.get_logger(__name__)


async def until_answered(call: Callable[[], Awaitable[T]], clock: Clock, *, what: str) -> T:
    """Repeat a call that is safe to repeat until the database answers.

    Raises:
        DatabaseRefused, RunLost: the answer was no.
    """
    pause_s = _FIRST_S
    while True:
        try:
            return await call()
        except DatabaseAway as error:
            _log.warning("database away, trying again", what=what, error=str(error), pause_s=round(pause_s, 2))
            await clock.sleep(pause_s * (0.5 + clock.random()))
            pause_s = min(_LONGEST_S, pause_s * 2)
