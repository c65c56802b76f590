"""The schema: applied once whoever starts, edited files noticed, old and new code side by side."""

from __future__ import annotations

import asyncio
import json
import re
from importlib.resources import files

import asyncpg
import pytest

from schemas.failures import FailureClass
from schemas.status import LEGAL_MOVES, Gate, Phase
from worker.errors import SchemaNotReady, SchemaTooNew
from worker.store.migrations import check_schema, migrate, migrations


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_several_starters_at_once_apply_each_migration_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(6)))
    assert sorted(name for names in applied for name in names) == [migration.name for migration in migrations()]
    await check_schema(empty_database_url)


async def test_each_migration_applies_on_what_the_one_before_left(empty_database_url: str) -> None:
    for migration in migrations():
        assert await migrate(empty_database_url, upto=migration.number) == [migration.name]


async def test_missing_schema_is_named(empty_database_url: str) -> None:
    with pytest.raises(SchemaNotReady, match="worker migrate"):
        await check_schema(empty_database_url)


async def test_missing_migration_is_named(database_url: str) -> None:
    last = migrations()[-1]
    await _execute(database_url, f"delete from schema_migrations where number = {last.number}")
    with pytest.raises(SchemaNotReady, match=re.escape(last.name)):
        await check_schema(database_url)


async def test_edited_migration_is_noticed(database_url: str) -> None:
    await _execute(database_url, "update schema_migrations set sha256 = repeat('0', 64) where number = 1")
    with pytest.raises(SchemaNotReady, match="edited"):
        await check_schema(database_url)
    with pytest.raises(SchemaNotReady, match="edited"):
        await migrate(database_url)


async def test_schema_of_a_newer_release_that_allows_this_code_is_accepted(database_url: str) -> None:
    await _execute(database_url, "insert into schema_migrations values (9000, '9000_later.sql', 'x', '0.1.0')")
    await check_schema(database_url)
    assert await migrate(database_url) == []


async def test_schema_that_needs_newer_code_is_refused(database_url: str) -> None:
    await _execute(database_url, "insert into schema_migrations values (9000, '9000_later.sql', 'x', '99.0.0')")
    with pytest.raises(SchemaTooNew, match=r"99\.0\.0"):
        await check_schema(database_url)
    with pytest.raises(SchemaTooNew):
        await migrate(database_url)


async def test_failed_migration_leaves_nothing_behind(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.errors import DatabaseRefused  # noqa: PLC0415
    from worker.store import migrations as module  # noqa: PLC0415

    known = migrations()
    broken = module.Migration(len(known) + 1, "broken.sql", "create table half (); select 1 / 0", "0.1.0")
    monkeypatch.setattr(module, "migrations", lambda: [*known, broken])
    with pytest.raises(DatabaseRefused):
        await migrate(empty_database_url)
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await connection.fetchval("select to_regclass('half')") is None
        assert await connection.fetchval("select count(*) from schema_migrations") == len(known)
    finally:
        await connection.close()


def _numbers(text: str) -> set[tuple[int, int]]:
    return {(int(first), int(second)) for first, second in re.findall(r"\((\d), (\d)\)", text)}


def test_legal_moves_in_sql_are_those_of_the_code() -> None:
    text = files("sql").joinpath("migrations", "0001_one_run.sql").read_text(encoding="utf-8")
    ours = {(int(start), int(end)) for start, end in LEGAL_MOVES if start is not None}
    places = re.findall(r"in\s+\(\((?:\d, \d\)[,\s(]*)+\)", text)
    assert len(places) == 2
    assert all(_numbers(place) == ours for place in places)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("failure_class", {member.value for member in FailureClass}),
        ("gate", {member.value for member in Gate}),
        ("phase", {member.value for member in Phase}),
    ],
)
def test_words_in_sql_are_those_of_the_code(column: str, words: set[str]) -> None:
    text = files("sql").joinpath("migrations", "0001_one_run.sql").read_text(encoding="utf-8")
    found = re.search(rf"{column} text check \({column} in \(([^)]*)\)", text)
    assert found is not None
    assert set(re.findall(r"'(\w+)'", found.group(1))) == words


