"""compose.yaml: one secret for each program, none in an environment, and no superuser among the logins."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import subprocess
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import yaml

from tests.deploy.test_backup import program
from worker.store.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Services

COMPOSE = yaml.safe_load(Path("deploy/compose.yaml").read_text(encoding="utf-8"))
SERVERS = {"postgres", "rabbitmq"}  # they know the passwords, or their hashes, of those who log in
SAME_LOGIN = [{"migrate", "operator", "roles"}]  # the owner's commands
LOGINS = ("training_migrator", "worker", "api", "grafana_reader")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    made(folder)
    return folder


def made(folder: Path) -> str:
    done = subprocess.run(
        ["bash", "deploy/compose-secrets.sh", str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout


def sources(service: dict[str, Any]) -> list[str]:
    return [one if isinstance(one, str) else one["source"] for one in service.get("secrets", [])]


def words(text: str) -> set[str]:
    """Passwords, keys and hashes in the text of a secret."""
    if text.startswith("{"):
        return {user["password_hash"] for user in json.loads(text)["users"]}
    return {urlsplit(text).password or ""} if "://" in text else {text}


def test_every_secret_is_made_once_for_its_owner_alone_and_stays(secrets: Path):
    files = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert set(COMPOSE["secrets"]) <= set(files)
    assert all(COMPOSE["secrets"][name]["file"] == f"secrets/{name}" for name in COMPOSE["secrets"])
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert made(secrets) == ""
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == files
    (secrets / "grafana_admin").unlink()
    assert made(secrets).split() == ["made", str(secrets / "grafana_admin")]


def test_every_secret_is_used_and_none_stands_in_an_environment_or_a_command(secrets: Path):
    used = {name for service in COMPOSE["services"].values() for name in sources(service)}
    assert used == set(COMPOSE["secrets"])
    for name, service in COMPOSE["services"].items():
        for key, value in (service.get("environment") or {}).items():
            assert not re.search("PASS|SECRET|KEY|_URL$", key) or str(value).startswith(("/run/secrets/", "file://")), (
                name,
                key,
            )
        assert "${" not in json.dumps(service)


def test_no_two_programs_share_a_password(secrets: Path):
    known = {
        name: set().union(*(words((secrets / one).read_text()) for one in sources(service)))
        for name, service in COMPOSE["services"].items()
        if name not in SERVERS
    }
    assert {name for name, found in known.items() if found} >= {"worker", "api", "operator", "grafana"}
    for one, other in itertools.combinations(known, 2):
        if not any({one, other} <= same for same in SAME_LOGIN):
            assert not known[one] & known[other], (one, other)
    superuser = words((secrets / "postgres_superuser").read_text())
    assert not any(superuser & found for found in known.values())
    every = [word for path in secrets.iterdir() for word in words(path.read_text())]
    assert all(len(word) >= 32 for word in every)


@pytest.fixture
async def server(services: Services, empty_database_url: str, secrets: Path) -> AsyncIterator[str]:
    """A database as Postgres' image makes it: by the init file, run by the superuser."""
    logins = [program("psql"), "-v", f"secrets={secrets}", "-f", "deploy/postgres/logins.sql", empty_database_url]
    for _ in range(2):  # again sets the same passwords
        done = subprocess.run(logins, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    yield empty_database_url
    owner = await asyncpg.connect(empty_database_url)
    await owner.execute(f"drop owned by {', '.join(LOGINS)}")
    await owner.execute("reassign owned by training_migrator to current_user")
    await owner.execute(f'alter database "{urlsplit(empty_database_url).path[1:]}" owner to current_user')
    await owner.execute(f"drop role {', '.join(LOGINS)}")
    await owner.close()


def address(secrets: Path, file: str, database_url: str, login: str) -> str:
    password = next(iter(words((secrets / file).read_text())))
    parts = urlsplit(database_url)
    return urlunsplit(parts._replace(netloc=f"{login}:{password}@{parts.hostname}:{parts.port}"))


async def test_the_database_comes_up_under_an_owner_that_is_no_superuser(server: str, secrets: Path):
    owner = address(secrets, "migrator_database_url", server, "training_migrator")
    assert await migrate(owner)
    done = subprocess.run(
        [program("psql"), "-v", "ON_ERROR_STOP=1", "-f", "deploy/postgres/roles.sql", owner],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    connection = await asyncpg.connect(owner)
    powers = await connection.fetch(
        "select rolname, rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication as power"
        " from pg_roles where rolname = any ($1::text[])",
        list(LOGINS),
    )
    assert {row["rolname"]: row["power"] for row in powers} == dict.fromkeys(LOGINS, False)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("copy (select 1) to program 'id'")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("create role mine superuser")
    await connection.execute("insert into organizations (name) values ('an operator may')")
    await connection.close()


async def test_each_program_logs_in_with_its_own_password_and_with_no_others(server: str, secrets: Path):
    owner = address(secrets, "migrator_database_url", server, "training_migrator")
    await migrate(owner)
    connection = await asyncpg.connect(owner)
    await connection.execute(Path("deploy/postgres/roles.sql").read_text(encoding="utf-8"))
    await connection.close()
    files = {"worker": "worker_database_url", "api": "api_database_url", "grafana_reader": "postgres_grafana_reader"}
    for login, file in files.items():
        connection = await asyncpg.connect(address(secrets, file, server, login))
        assert await connection.fetchval("select count(*) from training_runs where status = 2") == 0
        await connection.close()
        for other in {*files.values(), "migrator_database_url"} - {file}:
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(address(secrets, other, server, login))


def test_the_broker_takes_each_users_password_by_its_hash(services: Services, secrets: Path):
    """The hash of a user goes to a real broker under another name; then that user is asked who it is."""
    users = {user["name"]: user for user in json.loads((secrets / "rabbitmq_definitions.json").read_text())["users"]}
    assert {name: user["tags"] for name, user in users.items()} == {
        "admin": ["administrator"],
        "worker": [],
        "operator": [],
    }
    parts = urlsplit(services.management_url)
    base = urlunsplit(parts._replace(netloc=f"{parts.hostname}:{parts.port}"))
    for file, name in (("worker_amqp_url", "worker"), ("rabbitmq_admin", "admin")):
        password, user = next(iter(words((secrets / file).read_text()))), f"test-{uuid.uuid4().hex[:8]}"
        salt = base64.b64decode(users[name]["password_hash"])[:4]
        assert users[name]["password_hash"] == base64.b64encode(
            salt + hashlib.sha256(salt + password.encode()).digest()
        ).decode()  # fmt: skip
        body = json.dumps({"password_hash": users[name]["password_hash"], "tags": "management"}).encode()
        asked(f"{base}/api/users/{user}", (parts.username, parts.password), "PUT", body)
        try:
            assert json.loads(asked(f"{base}/api/whoami", (user, password)))["name"] == user
            with pytest.raises(urllib.error.HTTPError, match="401"):
                asked(f"{base}/api/whoami", (user, "another"))
        finally:
            asked(f"{base}/api/users/{user}", (parts.username, parts.password), "DELETE")


def asked(url: str, login: tuple[str | None, str | None], method: str = "GET", body: bytes | None = None) -> bytes:
    basic = base64.b64encode(f"{login[0]}:{login[1]}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=20) as answer:
        return answer.read()
