"""The database roles of deploy/postgres/roles.sql: enough to work, and not more."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.acceptance.world import world_at
from worker.store.queries import queries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROLES = Path("deploy/postgres/roles.sql").read_text(encoding="utf-8")
OF_ROLE = {
    "training_worker": ("runs", "outbox", "workers", "watching", "data"),
    "training_api": ("audit", "api_data", "api_keys", "api_lists", "api_models", "api_runs", "api_webhooks"),
    "training_reader": ("watching",),
}
OPERATORS = {  # typed by people, under the owner's login
    "add_data", "add_base_language", "add_organization", "insert_key", "revoke_key", "set_quota",
}  # fmt: skip


@pytest.fixture
async def logins(database_url: str) -> AsyncIterator[dict[str, str]]:
    """Addresses of one login for each role, in a database of the test's own."""
    owner = await asyncpg.connect(database_url)
    await owner.execute(ROLES)
    mark = uuid.uuid4().hex[:8]
    found = {}
    for role in OF_ROLE:
        login = f"{role}_{mark}"
        await owner.execute(f"create role {login} login password 'secret' in role {role}")
        parts = urlsplit(database_url)
        found[role] = urlunsplit(parts._replace(netloc=f"{login}:secret@{parts.hostname}:{parts.port}"))
    yield found
    for role in OF_ROLE:
        await owner.execute(f"drop role {role}_{mark}")
    await owner.close()


@pytest.mark.parametrize("role", sorted(OF_ROLE))
async def test_a_role_may_run_each_of_its_statements(role: str, logins: dict[str, str]):
    connection = await asyncpg.connect(logins[role])
    refused = []
    for topic in OF_ROLE[role]:
        for name, text in queries(topic).items():
            if name in OPERATORS:
                continue
            arguments = ", ".join("null" for _ in set(re.findall(r"\$\d+", text)))
            try:
                await connection.execute(f"prepare checked as {text}")
                # Planning checks every table a statement touches; nothing is executed.
                await connection.execute(f"explain execute checked{f'({arguments})' if arguments else ''}")
            except asyncpg.InsufficientPrivilegeError as error:
                refused.append(f"{topic}.{name}: {error}")
            finally:
                await connection.execute("deallocate all")
    await connection.close()
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("training_worker", "select sha256 from api_keys"),
        ("training_worker", "select secret from webhooks"),
        (
            "training_worker",
            "insert into custom_models (key, name, organization_id, base_language_id) values ('a', 'a', 1, 1)",
        ),
        ("training_worker", "delete from training_runs"),
        ("training_worker", "update run_transitions set at = now()"),
        ("training_worker", "delete from training_data"),
        ("training_worker", "create table mine (a int)"),
        ("training_api", "insert into organizations (name) values ('a')"),
        ("training_api", "delete from training_runs"),
        ("training_api", "delete from run_transitions"),
        ("training_api", "update audit_log set action = ''"),
        ("training_api", "delete from audit_log"),
        ("training_api", "insert into audit_log (action, database_role) values ('a', 'somebody')"),
        ("training_api", "insert into audit_log (action, at) values ('a', now() - interval '1 year')"),
        ("training_worker", "select 1 from audit_log"),
        ("training_worker", "select forget_audit_entries(30, 1)"),
        ("training_api", "insert into model_versions default values"),
        ("training_reader", "select name from training_data"),
        ("training_reader", "select sha256 from api_keys"),
        ("training_reader", "update training_runs set priority = 0"),
    ],
)
async def test_a_role_may_not(role: str, statement: str, logins: dict[str, str]):
    connection = await asyncpg.connect(logins[role])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)
    await connection.close()


async def test_running_the_file_again_takes_nothing_from_workers_that_work(database_url: str, logins: dict[str, str]):
    """psql sends one statement after the other: nobody may see a state between them."""
    owner = await asyncpg.connect(database_url)
    worker = await asyncpg.connect(logins["training_worker"])
    for statement in _statements(ROLES):
        await owner.execute(statement)
        await worker.execute("update training_runs set priority = 0")
    await worker.close()
    await owner.close()


def _statements(text: str) -> list[str]:
    text = re.sub(r"--.*", "", text)
    found = re.findall(r"(?:\$\$.*?\$\$|[^;])+;", text, re.DOTALL)
    assert len(found) > 10
    return found


async def test_a_worker_with_its_own_role_takes_a_run_from_message_to_model(
    tmp_path: Path, vhost: str, database_url: str, logins: dict[str, str]
):
    async with world_at(tmp_path, vhost, database_url) as world:
        await world.pool.execute(
            "insert into webhooks (organization_id, url, secret) values ($1, 'https://example.org', 's')",
            world.organization,
        )
        worker = await world.started(WORKER_DATABASE_URL=logins["training_worker"])
        run = await world.ask(steps=5, checkpoint_every=2)
        row = await world.over(run)
        assert row["status"] == 4, (dict(row), worker.tail())
        assert await world.pool.fetchval("select count(*) from webhook_deliveries") == 3
        worker.terminate()
        assert await worker.exit_code() == 0