async def test_what_customers_had_before_quotas_existed_is_counted(empty_database_url: str) -> None:
    await migrate(empty_database_url, upto=5)
    await _execute(
        empty_database_url,
        """
        insert into organizations (id, name) overriding system value values (1, 'a'), (2, 'b');
        insert into base_languages (key, name, weights) values ('en', 'English', 'w');
        insert into custom_models (id, key, name, organization_id, base_language_id)
            select n, 'm' || n, 'm', 1, (select id from base_languages) from generate_series(101, 103) n;
        insert into training_data (custom_model_id, organization_id, name, stem, kind, bytes, sha256, address, duration_s)
            select m.id, 1, n || '.wav', n, 'audio', 100, repeat('a', 64), 'x', 2 from custom_models m, generate_series(1, 4) n;
        insert into manifest_names (data_id, custom_model_id, audio_name)
            select id, custom_model_id, name from training_data where name < '3';
        insert into uploads (id, custom_model_id, organization_id, name, bytes)
            select gen_random_uuid(), id, 1, 'u.wav', 1000 from custom_models;
        update custom_models set deleted_at = now() where id = 103;
        insert into removals (address, custom_model_id) values ('y', 101);
        """,
    )
    await migrate(empty_database_url)
    connection = await asyncpg.connect(empty_database_url)
    try:
        counts = await connection.fetch("select * from organization_counts order by organization_id")
        expected = {
            "models": 2, "stored_files": 8, "stored_bytes": 800, "stored_ms": 16_000, "manifest_names": 4, "uploads": 2,
            "upload_bytes": 2_000, "leaving_bytes": 400, "arriving_bytes": 0,
        }  # fmt: skip
        assert {name: counts[0][name] for name in expected} == expected
        assert {name: counts[1][name] for name in expected} == dict.fromkeys(expected, 0)
        await connection.execute("delete from training_data; delete from uploads; delete from removals")
        left = await connection.fetchrow("select * from organization_counts where organization_id = 1")
        assert {name: left[name] for name in expected} == dict.fromkeys(expected, 0) | {"models": 2}
    finally:
        await connection.close()


async def test_secrets_that_an_earlier_release_kept_end_with_their_webhook_and_in_kept_answers(
    empty_database_url: str,
) -> None:
    await migrate(empty_database_url, upto=6)
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("insert into organizations (id, name) values (1, 'o')")
    await connection.execute(
        "insert into webhooks (organization_id, url, secret, disabled_at) values (1, 'a', 'whsec_ended', now()),"
        " (1, 'b', 'whsec_used', null)"
    )
    key = await connection.fetchval(
        "insert into api_keys (organization_id, role, name, sha256, prefix) values (1, 'owner', 'k', sha256('k'), 'k') returning id"
    )
    answers = [
        ("POST", "/api/v3/webhooks", 201, b'{"id":1,"url":"a","secret":"whsec_kept"}'),
        ("POST", "/api/v3/webhooks", 422, b"no json"),
        ("POST", "/api/v3/custom_models", 201, b'{"id":1}'),
    ]
    for n, (method, path, status, answer) in enumerate(answers):
        await connection.execute(
            "insert into idempotency_keys (api_key_id, method, path, key, body_sha256, status, answer)"
            " values ($1, $2, $3, $4, '', $5, $6)",
            key, method, path, str(n), status, answer,
        )  # fmt: skip
    await migrate(empty_database_url)
    kept = await connection.fetch("select answer from idempotency_keys order by key")
    hooks = await connection.fetch("select secret from webhooks order by id")
    await connection.close()
    assert json.loads(kept[0]["answer"]) == {"id": 1, "url": "a", "secret": None}
    assert [row["answer"] for row in kept[1:]] == [answers[1][3], answers[2][3]]
    assert [row["secret"] for row in hooks] == [None, "whsec_used"]
