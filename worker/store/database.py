"""The pool, and the one place where asyncpg's errors become ours."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

import asyncpg

from worker.errors import DatabaseAway, DatabaseRefused
from worker.fair import FairShares
from worker.store.queries import queries

Record = asyncpg.Record
Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg's own state after a connection broke between its inner statements
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # admin_shutdown, crash_shutdown, cannot_connect_now
    asyncpg.InsufficientResourcesError,  # too many connections, disk full: it passes or somebody mends it
    asyncpg.DeadlockDetectedError,  # ids make every statement of ours safe to repeat
    asyncpg.SerializationError,
    asyncpg.ReadOnlySQLTransactionError,  # a server that is being replaced, or protects its last disk space
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalServerError,
)


_NO_RIGHT: Final = (
    "The login in WORKER_DATABASE_URL has no right to this. Operators' commands take the login of the schema's owner; "
    "programs get their rights by deploy/postgres/roles.sql, which is run again after each migration."
)


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn asyncpg's and the socket's errors into ``DatabaseAway`` or ``DatabaseRefused``."""
    try:
        yield
    except _AWAY as error:
        raise DatabaseAway(f"{type(error).__name__}: {error}") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise DatabaseRefused(f"{error}. {_NO_RIGHT}") from error
    except asyncpg.PostgresError as error:
        raise DatabaseRefused(f"{type(error).__name__}: {error}") from error


# Every statement of ours finds its rows by an index, in the index's order. A plan that was made while a table was empty
# walks through all of it, and is kept by prepared statements and foreign key checks long after the table has grown;
# compiling saves nothing.
_SESSION: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}


_HOLDER: Final[ContextVar[Hashable | None]] = ContextVar("holder", default=None)


def connections_count_for(holder: Hashable) -> None:
    """From now on, in this task, connections of a shared pool count for somebody: an organization, say."""
    _HOLDER.set(holder)


@contextmanager
def connections_for_everybody() -> Iterator[None]:
    """In this block connections count for nobody: what is done serves several at once, as polls in one statement do."""
    token = _HOLDER.set(None)
    try:
        yield
    finally:
        _HOLDER.reset(token)


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Nothing of ours changes its session: a statement that resets it would be a second trip for every first."""


def _as_json(value: object) -> str:
    """JSON that Postgres takes. A character that it cannot keep, as in a trainer's last output, becomes U+FFFD.

    Raises:
        ValueError: a number is none; the statement is refused.
    """
    return json.dumps(value, allow_nan=False).replace("\\u0000", "\\ufffd")


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=_as_json, decoder=json.loads, schema="pg_catalog")


class Database:
    """A pool of connections that runs named queries of one topic at a time.

    Args:
        dsn: ``postgresql://…``.
        size: connections at most.
        answer_s: seconds after which a statement counts as unanswered.
        settings: session settings, such as the tests' ``training.fake_now``.
        shares: of the connections, among those that `connections_count_for` names; it has fewer places than there are
            connections, so that some are left for what counts for nobody. None: whoever comes first.
        waited: told the seconds of each wait for a connection.
    """

    def __init__(  # noqa: PLR0913 - a connection has that many
        self,
        dsn: str,
        *,
        size: int = 8,
        answer_s: float = 20.0,
        name: str = "worker",
        settings: dict[str, str] | None = None,
        shares: FairShares | None = None,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._size = size
        self._answer_s = answer_s
        self._settings = _SESSION | {"application_name": name} | (settings or {})
        self._shares = shares
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._waited = waited
        self._waiting = 0

    async def open(self) -> None:
        """Connect once, so that a wrong address is known at the start.

        Raises:
            DatabaseAway: nobody answers there.
            DatabaseRefused: wrong credentials or no such database.
        """
        async with self._opening:
            if self._pool is None:
                async with translated():
                    self._pool = await asyncpg.create_pool(
                        self._dsn,
                        min_size=1,
                        max_size=self._size,
                        timeout=self._answer_s,
                        command_timeout=self._answer_s,
                        server_settings=self._settings,
                        init=_prepare,
                        reset=_leave_as_it_is,
                        max_inactive_connection_lifetime=0,
                    )

    async def close(self) -> None:
        """Give the connections back; those in use get a moment, then are cut."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), 5)
            except (TimeoutError, OSError, asyncpg.InterfaceError):
                pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One connection of the pool, errors translated.

        Raises:
            DatabaseAway: none to be had in time, or it broke.
            DatabaseRefused: a statement was refused.
        """
        if self._pool is None:
            await self.open()
        assert self._pool is not None
        async with translated(), AsyncExitStack() as held:
            began = time.perf_counter()
            self._waiting += 1
            try:
                async with asyncio.timeout(self._answer_s):  # the pool's own timeout makes a task for each statement
                    holder = None if self._shares is None else _HOLDER.get()
                    if self._shares is not None and holder is not None:
                        await held.enter_async_context(self._shares.turn(holder))
                    connection = await held.enter_async_context(self._pool.acquire())
            finally:
                self._waiting -= 1
                if self._waited is not None:
                    self._waited(time.perf_counter() - began)
            yield connection

    def usage(self) -> dict[str, int]:
        """Connections in use and idle, and how many wait for one, by these words."""
        if self._pool is None:
            return {"used": 0, "idle": 0, "waiting": self._waiting}
        idle = self._pool.get_idle_size()
        return {"used": self._pool.get_size() - idle, "idle": idle, "waiting": self._waiting}

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One transaction on one connection."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def brief_transaction(self) -> AsyncIterator[Connection]:
        """A transaction whose locks others wait for: when we fall silent in it, the server ends it after a second.

        A process that is stopped between two statements would otherwise hold them for as long as it is stopped.
        """
        async with self.connection() as connection:
            try:
                await connection.execute("begin; set local idle_in_transaction_session_timeout = '1s'")  # one trip
                yield connection
            except BaseException:
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            await connection.execute("commit")

    async def fetch(self, query: str, *arguments: object) -> Sequence[Record]:
        """All rows of one statement."""
        async with self.connection() as connection:
            return await connection.fetch(query, *arguments)

    async def fetch_row(self, query: str, *arguments: object) -> Record | None:
        """The first row of one statement."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *arguments)

    async def execute(self, query: str, *arguments: object) -> int:
        """Run one statement; the number of rows it touched."""
        async with self.connection() as connection:
            tag: Any = await connection.execute(query, *arguments)
            return int(str(tag).rsplit(" ", 1)[-1]) if str(tag)[-1:].isdigit() else 0


__all__ = [
    "Connection",
    "Database",
    "Record",
    "connections_count_for",
    "connections_for_everybody",
    "queries",
    "translated",
]
