"""What nobody needs any more goes: bytes without an owner, deleted models, parts never finished, kept answers."""

import asyncio
from typing import Final

from worker.errors import DatabaseAway, StorageAway
from worker.launchers.exchange.storage_word import exchange_prefix
from worker.storage import Storage
from worker.store.tidying import Purge, TidyStore

_EVERY_S: Final = 60.0


class Tidying:
    """Runs in every API process; rows are locked, so that they share the work.

    Args:
        store: what there is to remove.
        storage: where it lies.
    """

    def __init__(self, store: TidyStore, storage: Storage) -> None:
        self._store = store
        self._storage = storage

    async def run(self) -> None:
        """Tidy up for ever; what is away is tried again later."""
        while True:
            try:
                while await self.once():
                    pass
            except (DatabaseAway, StorageAway):
                pass
            await asyncio.sleep(_EVERY_S)

    async def once(self) -> bool:
        """One round; True: there may be more to do."""
        await self._store.forget()
        await self._store.end_stale_uploads()
        removed = await self._store.remove(self._storage.delete)
        purged = await self._store.purge(self._purge)
        return removed or purged

    async def _purge(self, model: Purge) -> None:
        await self._storage.delete_prefix(f"organizations/{model.organization_id}/models/{model.model_id}")
        for run_id in model.runs:
            await self._storage.delete_prefix(f"runs/{run_id}")
            await self._storage.delete_prefix(exchange_prefix(run_id))
