"""Real services for tests: one broker and one server for the session, a fresh vhost and database per test.

TEST_AMQP_URL, TEST_MANAGEMENT_URL and TEST_DATABASE_URL (a superuser's) name running ones, as `tests/run.sh`
sets them; without them a private pair starts for the session and is thrown away.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from deploy.local.debs import has_apt
from deploy.local.install import has_docker
from deploy.local.postgres import create_database, drop_database
from deploy.local.program import run_blocking
from deploy.local.rabbitmq import create_vhost, delete_vhost
from deploy.local.services import LocalServices

if TYPE_CHECKING:
    from collections.abc import Iterator


ROLES = Path(__file__).parent.parent / "deploy" / "postgres" / "roles.sql"


@dataclass(frozen=True)
class Services:
    """Addresses of a broker (with its management API) and of a database server."""

    amqp_url: str
    management_url: str
    database_url: str

    def vhost_url(self, name: str) -> str:
        return self.amqp_url.rsplit("/", 1)[0] + "/" + name


@dataclass(frozen=True)
class Logins:
    """Logins of the server, each a member of one of the roles in deploy/postgres/roles.sql."""

    names: dict[str, str]

    def url(self, role: str, database_url: str) -> str:
        """The address of a database for a program with this role."""
        parts = urlsplit(database_url)
        return urlunsplit(parts._replace(netloc=f"{self.names[role]}:secret@{parts.hostname}:{parts.port}"))


def _fresh(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    amqp, management, database = (os.environ.get(f"TEST_{name}_URL") for name in ("AMQP", "MANAGEMENT", "DATABASE"))
    if amqp and management and database:
        yield Services(amqp, management, database)
        return
    with tempfile.TemporaryDirectory(prefix="speech-training-tests-") as folder:
        own = LocalServices(Path(folder))
        addresses = own.start()
        assert addresses.management_url
        try:
            yield Services(addresses.amqp_url, addresses.management_url, addresses.database_url)
        finally:
            own.stop()
            own.postgres.remove()


@pytest.fixture(scope="module")
def private_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """A broker and a server of this module's own, for tests that kill, freeze or restart them."""
    if not (has_apt() or has_docker() or os.environ.get("CI")):
        pytest.skip("no RabbitMQ of our own to be had here: neither apt nor a Docker engine")
    own = LocalServices(tmp_path_factory.mktemp("services"))
    own.start()
    try:
        yield own
    finally:
        own.stop()
        own.postgres.remove()


@pytest.fixture
def vhost(services: Services) -> Iterator[str]:
    """The AMQP address of an empty virtual host that goes away with the test."""
    name = _fresh("test")
    create_vhost(services.management_url, name)
    yield services.vhost_url(name)
    delete_vhost(services.management_url, name)


@pytest.fixture(scope="session")
def migrated_template(services: Services) -> Iterator[str]:
    """The name of a database with every migration and the programs' roles; nobody stays connected to it."""
    name = _fresh("template")

    async def build() -> None:
        from worker.store.migrations import migrate  # noqa: PLC0415 - only tests of the store need it

        url = await create_database(services.database_url, name)
        await migrate(url)
        owner = await asyncpg.connect(url)
        await owner.execute(ROLES.read_text(encoding="utf-8"))
        await owner.close()

    run_blocking(build)
    yield name
    run_blocking(lambda: drop_database(services.database_url, name))


@pytest.fixture(scope="session")
def logins(services: Services, migrated_template: str) -> Iterator[Logins]:
    """A login for each role, as programs have them: what a test does with one, the program may do."""
    names = {role: _fresh(role) for role in ("training_worker", "training_api", "training_reader")}

    async def each(statement: str) -> None:
        server = await asyncpg.connect(services.database_url)
        for role, name in names.items():
            await server.execute(statement.format(name=name, role=role))
        await server.close()

    run_blocking(lambda: each("create role {name} login password 'secret' in role {role}"))
    yield Logins(names)
    run_blocking(lambda: each("drop role {name}"))


@pytest.fixture
def empty_database_url(services: Services) -> Iterator[str]:
    """The address of a fresh database without any schema."""
    name = _fresh("empty")
    yield run_blocking(lambda: create_database(services.database_url, name))
    run_blocking(lambda: drop_database(services.database_url, name))


@pytest.fixture
def database_url(services: Services, migrated_template: str) -> Iterator[str]:
    """The address of a fresh migrated database (50 ms); open sessions do not keep it from going away."""
    name = _fresh("test")
    yield run_blocking(lambda: create_database(services.database_url, name, template=migrated_template))
    run_blocking(lambda: drop_database(services.database_url, name))
