"""What every handler has at hand."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response

from worker.api.problems import Refused, not_found
from worker.api.settings import ApiSettings
from worker.api.watch import Watcher
from worker.storage import Storage
from worker.store.api import ApiStore
from worker.store.api_data import DataStore
from worker.store.api_keys import Key
from worker.store.audit import AuditStore
from worker.store.database import Database, Record
from worker.store.webhooks import WebhookStore

if TYPE_CHECKING:
    from worker.api.trail import Trail  # which knows the routes, whose handlers take an Api


@dataclass(frozen=True)
class Api:
    """The parts that handlers use; made once, in ``worker.api.app``."""

    settings: ApiSettings
    database: Database
    storage: Storage
    models: ApiStore
    data: DataStore
    webhooks: WebhookStore
    watcher: Watcher
    audit: AuditStore
    trail: "Trail"
    uploads: Counter[int] = field(default_factory=Counter)
    """Uploads under way, by organization."""

    async def model(self, key: Key, model_id: int) -> Record:
        """A model for whoever may see it.

        Raises:
            Refused: unknown, deleted or another organization's.
        """
        row = await self.models.model(model_id, key.organization_id)
        if row is None:
            raise not_found()
        return row

    @asynccontextmanager
    async def upload_slot(self, organization_id: int) -> AsyncIterator[None]:
        """One of the uploads this process takes at the same time, of which an organization gets at most half.

        A sender may be slow for hours, so without a share one organization could keep all others out.

        Args:
            organization_id: of the model that the upload is for.

        Raises:
            Refused: all are taken.
        """
        most = self.settings.api_uploads_at_once
        if self.uploads.total() >= most or self.uploads[organization_id] >= max(1, most // 2):
            raise Refused("unavailable", "Too many uploads at the moment.", headers={"Retry-After": "5"})
        self.uploads[organization_id] += 1
        try:
            yield
        finally:
            self.uploads[organization_id] -= 1
            if not self.uploads[organization_id]:
                del self.uploads[organization_id]


Handler = Callable[[Api, Key, Request], Awaitable[Response]]


def own_organization(key: Key, organization_id: int) -> int:
    """An organization that a body names, when the key may name it.

    Raises:
        Refused: it is not the key's own.
    """
    if key.organization_id is not None and key.organization_id != organization_id:
        raise Refused("organization_mismatch", "This key belongs to another organization.")
    return organization_id
