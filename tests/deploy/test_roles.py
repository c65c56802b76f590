"""The database roles of deploy/postgres/roles.sql: enough to work, and not more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from deploy.grafana.dashboards import all_of_them
from tests.acceptance.world import world_at
from worker.errors import DatabaseRefused
from worker.store.database import Database
from worker.store.queries import queries
from worker.store.workers import WorkerStore

if TYPE_CHECKING:
    from tests.conftest import Logins

ROLES = Path("deploy/postgres/roles.sql").read_text(encoding="utf-8")
OF_ROLE = {
    "training_worker": ("runs", "outbox", "workers", "watching", "data", "janitor", "models"),
    "training_api": (
        "audit",
        "api_data",
        "api_keys",
        "api_lists",
        "api_models",
        "api_runs",
        "api_webhooks",
        "data",
        "runs",
        "models",
    ),
    "training_reader": ("watching",),
}
OPERATORS = {  # typed by people, under the owner's login
    "create_base_language", "create_organization", "create_custom_model", "create_key", "revoke_key", "set_quota",
    "list_keys", "request_drain",
}  # fmt: skip
NOT_OF = {  # statements in a topic that two programs share, and that only the other one runs
    "training_worker": {"add_data"},
    "training_api": {
        "claim_runs", "renew_leases", "record_progress", "fix_inputs", "follow_recipe", "record_log", "record_data_report",
        "register_checkpoint", "checkpoints_of_run", "forget_checkpoints", "store_step_output", "find_step_output",
        "forget_step_output", "settle_runs", "mark_tidied", "forget_cancelled", "set_verdicts", "keep_splits", "splits_of_model",
    },
    "training_reader": set(),
}  # fmt: skip
READER_OF_RUNS = (
    "id, custom_model_id, organization_id, base_language_id, status, sequence, attempt, failures, hand_overs, priority, "
    "requested_at, created_at, due_at, waited_s, wait_until, ran_s, started_at, claimed_at, ended_at, cancel_requested_at, "
    "worker_id, lease_expires_at, phase, percent, eta_s, progress_at, failure_class, failure_code, gate, tidied_at"
)
COUNTS = "data_items, data_bytes, data_ms, usable_ms"
ALL = "select; insert; update; delete"
AUDITED = "insert (api_key_id, organization_id, action, custom_model_id, run_id, detail, address, request_id, os_user, host, command)"

# Every right of every program, written down a second time on purpose: a new table or column belongs here, or it is out
# of the program's reach. Words of a right: the verb, and in brackets the columns where it is not all of them.
RIGHTS = {
    "training_worker": {
        "audit_log": AUDITED,
        "base_languages": "select; update (running)",
        "custom_models": f"select; update (training_status, last_modified, published_version_id, {COUNTS})",
        "model_order": "select; update (last_modified, training_status)",
        "model_versions": "select; insert",
        "organization_counts": "select; insert; update",
        "organizations": "select; update (running, waiting, last_claimed_at)",
        "outbox": "select; insert; update (created_at); delete",
        "run_checkpoints": "select; insert; update (created_at); delete",
        "run_transitions": "select; insert",
        "schema_migrations": "select",
        "step_outputs": ALL,
        "row_splits": "select; insert; update (split)",
        "training_data": "select; update (verdict, reason_code, reason, duration_s, used_s)",
        "training_runs": "select; insert; update",
        "webhook_deliveries": "select (webhook_id, event_id); insert (webhook_id, event_id, kind, body)",
        "webhooks": "select (id, organization_id, disabled_at)",
        "workers": "select; insert; update (seen_at, stopped_at)",
    },
    "training_api": {
        "api_keys": "select (id, organization_id, role, name, sha256, expires_at, revoked_at)",
        "audit_log": f"select; {AUDITED}",
        "base_languages": "select; update (running)",
        "custom_models": "select; insert (key, name, organization_id, base_language_id); update (name, base_language_id, "
        f"last_modified, training_status, published_version_id, deleted_at, purged_at, cleared_at, data_names, upload_count, "
        f"upload_bytes, {COUNTS})",
        "erasures": "select; insert; delete",
        "idempotency_keys": ALL,
        "language_ids": "usage",
        "manifest_names": ALL,
        "model_order": ALL,
        "model_versions": "select",
        "organization_counts": "select; insert; update",
        "organizations": "select; update (running, waiting, last_claimed_at)",
        "outbox": "select; insert",
        "quotas": "select",
        "removals": ALL,
        "run_checkpoints": "select; delete",
        "run_transitions": "select; insert",
        "schema_migrations": "select",
        "step_outputs": "select; delete",
        "training_data": ALL,
        "training_runs": "select; insert (id, custom_model_id, organization_id, base_language_id, requested_at, traceparent, "
        "wanted_parameters, priority, wait_until); update (status, sequence, waited_s, ended_at, cancel_requested_at, "
        "failure_class, failure_code, failure_reason, report_address, erased_at)",
        "uploads": ALL,
        "webhook_deliveries": ALL,
        "webhooks": "select; insert (organization_id, url); update (secret, sealed_secret, disabled_at); delete",
        "workers": "select",
    },
    "training_reader": {
        "base_languages": "select (id, key, recipe, version, language, max_running, running, created_at)",
        "custom_models": "select (id, organization_id, base_language_id, last_modified, training_status, "
        f"published_version_id, created_at, deleted_at, purged_at, {COUNTS})",
        "model_versions": "select (id, custom_model_id, number, run_id, attempt, base_language_id, created_at)",
        "organizations": "select (id, max_running, running, waiting, last_claimed_at, created_at)",
        "outbox": "select",
        "run_checkpoints": "select (run_id, attempt, steps_done, bytes, recipe_version, created_at)",
        "run_transitions": "select",
        "schema_migrations": "select",
        "training_runs": f"select ({READER_OF_RUNS})",
        "workers": "select",
    },
}
NOBODYS = {"webhooks_id_seq"}  # identity columns draw from theirs without a right


def decided(role: str) -> set[str]:
    """``table verb`` and ``table verb column`` of all that is meant to be."""
    found = set()
    for table, rights in RIGHTS[role].items():
        for right in rights.split("; "):
            verb, _, columns = right.partition(" (")
            found |= (
                {f"{table} {verb} {column}" for column in columns.rstrip(")").split(", ")}
                if columns
                else {f"{table} {verb}"}
            )
    return found


GRANTED = """
select c.relname || ' ' || lower(a.privilege_type) from pg_class c, aclexplode(c.relacl) a
where c.relnamespace = 'public'::regnamespace and a.grantee in ($1::regrole, 0)
union
select c.relname || ' ' || lower(a.privilege_type) || ' ' || t.attname
from pg_class c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
where c.relnamespace = 'public'::regnamespace and a.grantee in ($1::regrole, 0)
"""


@pytest.mark.parametrize("role", sorted(RIGHTS))
async def test_a_role_has_the_rights_that_were_decided_and_no_other(role: str, database_url: str, logins: Logins):
    connection = await asyncpg.connect(database_url)
    granted = {row[0] for row in await connection.fetch(GRANTED.replace("$1", f"'{role}'"))}
    member_of = await connection.fetch(
        "select r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid where m.member = $1::text::regrole",
        role,
    )
    powers = await connection.fetchrow(
        "select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolcanlogin from pg_roles where rolname = $1",
        role,
    )
    await connection.close()
    assert granted - decided(role) == set(), "granted, and decided nowhere"
    assert decided(role) - granted == set(), "decided, and not granted"
    assert not member_of
    assert not any(powers)


async def test_no_function_runs_with_its_owners_rights_for_everybody(database_url: str, logins: Logins):
    connection = await asyncpg.connect(database_url)
    open_to_all = await connection.fetch(
        "select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prosecdef"
        " and (p.proacl is null or exists (select from aclexplode(p.proacl) a where a.grantee = 0))"
    )
    unsettled = await connection.fetch(
        "select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prosecdef"
        " and not coalesce(array_to_string(p.proconfig, ' ') like '%search_path=%', false)"
    )
    await connection.close()
    assert not open_to_all
    assert not unsettled, "whoever makes a schema of their own could lend it another table"


@pytest.mark.parametrize("role", sorted(OF_ROLE))
async def test_a_role_may_run_each_of_its_statements(role: str, database_url: str, logins: Logins):
    connection = await asyncpg.connect(logins.url(role, database_url))
    refused = []
    for topic in OF_ROLE[role]:
        for name, text in queries(topic).items():
            if name in OPERATORS | NOT_OF[role]:
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
        ("training_api", "update model_versions set figures = '{}'"),
        ("training_api", "delete from custom_models"),
        ("training_worker", "select clear_deleted_model(1)"),
        ("training_reader", "select clear_removed_files(1, '{}', now())"),
        ("training_api", "delete from audit_log"),
        ("training_api", "insert into audit_log (action, database_role) values ('a', 'somebody')"),
        ("training_api", "insert into audit_log (action, at) values ('a', now() - interval '1 year')"),
        ("training_worker", "select 1 from audit_log"),
        ("training_worker", "select forget_audit_entries(30, 1)"),
        ("training_api", "insert into model_versions default values"),
        (
            "training_api",
            "insert into api_keys (role, name, sha256, prefix) values ('operator', 'o', sha256('k'), 'k')",
        ),
        ("training_api", "update api_keys set role = 'operator', organization_id = null"),
        ("training_api", "update api_keys set revoked_at = null"),
        ("training_api", "update base_languages set weights = 'mine'"),
        ("training_api", "update organizations set max_running = 1000"),
        ("training_api", "insert into quotas (organization_id) values (1)"),
        ("training_api", "insert into audit_log (at, action) values ('2000-01-01', 'nothing')"),
        ("training_api", "update training_runs set attempt = 9, worker_id = 'me', lease_expires_at = now()"),
        ("training_api", "update training_runs set figures = '{}'"),
        ("training_api", "update webhooks set url = 'https://mine.example'"),
        ("training_api", "insert into webhooks (organization_id, url, secret) values (1, 'u', 'in clear')"),
        ("training_api", "update custom_models set organization_id = 2"),
        ("training_worker", "update base_languages set weights = 'mine'"),
        ("training_worker", "update organizations set max_running = 1000"),
        ("training_worker", "update custom_models set name = 'mine'"),
        ("training_worker", "update training_data set address = 'organizations/1/models/1/data/x'"),
        ("training_worker", "select sealed_secret from webhooks"),
        ("training_worker", "update workers set drain_requested_at = now()"),
        ("training_reader", "select figures from training_runs"),
        ("training_reader", "select data_report from training_runs"),
        ("training_reader", "select inputs from training_runs"),
        ("training_reader", "select live from training_runs"),
        ("training_reader", "select failure_reason, failure_detail from training_runs"),
        ("training_reader", "select * from training_runs"),
        ("training_reader", "select name from custom_models"),
        ("training_reader", "select figures from model_versions"),
        ("training_reader", "select url from webhooks"),
        ("training_reader", "select detail from audit_log"),
        ("training_reader", "select name from training_data"),
        ("training_reader", "select sha256 from api_keys"),
        ("training_reader", "update training_runs set priority = 0"),
    ],
)
async def test_a_role_may_not(role: str, statement: str, database_url: str, logins: Logins):
    connection = await asyncpg.connect(logins.url(role, database_url))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)
    await connection.close()


async def test_the_reader_may_ask_what_dashboards_and_the_autoscaler_ask(database_url: str, logins: Logins):
    found = re.findall(r'"rawSql": "((?:[^"\\\\]|\\\\.)+)"', "\n".join(map(json.dumps, all_of_them().values())))
    scaled = Path("deploy/kubernetes/keda/scaled.yaml").read_text(encoding="utf-8")
    found.append(re.search(r"query: >-\n(.*?)\n *targetQueryValue", scaled, re.DOTALL)[1])
    assert len(found) >= 4
    connection = await asyncpg.connect(logins.url("training_reader", database_url))
    for query in found:
        await connection.execute(query.replace("${run:sqlstring}", "'00000000-0000-0000-0000-000000000000'"))
    await connection.close()


async def test_running_the_file_again_takes_nothing_from_workers_that_work(database_url: str, logins: Logins):
    """psql sends one statement after the other: nobody may see a state between them."""
    owner = await asyncpg.connect(database_url)
    worker = await asyncpg.connect(logins.url("training_worker", database_url))
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
    tmp_path: Path, vhost: str, database_url: str, logins: Logins
):
    async with world_at(tmp_path, vhost, database_url) as world:
        await world.pool.execute(
            "insert into webhooks (organization_id, url) values ($1, 'https://example.org')",
            world.organization,
        )
        worker = await world.started(WORKER_DATABASE_URL=logins.url("training_worker", database_url))
        run = await world.ask(steps=5, checkpoint_every=2)
        row = await world.over(run)
        assert row["status"] == 4, (dict(row), worker.tail())
        assert await world.pool.fetchval("select count(*) from webhook_deliveries") == 3
        worker.terminate()
        assert await worker.exit_code() == 0


async def test_whoever_types_an_operators_command_with_a_programs_login_is_told_which_it_takes(
    database_url: str, logins: Logins
):
    database = Database(logins.url("training_worker", database_url), size=1, name="test")
    try:
        with pytest.raises(
            DatabaseRefused, match=r"permission denied for table workers\..*login of the schema's owner"
        ):
            await WorkerStore(database).request_drain("somebody")
    finally:
        await database.close()
