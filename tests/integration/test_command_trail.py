"""Every command of the operator that changes or shows what customers own leaves entries that say who, where and what."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli import parser as command_line
from worker.cli.entries import moment
from worker.cli.trail import Touches, origin, person, touches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOUCH_NOTHING = {"run", "api", "migrate", "doctor", "workers"}
"""Commands that neither change nor show what customers own. Everything else leaves an entry."""
ME = pwd.getpwuid(os.getuid()).pw_name


def commands() -> dict[str, argparse.ArgumentParser]:
    top = command_line.parser()
    [subparsers] = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(subparsers.choices)


def test_every_command_says_what_it_touches_and_only_those_listed_touch_nothing():
    found = {name: command.get_default("touches") for name, command in commands().items()}
    assert all(found.values()), "add() asks for it"
    assert {name for name, touching in found.items() if touching is Touches.NOTHING} == TOUCH_NOTHING


@pytest.mark.parametrize(
    ("line", "touched"),
    [
        ("versions m", Touches.SHOWS),
        ("versions m --serve 2", Touches.CHANGES),
        ("dead-letters", Touches.SHOWS),
        ("dead-letters replay", Touches.CHANGES),
        ("dead-letters discard --id 5", Touches.CHANGES),
    ],
)
def test_what_depends_on_the_arguments_is_decided_by_them(line, touched):
    assert touches(command_line.parser().parse_args(line.split())) is touched


def command(database_url: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given_ = {name: value for name, value in os.environ.items() if not name.startswith(("WORKER_", "SUDO_"))}
    return subprocess.run(
        [sys.executable, "-m", "worker", *words],
        env=given_ | {"WORKER_DATABASE_URL": database_url, "WORKER_AMQP_URL": "amqp://127.0.0.1:9/"} | environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(database_url)
    await made.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    yield made
    await made.close()


@pytest.fixture
async def model(connection: asyncpg.Connection) -> dict[str, Any]:
    organization = await connection.fetchval("insert into organizations (name) values ('Clinic') returning id")
    base = await connection.fetchval(
        "insert into base_languages (key, name, weights) values ('en', 'English', '/x') returning id"
    )
    made = await connection.fetchval(
        "insert into custom_models (key, name, organization_id, base_language_id) values ('m', 'M', $1, $2) returning id",
        organization, base,
    )  # fmt: skip
    return {"id": made, "organization": organization}


async def test_a_change_leaves_an_entry_before_and_one_after_with_who_where_and_what(connection, database_url, model):
    done = command(database_url, "quota", str(model["organization"]), "--models", "3", SUDO_USER="alice")
    assert done.returncode == 0, done.stderr
    begun, inner, ended = await connection.fetch("select * from audit_log order by id")
    assert [row["action"] for row in (begun, inner, ended)] == ["quota", "set_quota", "quota"]
    assert (begun["detail"], ended["detail"]) == ({"stage": "begun"}, {"stage": "ended", "exit": 0})
    for row in (begun, inner, ended):
        assert row["organization_id"] == model["organization"]
        assert row["os_user"] == f"alice as {ME}"
        assert row["host"] == socket.gethostname()
        assert row["command"] == {"name": "quota", "arguments": {"organization": model["organization"], "models": 3}}
        assert row["request_id"] == begun["request_id"]


async def test_a_change_that_fails_says_so_in_its_second_entry(connection, database_url, model):
    assert command(database_url, "import", "/nowhere.jsonl", "--model", "no-such-model").returncode == 1
    assert [row["detail"] for row in await connection.fetch("select detail from audit_log order by id")] == [
        {"stage": "begun"},
        {"stage": "ended", "exit": 1},
    ]
    assert command(database_url, "request-run", "m").returncode == 1  # no broker there
    rows = await connection.fetch("select * from audit_log where action = 'request-run' order by id")
    assert [row["detail"] for row in rows] == [{"stage": "begun"}, {"stage": "ended", "failed": "BrokerAway"}]
    assert {(row["organization_id"], row["custom_model_id"]) for row in rows} == {(model["organization"], model["id"])}


async def test_what_shows_customers_things_leaves_one_entry(connection, database_url, model):
    assert command(database_url, "versions", "m").returncode == 0
    assert command(database_url, "keys", "--organization", str(model["organization"])).returncode == 0
    rows = await connection.fetch("select action, organization_id, os_user from audit_log order by id")
    assert [(row["action"], row["organization_id"]) for row in rows] == [
        ("versions", model["organization"]),
        ("keys", model["organization"]),
    ]
    assert {row["os_user"] for row in rows} == {ME}


async def test_a_change_that_cannot_be_written_down_is_not_made(connection, database_url, model):
    await connection.execute("alter table audit_log add constraint full_disk check (action <> 'organization-add')")
    done = command(database_url, "organization-add", "Another")
    assert done.returncode == 1
    assert "nothing was done" in done.stderr
    assert await connection.fetchval("select count(*) from organizations") == 1


def test_dead_letters_are_shown_while_the_database_is_away_and_not_discarded():
    away = "postgresql://nobody@127.0.0.1:9/none"
    shown = command(away, "dead-letters", "list")
    assert "shown without an entry" in shown.stderr
    assert "BrokerAway" in shown.stderr, "it went on to the broker, which is not there either"
    changed = command(away, "dead-letters", "discard")
    assert changed.returncode == 1
    assert "nothing was done" in changed.stderr
    assert "BrokerAway" not in changed.stderr


async def test_a_key_that_is_made_is_nowhere_in_the_trail(connection, database_url, model):
    done = command(database_url, "key-add", "CI", "--organization", str(model["organization"]), "--json")
    secret = json.loads(done.stdout)["key"]
    rows = await connection.fetch("select * from audit_log")
    assert [row["action"] for row in rows] == ["key-add", "create_key", "key-add"]
    assert secret not in str([dict(row) for row in rows])


async def test_the_trail_is_exported_as_lines_of_json_and_listed_with_filters(connection, database_url, model):
    command(database_url, "versions", "m")
    command(database_url, "keys")
    await connection.execute(
        "insert into audit_log (action, detail) values ('upload', $1)", {"names": ["\x1b[2J[red]\u202e.wav"]}
    )
    exported = command(database_url, "audit", "--export", "--since", "1h")
    assert [json.loads(line)["action"] for line in exported.stdout.splitlines()] == [
        "versions",
        "keys",
        "upload",
        "audit",
    ]
    listed = command(database_url, "audit", "--organization", str(model["organization"]), "--json")
    assert [row["action"] for row in json.loads(listed.stdout)] == ["audit", "versions"]
    for_people = command(database_url, "audit", "--action", "upload")
    assert "\x1b" not in for_people.stdout
    assert "\u202e" not in for_people.stdout
    assert "[red]" in for_people.stdout
    assert command(database_url, "audit", "--since", "yesterday-ish").returncode == 2


@given(st.text(max_size=200), st.text(max_size=2_000))
def test_any_word_that_can_be_typed_fits_into_an_entry(user, word):
    options = argparse.Namespace(command="import", manifest=word, do=None, touches=None, json=False, model=None)
    told = origin(options)
    assert len(json.dumps(told.command)) < 15_000
    person({"SUDO_USER": user}, os.getuid()).encode("utf-8")
    json.dumps(told.command, ensure_ascii=False).encode("utf-8")


def test_times_are_taken_as_people_write_them():
    assert moment("2026-01-31").isoformat() == "2026-01-31T00:00:00+00:00"
    assert moment("2026-01-31T12:00+02:00").utcoffset().total_seconds() == 7200
    assert moment("90m") < moment("1h")
    for wrong in ("", "7", "7w", "soon", "9" * 30 + "d", "999999d"):
        with pytest.raises(argparse.ArgumentTypeError):
            moment(wrong)
