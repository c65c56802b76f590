"""Webhooks and their deliveries."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from worker.store.database import Connection, Database, Record, queries

_Q: Final = queries("api_webhooks")


class WebhookStore:
    """What is read of webhooks, and what their sender writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_organization(self, organization_id: int) -> Sequence[Record]:
        """An organization's webhooks, without their secrets."""
        return await self._database.fetch(_Q["webhooks_of"], organization_id)

    async def webhook(self, webhook_id: int, organization_id: int | None) -> Record | None:
        """One webhook, for whoever may see it."""
        return await self._database.fetch_row(_Q["webhook"], webhook_id, organization_id)

    async def deliveries(self, webhook_id: int, offset: int, limit: int) -> tuple[int, Sequence[Record]]:
        """A page of a webhook's deliveries, the newest first, and how many there are."""
        total = await self._database.fetch_row(_Q["count_deliveries"], webhook_id)
        assert total is not None
        return int(total["n"]), await self._database.fetch(_Q["deliveries_of"], webhook_id, offset, limit)

    async def claim(self, most: int, held_s: float, busy: Sequence[int]) -> Sequence[Record]:
        """Deliveries that are due, one of each organization that is not busy. Nobody else gets them for a while.

        Each has id, event_id, body, attempts, organization_id, url and secret.
        """
        return await self._database.fetch(_Q["claim_deliveries"], most, held_s, busy)

    async def end(  # noqa: PLR0913 - a row has that many columns
        self, delivery_id: int, attempt: int, status: str, answer_status: int | None, error: str | None, retry_s: float
    ) -> None:
        """How a try ended; nothing where a later try was faster."""
        await self._database.execute(_Q["end_delivery"], delivery_id, attempt, status, answer_status, error, retry_s)


async def create(connection: Connection, organization_id: int, url: str, secret: str) -> Record:
    """Where an organization's events go from now on."""
    row = await connection.fetchrow(_Q["create_webhook"], organization_id, url, secret)
    assert row is not None
    return row


async def read(connection: Connection, webhook_id: int, organization_id: int | None) -> Record | None:
    """One webhook, for whoever may see it, as this transaction sees it."""
    return await connection.fetchrow(_Q["webhook"], webhook_id, organization_id)


async def count(connection: Connection, organization_id: int) -> int:
    """How many an organization has."""
    row = await connection.fetchrow(_Q["count_webhooks"], organization_id)
    assert row is not None
    return int(row["n"])


async def disable(connection: Connection, webhook_id: int) -> bool:
    """No more events go there."""
    return await connection.fetchrow(_Q["disable_webhook"], webhook_id) is not None


async def add_test(connection: Connection, webhook_id: int, event_id: UUID, body: dict[str, Any]) -> Record:
    """An event that only says hello."""
    row = await connection.fetchrow(_Q["test_delivery"], webhook_id, event_id, body)
    assert row is not None
    return row
