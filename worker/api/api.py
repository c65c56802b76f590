"""What every handler has at hand."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response

from worker.api.access import Keyring
from worker.api.limits import Limits
from worker.api.outward import Outward
from worker.api.problems import Refused, not_found
from worker.api.registrations import Registrations
from worker.api.settings import ApiSettings
from worker.api.turns import Turns
from worker.api.watch import Watcher
from worker.data.text_reader import TextReaders
from worker.encryption import Encryption
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
    limits: Limits
    keyring: Keyring
    database: Database
    storage: Storage
    models: ApiStore
    data: DataStore
    webhooks: WebhookStore
    watcher: Watcher
    encryption: Encryption
    outward: Outward
    registrations: Registrations
    audit: AuditStore
    trail: "Trail"
    readers: TextReaders = field(default_factory=TextReaders)
    """Of customers' texts; the lifespan of the application closes them."""
    turns: Turns = field(default_factory=Turns)
    """Changes of models' data, one after another."""

    async def model(self, key: Key, model_id: int) -> Record:
        """A model for whoever may see it.

        Raises:
            Refused: unknown, deleted or another organization's.
        """
        row = await self.models.model(model_id, key.organization_id)
        if row is None:
            raise not_found()
        return row

    @contextmanager
    def upload_slot(self, organization_id: int) -> Iterator[None]:
        """One of the uploads this process takes at the same time.

        An organization gets at most half, and the last quarter are for organizations that have none: a sender may be
        slow for hours, and several together could keep all others out.

        Args:
            organization_id: of the model that the upload is for.

        Raises:
            Refused: all are taken.
        """
        with self.limits.slots.place(organization_id) as there_is_one:
            if not there_is_one:
                raise Refused("unavailable", "Too many uploads at the moment.", headers={"Retry-After": "5"})
            yield


Handler = Callable[[Api, Key, Request], Awaitable[Response]]


def own_organization(key: Key, organization_id: int) -> int:
    """An organization that a body names, when the key may name it.

    Raises:
        Refused: it is not the key's own.
    """
    if key.organization_id is not None and key.organization_id != organization_id:
        raise Refused("organization_mismatch", "This key belongs to another organization.")
    return organization_id
