"""Numbered forward migrations: applied once, in order, by whoever starts first; edited files are noticed.

Each file begins with ``-- oldest code: X.Y.Z``: the oldest version of this code that may run on the schema it leaves.
So old and new workers can run side by side while a release rolls out: expand first, contract one release later.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import asyncpg

from worker import __version__
from worker.errors import SchemaNotReady, SchemaTooNew
from worker.store.database import translated

_FILE: Final = re.compile(r"^(\d{4})_\w+\.sql$")
_OLDEST: Final = re.compile(r"^-- oldest code: (\d+\.\d+\.\d+)$", re.MULTILINE)
_LOCK: Final = 7_201_605_330  # an advisory lock of ours: any number, the same for every starter
_LEDGER: Final = """
create table if not exists schema_migrations (
    number integer primary key,
    name text not null,
    sha256 text not null,
    oldest_code text not null,
    applied_at timestamptz not null default now()
)"""


@dataclass(frozen=True)
class Migration:
    """One file of ``sql/migrations``."""

    number: int
    name: str
    sql: str
    oldest_code: str

    @property
    def sha256(self) -> str:
        """Digest by which an edited file is noticed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Every migration, in order.

    Raises:
        ValueError: a gap in the numbers, or a file that does not say its oldest code.
    """
    found = []
    for file in sorted(files("sql").joinpath("migrations").iterdir(), key=lambda entry: entry.name):
        named = _FILE.match(file.name)
        if named is None:
            continue
        sql = file.read_text(encoding="utf-8")
        oldest = _OLDEST.search(sql)
        if oldest is None:
            raise ValueError(f"{file.name} does not say its oldest code")
        found.append(Migration(int(named.group(1)), file.name, sql, oldest.group(1)))
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are numbered 1, 2, 3 … without a gap")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


async def migrate(dsn: str, *, upto: int | None = None) -> list[str]:
    """Apply what is missing, one transaction each, under a lock that makes several starters wait for each other.

    Returns:
        Names of the migrations applied now.

    Raises:
        SchemaTooNew: this code is older than the schema allows.
        SchemaNotReady: an applied migration was edited since.
        DatabaseAway: nobody answers there.
        DatabaseRefused: a migration was refused; it left nothing behind.
    """
    async with translated():
        connection = await asyncpg.connect(dsn, timeout=20)
        try:
            await connection.execute("select pg_advisory_lock($1::bigint)", _LOCK)
            await connection.execute(_LEDGER)
            applied = await _applied(connection)
            _compare(applied)
            done = []
            for migration in migrations():
                if migration.number in applied or (upto is not None and migration.number > upto):
                    continue
                async with connection.transaction():
                    await connection.execute(migration.sql)
                    await connection.execute(
                        "insert into schema_migrations (number, name, sha256, oldest_code) values ($1, $2, $3, $4)",
                        migration.number,
                        migration.name,
                        migration.sha256,
                        migration.oldest_code,
                    )
                done.append(migration.name)
            return done
        finally:
            await connection.close(timeout=5)


async def check_schema(dsn: str) -> None:
    """Refuse to run on a schema that is behind this code, or too far ahead of it.

    Raises:
        SchemaNotReady: migrations are missing or were edited.
        SchemaTooNew: this code is older than the schema allows.
        DatabaseAway: nobody answers there.
    """
    async with translated():
        connection = await asyncpg.connect(dsn, timeout=20)
        try:
            if await connection.fetchval("select to_regclass('schema_migrations') is null"):
                raise SchemaNotReady("the database has no schema yet: run `python -m worker migrate`")
            applied = await _applied(connection)
        finally:
            await connection.close(timeout=5)
    _compare(applied)
    missing = [migration.name for migration in migrations() if migration.number not in applied]
    if missing:
        raise SchemaNotReady(f"not applied yet: {', '.join(missing)}: run `python -m worker migrate`")


async def _applied(connection: asyncpg.Connection) -> dict[int, asyncpg.Record]:
    rows = await connection.fetch("select number, name, sha256, oldest_code from schema_migrations order by number")
    return {row["number"]: row for row in rows}


def _compare(applied: dict[int, asyncpg.Record]) -> None:
    """Applied migrations against our files: edited ones and ones from the future."""
    ours = {migration.number: migration for migration in migrations()}
    for number, row in applied.items():
        if _version(row["oldest_code"]) > _version(__version__):
            raise SchemaTooNew(
                f"{row['name']} needs code {row['oldest_code']} or newer; this is {__version__}: upgrade"
            )
        if number in ours and row["sha256"] != ours[number].sha256:
            raise SchemaNotReady(
                f"{row['name']} was edited after it was applied: restore the file, and put the change into a new one"
            )
