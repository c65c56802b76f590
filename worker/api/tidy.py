"""What nobody needs any more goes: bytes without an owner, deleted models, parts never finished, kept answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from html import escape
from typing import Final
from uuid import UUID

import structlog

from worker.api.problems import not_found
from worker.encryption import Encryption
from worker.errors import DatabaseAway, NotStored, StorageAway
from worker.launchers.exchange.storage_word import exchange_prefix
from worker.storage import Storage
from worker.store.tidying import Erasure, Purge, RunRead, TidyStore
from worker.store.webhooks import WebhookStore

_EVERY_S: Final = 60.0
_LOOKED_FOR: Final = 20
"""Removed files that reports are searched for; of more, every report goes unread: looking would take too long."""
_LOG: Final = structlog.get_logger("api")


class Tidying:
    """Runs in every API process; rows are locked, so that they share the work.

    Args:
        store: what there is to remove.
        storage: where it lies.
        webhooks: whose secrets are encrypted anew after a change of keys.
        encryption: with the keys of now.
    """

    def __init__(self, store: TidyStore, storage: Storage, webhooks: WebhookStore, encryption: Encryption) -> None:
        self._store = store
        self._storage = storage
        self._webhooks = webhooks
        self._encryption = encryption

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
        await self._webhooks.encrypt_all(self._encryption)
        forgotten = await self._store.forget()
        await self._store.end_stale_uploads()
        removed = await self._store.remove(self._storage.delete)
        erased = await self._store.erase(self._erase)
        purged = await self._store.purge(self._purge, _GONE)
        return forgotten or removed or erased or purged

    async def _purge(self, model: Purge) -> None:
        objects = await self._storage.delete_prefix(f"organizations/{model.organization_id}/models/{model.model_id}")
        for run_id in model.runs:
            objects += await self._storage.delete_prefix(f"runs/{run_id}")
            objects += await self._storage.delete_prefix(exchange_prefix(run_id))
        _LOG.info("deleted model purged", model=model.model_id, runs=len(model.runs), objects=objects)

    async def _erase(self, erasure: Erasure) -> list[UUID]:
        """Everything that the runs stored but logs and versions; pages that name the files. The runs of those pages."""
        without_report = []
        for run in erasure.runs:
            if not run.erased:
                await self._storage.delete([key async for key in self._made_of_data(run)])
            if run.report_address is not None and await self._names_any(run.report_address, erasure.names):
                await self._storage.delete([run.report_address])
                without_report.append(run.id)
        _LOG.info(
            "removed files erased",
            model=erasure.model_id,
            files=len(erasure.names),
            runs=len(erasure.runs),
            reports=len(without_report),
        )
        return without_report

    async def _made_of_data(self, run: RunRead) -> AsyncIterator[str]:
        stays = [f"{run.version_address}/"] if run.version_address is not None else []
        stays += [run.report_address] if run.report_address is not None else []
        async for stored in self._storage.listing(f"runs/{run.id}"):
            if not stored.key.endswith("/log.txt") and not stored.key.startswith(tuple(stays)):
                yield stored.key

    async def _names_any(self, address: str, names: Collection[str]) -> bool:
        """Whether a page names one of these files, however it spells them; a name may lie across two pieces."""
        if len(names) > _LOOKED_FOR:
            return True
        wanted = {spelled.encode() for name in names for spelled in (name, escape(name), json.dumps(name)[1:-1])}
        longest = max(map(len, wanted))
        before = b""
        try:
            async for piece in self._storage.stream(address):
                text = before + piece
                if await asyncio.to_thread(_holds_any, text, wanted):
                    return True
                before = text[-longest:]
        except NotStored:
            return False
        return False


_GONE: Final = not_found().body()


def _holds_any(text: bytes, wanted: set[bytes]) -> bool:
    return any(one in text for one in wanted)
