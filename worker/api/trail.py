"""What the API adds to the audit trail beside its writes: reads of what customers said, and refusals.

A read is written down before anything is shown; where the database does not take the entry, nothing is shown: the read
needs the database anyway, so nothing is lost that was there, and nobody can read unseen by keeping the trail away.
Repeats within a minute, and refusals, are summed up: however many requests come, a key causes one entry of refusals a
minute, all requests without a valid key together one, and each thing that a key reads one.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from worker.api.addresses import client_network
from worker.api.metrics import ApiMetrics
from worker.api.request_log import RequestRecord
from worker.errors import DatabaseAway, DatabaseRefused
from worker.store.api_keys import Key
from worker.store.audit import ORIGIN, AuditStore, Subject, Summary

_LOG: Final = structlog.get_logger("api.audit")
REFUSED: Final = frozenset({401, 403, 404, 405, 408, 413, 429})
"""Statuses that an attempt on something shows in."""
_FLUSH_S: Final = 60.0
_FORGET_S: Final = 600.0
_REMEMBERED_S: Final = 60.0
_MOST_KEYS: Final = 10_000
_MOST_READS: Final = 10_000
_MOST_NAMED: Final = 20
"""Causes, addresses and models that one entry of refusals names."""
_MODEL: Final = re.compile(r"/custom_models/([1-9][0-9]{0,18})(?=/|$)")


@dataclass
class _Refusals:
    """What one key, or nobody's, was refused since the last entry."""

    key: Key | None
    address: str
    request_id: str
    """Address and id of the first of them; not its record, which holds all of a stranger's headers."""
    causes: Counter[str] = field(default_factory=Counter)
    addresses: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def add(self, record: RequestRecord) -> None:
        self.count += 1
        _count(self.causes, f"{record.status} {record.code or ''} {record.method} {record.route}")
        _count(self.addresses, client_network(record.address))
        named = _MODEL.search(record.path)
        if named is not None:
            _count(self.models, named[1])

    def merge(self, earlier: "_Refusals") -> None:
        """Add those that came before."""
        self.count += earlier.count
        self.address, self.request_id = earlier.address, earlier.request_id
        for old, new in (
            (earlier.causes, self.causes),
            (earlier.addresses, self.addresses),
            (earlier.models, self.models),
        ):
            for name, count in old.items():
                _count(new, name, count)

    def summary(self) -> Summary:
        """The entry: of the key's organization, which learns nothing but its own requests."""
        key = self.key
        detail = {
            "count": self.count,
            "causes": dict(self.causes),
            "addresses": dict(self.addresses),
            "models": dict(self.models),
        }
        organization = None if key is None else key.organization_id
        key_id = None if key is None else key.id
        return Summary(key_id, Subject(organization), "refused", detail, self.address, self.request_id)


def _count(counter: Counter[str], name: str, count: int = 1) -> None:
    counter[name if name in counter or len(counter) < _MOST_NAMED else "others"] += count


@dataclass
class _Read:
    """A read that is written down, and how often it was repeated since."""

    at: float
    repeats: int
    address: str | None
    request_id: str | None


class Trail:
    """Writes entries of reads and refusals.

    Args:
        store: the audit trail.
        metrics: counts entries that the database did not take.
        now: monotonic seconds.
    """

    def __init__(self, store: AuditStore, metrics: ApiMetrics, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._metrics = metrics
        self._now = now
        self._refusals: dict[int | None, _Refusals] = {}
        self._reads: dict[tuple[Key, Subject, str], _Read] = {}

    async def read(self, key: Key, subject: Subject, action: str) -> None:
        """Somebody is about to read something.

        Raises:
            DatabaseAway: it could not be written down, so it must not be shown.
        """
        named = (key, subject, action)
        known = self._reads.get(named)
        if known is not None and self._now() - known.at < _REMEMBERED_S:
            known.repeats += 1
            return
        try:
            await self._store.add(key, subject, action)
        except (DatabaseAway, DatabaseRefused) as error:
            self._metrics.audit_failures.inc()
            _LOG.error("audit entry not taken", action=action, error=str(error))
            raise DatabaseAway("the audit trail does not take entries") from error
        if len(self._reads) < _MOST_READS:
            origin = ORIGIN.get()
            repeats = 0 if known is None else known.repeats
            self._reads[named] = _Read(self._now(), repeats, origin.address, origin.request_id)

    def ended(self, record: RequestRecord) -> None:
        """A request is over: a refusal is remembered for the next entry."""
        if record.status not in REFUSED:
            return
        key_id = None if record.key is None else record.key.id
        refusals = self._refusals.get(key_id)
        if refusals is None:
            if len(self._refusals) >= _MOST_KEYS:
                return  # that many keys are refused within a minute: the log and the counters have it
            refusals = self._refusals[key_id] = _Refusals(record.key, record.address, record.request_id)
        refusals.add(record)

    async def run(self) -> None:
        """Write what was summed up once a minute, for ever; what is left at the end, too."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_S)
                await self.flush()
        finally:
            await self.flush()

    async def flush(self) -> None:
        """Write what was summed up; what the database does not take is kept for the next time."""
        refusals, self._refusals = self._refusals, {}
        repeated = self._repeated()
        summaries = [one.summary() for one in refusals.values()] + [summary for _, summary in repeated]
        if not summaries:
            return
        try:
            await self._store.add_summaries(summaries)
        except (DatabaseAway, DatabaseRefused) as error:
            self._metrics.audit_failures.inc()
            _LOG.error("audit entries not taken", entries=len(summaries), error=str(error))
            self._keep(refusals, repeated)

    def _repeated(self) -> list[tuple[tuple[Key, Subject, str], Summary]]:
        """Reads that were repeated, as entries; those of more than a minute ago are forgotten."""
        found = []
        for named, known in list(self._reads.items()):
            key, subject, action = named
            if known.repeats:
                detail = {"repeats": known.repeats}
                found.append((named, Summary(key.id, subject, action, detail, known.address, known.request_id)))
                known.repeats = 0
            elif self._now() - known.at >= _REMEMBERED_S:
                del self._reads[named]
        return found

    def _keep(
        self, refusals: dict[int | None, _Refusals], repeated: list[tuple[tuple[Key, Subject, str], Summary]]
    ) -> None:
        for named, summary in repeated:
            if named in self._reads:
                self._reads[named].repeats += summary.detail["repeats"]
        for key_id, kept in refusals.items():
            newer = self._refusals.setdefault(key_id, kept)
            if newer is not kept:
                newer.merge(kept)


async def keep_for_days(store: AuditStore, days: int) -> None:
    """End the oldest entries, in batches, for ever; every process does, and they share the work.

    Args:
        store: the audit trail.
        days: that entries are kept; the database keeps them for 30 at least.
    """
    while True:
        try:
            await store.forget(days)
        except DatabaseAway:
            pass  # later
        except DatabaseRefused as error:
            _LOG.warning("audit entries stay: run deploy/postgres/roles.sql again", error=str(error))
        await asyncio.sleep(_FORGET_S)
