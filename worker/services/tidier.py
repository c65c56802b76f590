"""What a cancelled run made goes, whoever ended it: its owner, a rescuer, or nobody because it was waiting."""

from typing import Final
from uuid import UUID

import structlog

from worker.clock import Clock
from worker.errors import DatabaseAway, DatabaseRefused, StorageAway
from worker.storage import Storage
from worker.store.runs import RunStore

_BATCH: Final = 50
_log = structlog.get_logger(__name__)


class Tidier:
    """Removes the artifacts of cancelled runs, all attempts, and keeps their logs.

    The rows go first, under the organization's lock, and only while no run of the model is under way: the next run
    finds a dataset by its content, and must not find one whose bytes are about to vanish.

    Args:
        every_s: seconds between sweeps.
    """

    def __init__(self, runs: RunStore, storage: Storage, *, every_s: float, clock: Clock) -> None:
        self._runs = runs
        self._storage = storage
        self._every_s = every_s
        self._clock = clock

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._clock.sleep(self._every_s * (0.5 + self._clock.random()))
            try:
                await self.sweep()
            except (DatabaseAway, DatabaseRefused, StorageAway) as error:
                _log.warning("artifacts not removed yet", error=str(error))

    async def sweep(self) -> int:
        """Remove what can be removed now; the number of runs."""
        tidied = 0
        for run_id, organization_id in await self._runs.cancelled_untidied(_BATCH):
            if await self._runs.forget_cancelled(run_id, organization_id):
                await self._remove(run_id)
                await self._runs.mark_tidied(run_id)
                tidied += 1
        return tidied

    async def _remove(self, run_id: UUID) -> None:
        keys = [stored.key async for stored in self._storage.listing(f"runs/{run_id}")]
        await self._storage.delete(key for key in keys if not key.endswith("/log.txt"))
        _log.info("artifacts removed", run=str(run_id), files=len(keys))
