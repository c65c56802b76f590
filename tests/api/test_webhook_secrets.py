"""The secrets of webhooks: encrypted at rest with a key the database never sees, and gone with their webhook."""

import asyncio
import base64

import pytest

from tests.api.conftest import ENCRYPTION_KEY
from tests.api.test_webhooks import Receiver, assert_signed
from worker.encryption import Encryption, parse_keys
from worker.store.webhooks import PURPOSE, WebhookStore

NEWER_KEY = base64.b64encode(b"newer key, newer key, newer key!").decode()
URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def api_settings():
    return {"api_webhook_private": True}


async def whole_database(live):
    """Every value of every column of every table, as text: what a backup holds."""
    found = []
    tables = await live.database.fetch(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    )
    for table in tables:
        found += [
            str(row["row"]) for row in await live.database.fetch(f"select t::text as row from {table['relname']} t")
        ]
        for row in await live.database.fetch(f"select * from {table['relname']}"):
            found += [value.decode("latin-1") for value in row.values() if isinstance(value, bytes)]
    return "\n".join(found)


async def made(customer, **headers):
    answer = await customer.http.post("/webhooks", json={"url": URL}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_no_table_holds_a_secret_in_clear_even_where_the_request_may_be_repeated(live, customer):
    secret = (await made(customer, **{"Idempotency-Key": "k"}))["secret"]
    everything = await whole_database(live)
    assert secret not in everything
    assert base64.b64decode(secret.removeprefix("whsec_")).hex() not in everything
    assert "127.0.0.1:9/hook" in everything


async def test_a_repeated_request_makes_no_second_webhook_and_shows_no_secret_again(live, customer):
    first = await made(customer, **{"Idempotency-Key": "k"})
    again = await made(customer, **{"Idempotency-Key": "k"})
    assert first["secret"].startswith("whsec_")
    assert again == first | {"secret": None}
    assert (await live.database.fetch_row("select count(*) as n from webhooks"))["n"] == 1


async def test_a_deleted_webhook_leaves_no_secret(live, customer):
    hook = await made(customer)
    await customer.http.delete(f"/webhooks/{hook['id']}")
    row = await live.database.fetch_row(
        "select secret, sealed_secret, disabled_at from webhooks where id = $1", hook["id"]
    )
    assert (row["secret"], row["sealed_secret"]) == (None, None)
    assert row["disabled_at"] is not None


async def test_a_release_that_only_disables_forgets_the_secret_too(live, customer):
    """Processes of the release before run beside this one while it rolls out."""
    await live.database.execute(
        "insert into webhooks (organization_id, url, secret) values ($1, 'u', 'whsec_a')", customer.id
    )
    await live.database.execute("update webhooks set disabled_at = now()")
    row = await live.database.fetch_row("select secret, sealed_secret from webhooks")
    assert tuple(row) == (None, None)


async def test_what_an_earlier_release_wrote_in_clear_is_sent_signed_and_encrypted_soon(live, customer):
    receiver = Receiver()
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
    async with await asyncio.start_server(receiver, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        row = await live.database.fetch_row(
            "insert into webhooks (organization_id, url, secret) values ($1, $2, $3) returning id",
            customer.id,
            url,
            secret,
        )
        hooks = WebhookStore(live.database)
        encryption = Encryption(parse_keys(ENCRYPTION_KEY), PURPOSE)
        for done in (0, 1):
            await customer.http.post(f"/webhooks/{row['id']}/test")
            _, headers, body = await asyncio.wait_for(receiver.got.get(), 20)
            assert_signed(secret, headers, body)
            if not done:
                assert await hooks.encrypt_all(encryption) == 1
                assert secret not in await whole_database(live)
    assert await hooks.encrypt_all(encryption) == 0


async def test_a_change_of_keys_encrypts_every_secret_anew_and_needs_the_old_key_no_more(live, customer):
    for _ in range(3):
        await made(customer)
    hooks = WebhookStore(live.database)
    newest = Encryption(parse_keys(NEWER_KEY), PURPOSE)
    assert await hooks.of_unknown_keys(newest) == 3
    assert await hooks.encrypt_all(newest) == 0  # the old key is missing: nothing is lost, nothing is changed
    assert await hooks.encrypt_all(Encryption(parse_keys(f"{NEWER_KEY} {ENCRYPTION_KEY}"), PURPOSE)) == 3
    assert await hooks.of_unknown_keys(newest) == 0
    assert await hooks.encrypt_all(newest) == 0


class TestWithoutAKey:
    @pytest.fixture
    def api_settings(self):
        return {"api_webhook_private": True, "api_encryption_keys": ""}

    async def test_no_webhook_can_be_made_and_the_answer_says_what_is_missing(self, customer):
        answer = await customer.http.post("/webhooks", json={"url": URL})
        assert answer.status_code == 503
        assert "WORKER_API_ENCRYPTION_KEYS" in answer.json()["detail"]

    async def test_a_delivery_that_cannot_be_signed_is_kept_for_later(self, live, customer):
        row = await live.database.fetch_row(
            "insert into webhooks (organization_id, url, sealed_secret) values ($1, $2, $3) returning id",
            customer.id, URL, Encryption(parse_keys(NEWER_KEY), PURPOSE).encrypt("whsec_", "x"),
        )  # fmt: skip
        await customer.http.post(f"/webhooks/{row['id']}/test")
        async with asyncio.timeout(20):
            while True:
                log = (await customer.http.get(f"/webhooks/{row['id']}/deliveries")).json()["result"][0]
                if log["error"]:
                    break
                await asyncio.sleep(0.02)
        assert (log["status"], log["error"]) == ("waiting", "the secret cannot be decrypted here; the operator is told")
