"""Making, rotating and ending API keys, for the command line: a key is shown once and only its digest kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from worker.store.api_keys import KeyStore

Role = Literal["reader", "member", "owner", "operator"]
ROLES: Final[tuple[Role, ...]] = ("reader", "member", "owner", "operator")
"""reader looks; member also changes models, data and runs; owner also webhooks, audit trail; operator: everywhere."""
_MARK: Final = "stk_"
_SHOWN: Final = 12


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. ``secret`` is nowhere else."""

    id: int
    secret: str


class NoSuchKey(LookupError):  # noqa: N818 - an answer
    """There is no valid key with that id."""


def digest(secret: str) -> bytes:
    """What is kept of a key. A key has 256 random bits, so one round of SHA-256 is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


async def create(
    store: KeyStore, organization_id: int | None, role: Role, name: str, *, valid_days: float | None = None
) -> NewKey:
    """A new key.

    Args:
        store: where keys are kept.
        organization_id: None with the role operator, and only then.
        role: what it may do.
        name: by which people will know it.
        valid_days: None: until it is revoked.

    Raises:
        ValueError: the role and the organization do not fit, or the name is empty.
        DatabaseRefused: there is no such organization.
    """
    if role not in ROLES or (role == "operator") != (organization_id is None):
        raise ValueError("an operator's key has no organization, every other key has one")
    if not name.strip():
        raise ValueError("a key needs a name")
    secret = _MARK + secrets.token_urlsafe(32)
    expires_at = None if valid_days is None else datetime.now(UTC) + timedelta(days=valid_days)
    key_id = await store.create(organization_id, role, name, digest(secret), secret[:_SHOWN], expires_at)
    return NewKey(key_id, secret)


async def rotate(store: KeyStore, key_id: int, *, overlap_s: float = 3600) -> NewKey:
    """A new key in place of an old one, which stays valid for a while so that nobody is locked out.

    Raises:
        NoSuchKey: there is none, or it has ended.
    """
    ending = datetime.now(UTC) + timedelta(seconds=overlap_s)
    row = await store.revoke(key_id, ending)
    if row is None:
        raise NoSuchKey(str(key_id))
    return await create(store, row["organization_id"], row["role"], row["name"])


async def revoke(store: KeyStore, key_id: int) -> None:
    """End a key now; every API process forgets it at once.

    Raises:
        NoSuchKey: there is none, or it has ended.
    """
    if await store.revoke(key_id) is None:
        raise NoSuchKey(str(key_id))
