"""Who calls, and how often: keys looked up once and remembered, a bucket of tokens for each.

Wrong keys take from a bucket of their sender's address before the database is asked, and from one of all senders. A
valid key is never refused for them: the valid keys' digests are known beforehand, so whoever shares an address with an
attacker, behind a proxy or in an office, still comes in.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from worker.api.buckets import Buckets
from worker.api.keys import digest
from worker.api.problems import Refused
from worker.errors import DatabaseAway, DatabaseRefused
from worker.store.api_keys import Key, KeyStore, key_changes

LONGEST_TOKEN: Final = 200
REMEMBERED: Final = 50_000
_UNKNOWN_S: Final = 5.0
"""A digest that nobody has is not looked up again for so long."""
_MOST_UNKNOWN: Final = 10_000
_MOST_VALID: Final = 200_000
_VALID_BYTES: Final = 8
"""Of a digest, in the list of the valid ones: it opens nothing, it only spares a bucket."""
_ALL_WRONG_PER_S: Final = 100.0
_ALL_WRONG_BURST: Final = 500
"""Keys that nobody knows, from all addresses together, that this process asks the database about."""
_PING_S: Final = 10.0
_RETRY_S: Final = 1.0
_SCHEME: Final = "bearer "
_T = TypeVar("_T")

_MAY: Final = {
    "reader": frozenset({"look"}),
    "member": frozenset({"look", "change"}),
    "owner": frozenset({"look", "change", "own"}),
    "operator": frozenset({"look", "change", "own"}),
}


class WrongKeys:
    """Buckets for keys that turn out to be none: one for each client, one for all.

    Args:
        per_s: wrong keys a second that one client may send, lasting.
        burst: wrong keys that it may send at once.
        now: monotonic seconds.
    """

    def __init__(self, per_s: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._clients = Buckets(per_s, burst, now)
        self._all = Buckets(_ALL_WRONG_PER_S, _ALL_WRONG_BURST, now, most=1)

    def take(self, client: str) -> None:
        """A key that may be wrong is about to be looked up.

        Raises:
            Refused: this client, or all together, sent too many wrong ones; says when to come back.
        """
        wait_s = self._clients.take(client)
        if not wait_s and (wait_s := self._all.take("")):
            self._clients.give_back(client)
        if wait_s:
            raise Refused(
                "rate_limited",
                "Too many wrong keys came from this address.",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )

    def give_back(self, client: str) -> None:
        """It was a valid one."""
        self._clients.give_back(client)
        self._all.give_back("")


class Keyring:
    """Keys by digest. What was looked up is remembered only while the database would tell of a change.

    Args:
        store: where keys are kept.
        dsn: for the one connection that listens.
        wrong: limits what wrong keys may cost.
        now: monotonic seconds.
    """

    def __init__(self, store: KeyStore, dsn: str, wrong: WrongKeys, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._dsn = dsn
        self._wrong = wrong
        self._now = now
        self._known: OrderedDict[bytes, Key] = OrderedDict()
        # Beginnings of valid keys' digests: only a hint, so it may be late, and outlives the listening connection.
        self._valid: set[bytes] = set()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
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

    @property
    def listening(self) -> bool:
        """True while the database would tell of a revoked key."""
        return self._listening

    async def caller(self, authorization: str | None, client: str) -> Key:
        """The key behind an ``Authorization`` header.

        Args:
            authorization: the header's value.
            client: what counts as one client: ``client_network`` of its address.

        Raises:
            Refused: none, malformed, unknown, expired or revoked; or too many of these came from this client.
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
            key = await self._look_up(sha256, client)
        elif _expired(key):
            self._wrong.take(client)
        if key is None or _expired(key):
            raise _unauthorized("The key is not valid.")
        return key

    async def _look_up(self, sha256: bytes, client: str) -> Key | None:
        """Ask the database, where the client may still make it look."""
        hinted = sha256[:_VALID_BYTES] in self._valid
        if not hinted:
            self._wrong.take(client)
            if self._unknown.get(sha256, 0.0) > self._now():
                return None
        changes = self._changes
        try:
            key = await self._store.by_digest(sha256)
        except BaseException:
            if not hinted:
                self._wrong.give_back(client)
            raise
        unchanged = self._listening and changes == self._changes
        if key is None:
            self._valid.discard(sha256[:_VALID_BYTES])
            if unchanged:
                _remember(self._unknown, sha256, self._now() + _UNKNOWN_S, _MOST_UNKNOWN)
            return None
        if not hinted:
            self._wrong.give_back(client)
        if unchanged:
            _remember(self._known, sha256, key, REMEMBERED)
        return key

    def _changed(self, sha256: str) -> None:
        """A key was made, altered, revoked or removed."""
        self._changes += 1
        known = bytes.fromhex(sha256)
        self._known.pop(known, None)
        self._unknown.pop(known, None)
        if len(self._valid) < _MOST_VALID:
            self._valid.add(known[:_VALID_BYTES])  # it may be a new one; if not, the next look-up takes it off
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
                        self._valid |= {one[:_VALID_BYTES] for one in await self._store.valid_digests(_MOST_VALID)}
                        while not connection.is_closed():
                            await asyncio.sleep(_PING_S)
                            await connection.fetchval("select 1", timeout=_PING_S)
                    finally:
                        self._listening = False
                        self._changes += 1
                        self._known.clear()
                        self._unknown.clear()
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
        self._buckets = Buckets(per_s, burst, now, most=REMEMBERED)

    def take(self, key_id: int) -> None:
        """One request of a key.

        Raises:
            Refused: the bucket is empty; says when it is not.
        """
        wait_s = self._buckets.take(key_id)
        if wait_s:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise Refused("rate_limited", "Too many requests with this key.", headers=headers)


def require(key: Key, right: str) -> Key:
    """The key, when its role allows to look, change or own.

    Raises:
        Refused: it does not.
    """
    if right not in _MAY[key.role]:
        raise Refused("not_allowed", f"A key with the role {key.role} may not do that.")
    return key


def _expired(key: Key) -> bool:
    return key.expires_at is not None and key.expires_at <= datetime.now(UTC)


def _remember(found: OrderedDict[bytes, _T], name: bytes, value: _T, most: int) -> None:
    """Keep it; the oldest goes where there are too many."""
    found[name] = value
    if len(found) > most:
        found.popitem(last=False)


def _unauthorized(detail: str) -> Refused:
    return Refused("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
