"""API keys and kept answers."""

import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import asyncpg

from worker.store.audit import audit
from worker.store.database import Connection, Database, Record, queries, translated

_Q: Final = queries("api_keys")
_OPERATORS: Final = 0  # no organization has this id


@dataclass(frozen=True)
class Key:
    """A valid key: whose it is, and what it may do.

    Attributes:
        organization_id: None for an operator's key.
        expires_at: valid before this; None: until revoked.
    """

    id: int
    organization_id: int | None
    role: str
    name: str
    sha256: bytes
    expires_at: datetime | None

    @property
    def holder(self) -> int:
        """Who uses up shares with this key: the organization, or the operators together."""
        return _OPERATORS if self.organization_id is None else self.organization_id


@dataclass(frozen=True)
class Answer:
    """What a request was answered: kept for a repeat.

    Attributes:
        kept: what a repeat is answered instead of `body`, where that holds a secret that is shown once.
    """

    status: int
    media_type: str | None
    body: bytes
    kept: bytes | None = None


class KeyStore:
    """Every statement on keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def valid_digests(self, most: int) -> list[bytes]:
        """Digests of valid keys, the newest first, at most so many."""
        return [row["sha256"] for row in await self._database.fetch(_Q["valid_digests"], most)]

    async def by_digest(self, sha256: bytes) -> Key | None:
        """The valid key with this digest, compared once more in constant time."""
        row = await self._database.fetch_row(_Q["key_by_digest"], sha256)
        if row is None or not hmac.compare_digest(row["sha256"], sha256):
            return None
        return Key(**dict(row))

    async def create(  # noqa: PLR0913 - a row has that many columns
        self, organization_id: int | None, role: str, name: str, sha256: bytes, prefix: str, expires_at: datetime | None
    ) -> int:
        """Keep a new key's digest; its id.

        Raises:
            DatabaseRefused: there is no such organization, or the role does not fit it.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_Q["create_key"], organization_id, role, name, sha256, prefix, expires_at)
            assert row is not None
            detail = {"key": row["id"], "role": role, "name": name}
            await audit(connection, None, organization_id, "create_key", detail=detail)
        return int(row["id"])

    async def revoke(self, key_id: int, at: datetime | None = None) -> Record | None:
        """End a key now or at a time; None: there is no such valid key."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_Q["revoke_key"], key_id, at)
            if row is not None:
                ends = (at or datetime.now(UTC)).isoformat()
                await audit(
                    connection, None, row["organization_id"], "revoke_key", detail={"key": key_id, "ends": ends}
                )
        return row

    async def list(self, organization_id: int | None) -> Sequence[Record]:
        """Keys of one organization, or all; never the keys themselves."""
        return await self._database.fetch(_Q["list_keys"], organization_id)

    async def organization_exists(self, organization_id: int) -> bool:
        """Is there such an organization?"""
        return await self._database.fetch_row(_Q["organization_exists"], organization_id) is not None


async def take_turn(connection: Connection, scope: str) -> bool:
    """Hold an Idempotency-Key until the transaction ends; False: another request holds it."""
    row = await connection.fetchrow(_Q["take_turn"], scope)
    assert row is not None
    return bool(row["mine"])


async def earlier_answer(connection: Connection, scope: tuple[int, str, str, str]) -> tuple[bytes, Answer] | None:
    """The digest of the first request's body and its answer."""
    row = await connection.fetchrow(_Q["earlier_answer"], *scope)
    return None if row is None else (row["body_sha256"], Answer(row["status"], row["media_type"], row["answer"]))


async def keep_answer(
    connection: Connection, scope: tuple[int, str, str, str], body_sha256: bytes, answer: Answer
) -> None:
    """Keep an answer for 24 hours."""
    body = answer.body if answer.kept is None else answer.kept
    await connection.execute(_Q["keep_answer"], *scope, body_sha256, answer.status, answer.media_type, body)


@asynccontextmanager
async def key_changes(dsn: str, changed: Callable[[str], None]) -> AsyncIterator[asyncpg.Connection]:
    """A connection that calls ``changed`` with a key's digest (hex) whenever the key is revoked or altered."""
    async with translated():
        connection = await asyncpg.connect(dsn, timeout=20, server_settings={"application_name": "api-listener"})
        try:
            await connection.add_listener("api_keys", lambda *told: changed(str(told[3])))
            yield connection
        finally:
            await connection.close(timeout=5)


__all__ = ["Answer", "Key", "KeyStore", "audit", "earlier_answer", "keep_answer", "key_changes", "take_turn"]
