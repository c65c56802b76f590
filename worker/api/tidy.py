"""What nobody needs any more goes: bytes without an owner, deleted models, parts never finished, kept answers."""

import asyncio
from typing import Final

import structlog

from worker.errors import DatabaseAway, DatabaseRefused, StorageAway
from worker.launchers.exchange.storage_word import exchange_prefix
from worker.storage import Storage
from worker.store.audit import AuditStore
from worker.store.tidying import Purge, TidyStore

_LOG: Final = structlog.get_logger("api")
_EVERY_S: Final = 60.0


class Tidying:
    """Runs in every API process; rows are locked, so that they share the work.

    Args:
        store: what there is to remove.
        storage: where it lies.
        audit: the audit trail, whose oldest entries end.
        audit_days: how long they are kept.
    """

    def __init__(self, store: TidyStore, storage: Storage, audit: AuditStore, audit_days: int) -> None:
        self._store = store
        self._storage = storage
        self._audit = audit
        self._audit_days = audit_days

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
        await self._forget_audit()
        await self._store.end_stale_uploads()
        removed = await self._store.remove(self._storage.delete)
        purged = await self._store.purge(self._purge)
        return removed or purged

    async def _forget_audit(self) -> None:
        """The oldest entries of the audit trail; where this login may not, the rest is tidied all the same."""
        try:
            await self._audit.forget(self._audit_days)
        except DatabaseRefused as error:
            _LOG.warning("audit entries stay: run deploy/postgres/roles.sql", error=str(error))

    async def _purge(self, model: Purge) -> None:
        await self._storage.delete_prefix(f"organizations/{model.organization_id}/models/{model.model_id}")
        for run_id in model.runs:
            await self._storage.delete_prefix(f"runs/{run_id}")
            await self._storage.delete_prefix(exchange_prefix(run_id))
