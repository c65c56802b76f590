"""Webhooks and their deliveries."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from worker.encryption import CannotDecryptError, Encryption
from worker.store.database import Connection, Database, Record, queries

_Q: Final = queries("api_webhooks")
PURPOSE: Final = "webhook secrets"
"""What these keys are used for: the purpose of the `Encryption` that is passed in here."""
_AT_ONCE: Final = 100


def owner_of(webhook_id: int, organization_id: int) -> str:
    """What a webhook's encrypted secret is bound to."""
    return f"webhook {webhook_id} of organization {organization_id}"


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

        Each has id, event_id, body, attempts, webhook_id, organization_id, url, secret (in clear, until the API has
        encrypted what an earlier release wrote) and sealed_secret.
        """
        return await self._database.fetch(_Q["claim_deliveries"], most, held_s, busy)

    async def end(  # noqa: PLR0913 - a row has that many columns
        self, delivery_id: int, attempt: int, status: str, answer_status: int | None, error: str | None, retry_s: float
    ) -> None:
        """How a try ended; nothing where a later try was faster."""
        await self._database.execute(_Q["end_delivery"], delivery_id, attempt, status, answer_status, error, retry_s)

    async def encrypt_all(self, encryption: Encryption) -> int:
        """Encrypt with the newest key what is in clear, or what an older key encrypted.

        Secrets whose key is not there stay as they are.

        Returns:
            How many were encrypted.
        """
        if not encryption:
            return 0
        return await self._encrypt_clear(encryption) + await self._encrypt_anew(encryption)

    async def _encrypt_clear(self, encryption: Encryption) -> int:
        done = 0
        while True:
            async with self._database.transaction() as connection:
                rows = await connection.fetch(_Q["secrets_in_clear"], _AT_ONCE)
                for row in rows:
                    sealed = encryption.encrypt(row["secret"], owner_of(row["id"], row["organization_id"]))
                    await connection.execute(_Q["keep_secret"], row["id"], sealed)
            done += len(rows)
            if len(rows) < _AT_ONCE:
                return done

    async def _encrypt_anew(self, encryption: Encryption) -> int:
        done, after = 0, 0
        while True:
            async with self._database.transaction() as connection:
                rows = await connection.fetch(_Q["secrets_of_older_keys"], encryption.key_ids[0], after, _AT_ONCE)
                for row in rows:
                    after, owner = row["id"], owner_of(row["id"], row["organization_id"])
                    with suppress(CannotDecryptError):  # the doctor tells of those
                        sealed = encryption.encrypt(encryption.decrypt(row["sealed_secret"], owner), owner)
                        await connection.execute(_Q["keep_secret"], row["id"], sealed)
                        done += 1
            if len(rows) < _AT_ONCE:
                return done

    async def of_unknown_keys(self, encryption: Encryption) -> int:
        """How many secrets none of the keys decrypts: their webhooks cannot be sent to."""
        row = await self._database.fetch_row(_Q["secrets_of_unknown_keys"], encryption.key_ids)
        assert row is not None
        return int(row["n"])


async def create(connection: Connection, organization_id: int, url: str, secret: str, encryption: Encryption) -> Record:
    """Where an organization's events go from now on.

    Raises:
        CannotDecryptError: there is no encryption key.
    """
    row = await connection.fetchrow(_Q["create_webhook"], organization_id, url)
    assert row is not None
    sealed = encryption.encrypt(secret, owner_of(row["id"], organization_id))
    await connection.execute(_Q["keep_secret"], row["id"], sealed)
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
