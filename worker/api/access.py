"""Who calls, and how often: keys looked up once and remembered, a bucket of tokens for each."""

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from worker.api.keys import digest
from worker.api.problems import Refused
from worker.errors import DatabaseAway, DatabaseRefused
from worker.store.api_keys import Key, KeyStore, key_changes

LONGEST_TOKEN: Final = 200
REMEMBERED: Final = 50_000
_PING_S: Final = 10.0
_RETRY_S: Final = 1.0
_SCHEME: Final = "bearer "

_MAY: Final = {
    "reader": frozenset({"look"}),
    "member": frozenset({"look", "change"}),
    "owner": frozenset({"look", "change", "own"}),
    "operator": frozenset({"look", "change", "own"}),
}


class Keyring:
    """Keys by digest. What was looked up is remembered only while the database would tell of a change.

    Args:
        store: where keys are kept.
        dsn: for the one connection that listens.
    """

    def __init__(self, store: KeyStore, dsn: str) -> None:
        self._store = store
        self._dsn = dsn
        self._known: OrderedDict[bytes, Key] = OrderedDict()
        self._listening = False
        # Counts the changes heard of: an answer read before one is not remembered after it.
        self._changes = 0
        self._told: list[Callable[[], None]] = []

    def on_change(self, tell: Callable[[], None]) -> None:
        """Have somebody told whenever a key has changed, or may have without our hearing of it."""
        self._told.append(tell)

    async def still_valid(self, key: Key) -> bool:
        """Whether a key that was let in would be let in again; True while nobody can say."""
        if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
            return False
        if self._known.get(key.sha256) == key:
            return True
        try:
            found = await self._found(key.sha256)
        except DatabaseAway:
            return True
        return found is not None and (found.organization_id, found.role) == (key.organization_id, key.role)

    async def _found(self, sha256: bytes) -> Key | None:
        changes = self._changes
        key = await self._store.by_digest(sha256)
        if key is not None and self._listening and changes == self._changes:
            self._known[sha256] = key
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return key

    async def caller(self, authorization: str | None) -> Key:
        """The key behind an ``Authorization`` header.

        Raises:
            Refused: none, malformed, unknown, expired or revoked.
            DatabaseAway: it cannot be looked up.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise _unauthorized("Send the header Authorization: Bearer followed by your key.")
        token = authorization[len(_SCHEME) :].strip()
        if not token or len(token) > LONGEST_TOKEN:
            raise _unauthorized("The key is not valid.")
        sha256 = digest(token)
        key = self._known.get(sha256)
        if key is None:
            key = await self._found(sha256)
        if key is None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
            raise _unauthorized("The key is not valid.")
        return key

    def _changed(self, sha256: str) -> None:
        self._changes += 1
        self._known.pop(bytes.fromhex(sha256), None)
        self._tell()

    def _tell(self) -> None:
        for tell in self._told:
            tell()

    async def listen(self) -> None:
        """Hear of revoked keys, for ever; forget everything whenever nobody would tell."""
        while True:
            with contextlib.suppress(DatabaseAway, DatabaseRefused):
                async with key_changes(self._dsn, self._changed) as connection:
                    self._listening = True
                    self._tell()  # of what changed while nobody listened
                    try:
                        while not connection.is_closed():
                            await asyncio.sleep(_PING_S)
                            await connection.fetchval("select 1", timeout=_PING_S)
                    finally:
                        self._listening = False
                        self._changes += 1
                        self._known.clear()
                        self._tell()
            await asyncio.sleep(_RETRY_S)


class Limiter:
    """A bucket of tokens for each key, in this process.

    Args:
        per_s: tokens that come in a second.
        burst: tokens a full bucket holds.
        now: monotonic seconds.
    """

    def __init__(self, per_s: float, burst: int, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now = now
        self._buckets: dict[int, tuple[float, float]] = {}

    def take(self, key_id: int) -> None:
        """One request of a key.

        Raises:
            Refused: the bucket is empty; says when it is not.
        """
        now = self._now()
        tokens, at = self._buckets.get(key_id, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._per_s)
        if tokens < 1:
            wait_s = math.ceil((1 - tokens) / self._per_s)
            self._buckets[key_id] = (tokens, now)
            raise Refused("rate_limited", "Too many requests with this key.", headers={"Retry-After": str(wait_s)})
        self._buckets[key_id] = (tokens - 1, now)
        if len(self._buckets) > REMEMBERED:
            self._forget_full(now)

    def _forget_full(self, now: float) -> None:
        """A bucket that is full again says nothing: as many as can go, go."""
        full_after = self._burst / self._per_s
        self._buckets = {key: kept for key, kept in self._buckets.items() if now - kept[1] < full_after}


def require(key: Key, right: str) -> Key:
    """The key, when its role allows to look, change or own.

    Raises:
        Refused: it does not.
    """
    if right not in _MAY[key.role]:
        raise Refused("not_allowed", f"A key with the role {key.role} may not do that.")
    return key


def _unauthorized(detail: str) -> Refused:
    return Refused("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
