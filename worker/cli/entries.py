"""The audit trail, for an operator: who did what, from where; listed, filtered, exported as JSON lines."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from worker.cli.opened import stores
from worker.cli.show import as_json, rows
from worker.settings import Settings
from worker.store.audit import AuditStore, Wanted
from worker.store.database import Record

_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_COLUMNS: Final = (
    "id",
    "at",
    "who",
    "from",
    "organization_id",
    "action",
    "custom_model_id",
    "run_id",
    "detail",
    "request_id",
)


def moment(text: str) -> datetime:
    """A time as people type it: a date, a time with or without zone (without: UTC), or so long ago.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2026-01-31, 2026-01-31T12:00Z or 7d") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


async def show_audit(settings: Settings, options: argparse.Namespace) -> int:
    """List or export entries."""
    wanted = Wanted(options.since, options.until, options.organization, options.action, options.key)
    async with stores(settings) as opened:
        trail = AuditStore(opened.database)
        if options.export:
            async for row in trail.entries(wanted):
                as_json(dict(row))
            return 0
        found = [_shown(row) for row in await trail.newest(wanted, options.most)]
    rows("audit", found, _COLUMNS, json_wanted=options.json)
    return 0


def _shown(row: Record) -> dict[str, Any]:
    """A row with who and from where in two columns for people; nothing left out for programs."""
    who = row["os_user"] or (f"key {row['api_key_id']}" if row["api_key_id"] else f"login {row['database_role']}")
    return dict(row) | {"who": who, "from": row["host"] or row["address"]}
