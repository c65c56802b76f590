"""Every command that changes or shows what customers own leaves an entry in the audit trail: by this one place.

The entry is written before the command begins, and for a change a second one, with the same request id, when it has
ended. A change that cannot be written down does not begin; something shown is shown all the same while the database is
away (whoever is on call must see dead letters just then), with a warning on standard error and in the log.
"""

import argparse
import os
import pwd
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Final
from uuid import UUID, uuid4

import structlog

from worker.errors import DatabaseAway, DatabaseRefused, WorkerError
from worker.settings import Settings
from worker.store.audit import ORIGIN, AuditStore, Origin, Subject
from worker.store.database import Database

_LOG: Final = structlog.get_logger("cli.audit")
_PATIENCE_S: Final = 5.0
_LONGEST: Final = 1_000
"""Characters of one argument that an entry holds."""


class Touches(Enum):
    """What a command does with what customers own."""

    NOTHING = "nothing"
    SHOWS = "shows"
    CHANGES = "changes"


Command = Callable[[Settings, argparse.Namespace], Awaitable[int]]
Touching = Touches | Callable[[argparse.Namespace], Touches]
"""Where it depends on the arguments: a function of them."""


class NotWrittenDown(WorkerError):  # noqa: N818 - as the other states of the world
    """The audit trail does not take the entry, so the command did not begin."""


def touches(options: argparse.Namespace) -> Touches:
    """What this command line touches."""
    touching: Touching = options.touches
    return touching if isinstance(touching, Touches) else touching(options)


async def audited(settings: Settings, options: argparse.Namespace) -> int:
    """Do what was typed, with its entries in the audit trail; the exit code.

    Raises:
        NotWrittenDown: it would change something, and the entry was not taken.
        WorkerError: as the command has it.
    """
    touched = touches(options)
    if touched is Touches.NOTHING:
        return int(await options.do(settings, options))
    ORIGIN.set(origin(options))
    subject = await _begin(settings, options, touched)
    if touched is Touches.SHOWS:
        return int(await options.do(settings, options))
    ended: dict[str, Any] = {"stage": "ended", "failed": "broken off"}
    try:
        code = int(await options.do(settings, options))
        ended = {"stage": "ended", "exit": code}
    except Exception as error:
        ended = {"stage": "ended", "failed": type(error).__name__}
        raise
    finally:
        await _end(settings, options, subject, ended)
    return code


def origin(options: argparse.Namespace) -> Origin:
    """Who types, where, and what: names only, and no secret, since no command takes one as an argument."""
    words = {
        name: _plain(value)
        for name, value in vars(options).items()
        if name not in {"do", "touches", "json", "command"} and value not in (None, [], False)
    }
    return Origin(
        request_id=f"command-{uuid4()}",
        os_user=person(os.environ, os.getuid()),
        host=socket.gethostname()[:255],
        command={"name": options.command, "arguments": words},
    )


def person(environment: Mapping[str, str], user_id: int) -> str:
    """Who types: by the process's own user, which nobody can choose, and by what sudo says of the person behind it."""
    try:
        name = pwd.getpwuid(user_id).pw_name
    except KeyError:
        name = str(user_id)
    behind = environment.get("SUDO_USER")
    return name if behind is None else f"{_text(behind[:100])} as {name}"


def _plain(value: object) -> object:
    """An argument as JSON has it, of bounded length."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in list(value)[:100]]
    return _text(value)


def _text(value: object) -> str:
    """A text that the database takes, whatever bytes somebody typed."""
    return str(value)[:_LONGEST].encode("utf-8", "backslashreplace").decode().replace("\0", "\ufffd")


def _database(settings: Settings) -> Database:
    dsn = settings.database_url.get_secret_value()
    return Database(dsn, size=1, answer_s=_PATIENCE_S, name="training-cli-audit")


async def _begin(settings: Settings, options: argparse.Namespace, touched: Touches) -> Subject:
    database = _database(settings)
    try:
        store = AuditStore(database)
        subject = await store.subject(**_named(options))
        await store.add(None, subject, options.command, {"stage": "begun"} if touched is Touches.CHANGES else None)
    except (DatabaseAway, DatabaseRefused) as error:
        if touched is Touches.CHANGES:
            raise NotWrittenDown(f"the audit trail took no entry, so nothing was done: {error}") from error
        print(f"shown without an entry in the audit trail: {error}", file=sys.stderr)
        _warn(options, error)
        return Subject()
    finally:
        await database.close()
    return subject


async def _end(settings: Settings, options: argparse.Namespace, subject: Subject, ended: dict[str, Any]) -> None:
    """The second entry; the command is over, so a fault here is told and hurts nothing."""
    database = _database(settings)
    try:
        await AuditStore(database).add(None, subject, options.command, ended)
    except (DatabaseAway, DatabaseRefused) as error:
        _warn(options, error)
    finally:
        await database.close()


def _warn(options: argparse.Namespace, error: Exception) -> None:
    told = ORIGIN.get()
    _LOG.warning(
        "audit entry not taken", action=options.command, os_user=told.os_user, request=told.request_id, error=str(error)
    )


def _named(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line names: an organization, a model, a run, a key."""
    found: dict[str, Any] = {}
    organization = getattr(options, "organization", None)
    if options.command == "organization-add":
        organization = options.id
    elif options.command in {"key-rotate", "key-revoke"}:
        found["key_id"] = options.id
    found["organization_id"] = organization
    found["model"] = getattr(options, "model", None)
    try:
        found["run_id"] = UUID(getattr(options, "run", None) or "")
    except ValueError:
        found["run_id"] = None
    return found
