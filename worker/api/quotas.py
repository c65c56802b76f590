"""What an organization may keep and do in a day: counted where it lies, checked under the lock of its counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from worker.api.api import Api
from worker.api.problems import Refused
from worker.store import api as store
from worker.store.api import Counts, Limits
from worker.store.database import Connection

_MS_PER_HOUR: Final = 3_600_000


@dataclass(frozen=True)
class _Kind:
    """One quota.

    Attributes:
        limit: its name in ``Limits``.
        setting: its name in the settings, for organizations without a limit of their own.
        what: what is counted, after "may have … of".
        used: from the counts.
        shown: a number as people read it.
        remedy: what whoever is over it can do.
    """

    limit: str
    setting: str
    what: str
    used: Callable[[Counts], float]
    shown: Callable[[float], str]
    remedy: str


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _bytes(number: float) -> str:
    if number < 10_000:  # noqa: PLR2004 - small enough to be read
        return f"{number:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000:  # noqa: PLR2004 - the next unit's
            return f"{number:.3g} {unit}"
    return f"{number / 1000:,.4g} TB"


_DELETE_DATA: Final = "Delete training data or models"
_KINDS: Final = {
    "models": _Kind("models", "api_quota_models", "models", lambda now: now.models, _count, "Delete models"),
    "hours": _Kind(
        "hours",
        "api_quota_stored_hours",
        "hours of audio",
        lambda now: now.stored_ms / _MS_PER_HOUR,
        lambda hours: f"{hours:.6g}",
        _DELETE_DATA,
    ),
    "bytes": _Kind(
        "bytes",
        "api_quota_stored_bytes",
        "stored bytes",
        lambda now: now.stored_bytes + now.upload_bytes + now.arriving_bytes,
        _bytes,
        "Delete training data, models or unfinished uploads",
    ),
    "leaving": _Kind(
        "bytes",
        "api_quota_stored_bytes",
        "deleted bytes that still lie in storage",
        lambda now: now.leaving_bytes,
        _bytes,
        "They go within minutes once no run of their model is active: try again later",
    ),
    "files": _Kind(
        "files", "api_quota_files", "files of training data", lambda now: now.stored_files, _count, _DELETE_DATA
    ),
    "uploads": _Kind(
        "uploads",
        "api_quota_uploads",
        "unfinished uploads",
        lambda now: now.uploads,
        _count,
        "Finish or delete unfinished uploads",
    ),
    "manifest_names": _Kind(
        "manifest_names",
        "api_quota_manifest_names",
        "recordings named in manifests",
        lambda now: now.manifest_names,
        _count,
        "Delete manifests, or send recordings with transcripts of the same name",
    ),
    "changes": _Kind(
        "changes",
        "api_quota_changes",
        "changes a day",
        lambda now: now.changes,
        _count,
        "Go on tomorrow; reading and deleting stay possible",
    ),
}


async def check(api: Api, connection: Connection, organization_id: int, *kinds: str) -> None:
    """Refuse what goes beyond a quota, after it was counted and before it commits; locks the counts.

    Args:
        api: for the settings.
        connection: in the transaction that makes something.
        organization_id: whose.
        kinds: of ``_KINDS``.

    Raises:
        Refused: names the first quota that is used up, how much is used and allowed, and what can be done.
    """
    counts = await store.held_counts(connection, organization_id)
    quota = await store.quota(connection, organization_id)
    for name in kinds:
        _refuse_beyond(api, counts, quota.limits, _KINDS[name])


async def count_change(api: Api, connection: Connection, organization_id: int, number: int = 1) -> None:
    """Count something that the organization makes, at the end of the transaction that makes it.

    Rows that pile up whatever is deleted (the audit trail, kept answers, runs, deleted models) are bounded by this.

    Raises:
        Refused: it has made enough today.
    """
    made = await store.count_changes(connection, organization_id, number)
    quota = await store.quota(connection, organization_id)
    _refuse_beyond(api, Counts(changes=made), quota.limits, _KINDS["changes"])


async def try_count_change(api: Api, connection: Connection, organization_id: int) -> bool:
    """The same for what nobody is refused for; False: it has made enough today, and nothing is counted."""
    try:
        async with connection.transaction():
            await count_change(api, connection, organization_id)
    except Refused:
        return False
    return True


async def room_bytes(api: Api, organization_id: int) -> int:
    """Bytes that the organization may still store, as a first look before a body is read; not locked.

    Raises:
        Refused: none at all.
    """
    counts, quota = await api.models.counts(organization_id), await api.models.quota(organization_id)
    most = _most(api, quota.limits, _KINDS["bytes"])
    left = most - _KINDS["bytes"].used(counts)
    if left <= 0:
        raise _used_up(_KINDS["bytes"], _KINDS["bytes"].used(counts), most)
    return int(left)


def too_much(room: int) -> Refused:
    """A body that does not fit into the bytes that are left."""
    return Refused(
        "quota_exceeded",
        f"The organization may store {_bytes(room)} more, and this is more."
        f" {_KINDS['bytes'].remedy}, or ask for a larger quota.",
    )


def _most(api: Api, limits: Limits, kind: _Kind) -> float:
    own: float | None = getattr(limits, kind.limit)
    setting: Any = getattr(api.settings, kind.setting)
    return float(setting) if own is None else own


def _refuse_beyond(api: Api, counts: Counts, limits: Limits, kind: _Kind) -> None:
    most, used = _most(api, limits, kind), kind.used(counts)
    if used > most:
        raise _used_up(kind, used, most)


def _used_up(kind: _Kind, used: float, most: float) -> Refused:
    return Refused(
        "quota_exceeded",
        f"The organization may have {kind.shown(most)} {kind.what}; with this there would be {kind.shown(used)}."
        f" {kind.remedy}, or ask for a larger quota.",
    )
