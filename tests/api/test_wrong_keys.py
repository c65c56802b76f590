"""Wrong keys are limited by their sender's address before the database is asked, and never cost a valid key anything."""

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.api import keys
from worker.api.addresses import Proxies, client_network
from worker.api.buckets import Buckets
from worker.api.networks import parse_networks
from worker.api.settings import ApiSettings


@pytest.fixture
def look_ups(monkeypatch):
    """Every look-up of a key in the database."""
    from worker.store.api_keys import KeyStore  # noqa: PLC0415

    seen = []
    original = KeyStore.by_digest

    async def counted(self, sha256):
        seen.append(sha256)
        return await original(self, sha256)

    monkeypatch.setattr(KeyStore, "by_digest", counted)
    return seen


async def listening(live):
    async with asyncio.timeout(10):
        while not live.app.state.keyring._valid:
            await asyncio.sleep(0.01)


async def wrong(live, count, name="stk_wrong"):
    http = live.client(None)
    return [await http.get("/caller", headers={"Authorization": f"Bearer {name}_{number}"}) for number in range(count)]


class TestSlowRefill:
    @pytest.fixture
    def api_settings(self):
        return {"api_wrong_keys_per_s": 0.001, "api_wrong_keys_burst": 10}

    async def test_after_some_wrong_keys_an_address_is_refused_without_a_look_at_the_database(self, live, look_ups):
        answers = await wrong(live, 100)
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 90
        assert len(look_ups) == 10
        assert answers[-1].json()["code"] == "rate_limited"
        assert int(answers[-1].headers["retry-after"]) >= 1
        value = live.app.state.metrics.registry.get_sample_value
        assert value("training_api_rate_limited_total", {"limit": "address"}) == 90

    async def test_a_valid_key_from_the_attackers_address_always_comes_in(self, live, customer, stranger):
        await listening(live)
        assert (await customer.http.get("/caller")).status_code == 200
        await wrong(live, 50)
        assert (await customer.http.get("/caller")).status_code == 200, "remembered"
        assert (await stranger.http.get("/caller")).status_code == 200, "its first request"
        made_meanwhile = live.client((await live.key(customer.id)).secret)
        async with asyncio.timeout(10):  # the database tells of a new key, which takes a moment
            while (await made_meanwhile.get("/caller")).status_code != 200:
                await asyncio.sleep(0.01)

    async def test_a_revoked_key_is_limited_like_any_wrong_one(self, live, customer, look_ups):
        await listening(live)
        await keys.revoke(live.keys, customer.key.id)
        async with asyncio.timeout(10):
            while (await customer.http.get("/caller")).status_code == 200:
                await asyncio.sleep(0.01)
        look_ups.clear()
        statuses = {(await customer.http.get("/caller")).status_code for _ in range(60)}
        assert 429 in statuses
        assert len(look_ups) <= 2

    async def test_one_address_does_not_use_up_anothers_patience(self, live):
        await wrong(live, 30)
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(base_url=live.url, transport=transport) as other:
            answer = await other.get("/api/v3/caller", headers={"Authorization": "Bearer stk_other"})
        assert answer.status_code == 401


async def test_the_same_wrong_key_is_looked_up_once_in_a_while_only(live, look_ups):
    await listening_at_all(live)
    http = live.client("stk_wrong")
    assert {(await http.get("/caller")).status_code for _ in range(20)} == {401}
    assert len(look_ups) == 1


async def listening_at_all(live):
    async with asyncio.timeout(10):
        while not live.app.state.keyring.listening:
            await asyncio.sleep(0.01)


class TestProxies:
    @pytest.fixture
    def api_settings(self):
        return {
            "api_wrong_keys_per_s": 0.001,
            "api_wrong_keys_burst": 3,
            "api_trusted_proxies": "127.0.0.1, 10.0.0.0/8",
        }

    async def test_clients_behind_a_trusted_proxy_are_limited_one_by_one(self, live):
        http = live.client("stk_wrong")
        for client in ("203.0.113.5", "203.0.113.6"):
            headers = {"X-Forwarded-For": f"198.51.100.1, {client}, 10.1.1.1"}
            answers = [(await http.get("/caller", headers=headers)).status_code for _ in range(4)]
            assert answers == [401, 401, 401, 429], "what the client itself wrote into the header does not count"

    async def test_a_request_id_of_a_trusted_proxy_goes_through(self, live, customer):
        answer = await customer.http.get(
            "/caller", headers={"X-Request-Id": "abc-123", "X-Forwarded-For": "203.0.113.5"}
        )
        assert answer.headers["x-request-id"] == "abc-123"
        for forged in ("a b", "x" * 65, "é"):
            answer = await customer.http.get("/caller", headers={"X-Request-Id": forged.encode()})
            assert answer.headers["x-request-id"] != forged


async def test_nobodys_word_on_addresses_and_ids_is_believed_by_default(live, customer):
    answer = await customer.http.post(
        "/custom_models", content=b"", headers={"X-Request-Id": "forged", "X-Forwarded-For": "203.0.113.5"}
    )
    assert answer.headers["x-request-id"] != "forged"
    await live.app.state.api.trail.flush()
    await customer.http.post(
        "/custom_models",
        json={"name": "x", "language_id": live.base_id, "organization_id": customer.id},
        headers={"X-Forwarded-For": "203.0.113.5"},
    )
    row = await live.database.fetch_row("select address from audit_log where action = 'create_model'")
    assert row["address"] == "127.0.0.1"


def test_trusted_proxies_that_are_no_networks_are_named():
    with pytest.raises(ValueError, match="nginx"):
        ApiSettings(api_trusted_proxies="10.0.0.0/8, nginx")
    with pytest.raises(ValueError, match="api_trusted_proxies"):
        ApiSettings(api_trusted_proxies="*")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", "203.0.113.5", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5:4711", "203.0.113.5"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "2001:db8::1%eth0", "2001:db8::1"),
        ("::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5, unknown", "10.0.0.1"),
        ("10.0.0.1", "x" * 10_000, "10.0.0.1"),
        ("10.0.0.1", ",".join(["10.0.0.9"] * 1_000), "10.0.0.9"),
    ],
)
def test_the_client_is_the_last_one_that_a_trusted_proxy_spoke_to(peer, forwarded, client):
    assert Proxies(parse_networks("10.0.0.0/8")).client(peer, [forwarded.encode()]) == client


@given(st.text(max_size=100), st.lists(st.binary(max_size=200), max_size=5))
def test_no_header_makes_the_address_anything_but_an_address(peer, forwarded):
    client = Proxies(parse_networks("0.0.0.0/0, ::/0")).client("10.0.0.1", forwarded)
    assert client_network(client) != "unknown"
    client_network(peer)


def test_addresses_of_one_ipv6_subscriber_count_as_one():
    assert client_network("2001:db8:1:2::1") == client_network("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert client_network("2001:db8:1:3::1") != client_network("2001:db8:1:2::1")
    assert client_network("::ffff:192.0.2.1") == "192.0.2.1"


def test_many_addresses_fill_bounded_memory_and_free_nobody_from_their_bucket():
    now = [0.0]
    buckets = Buckets(1, 10, lambda: now[0], most=1_000)
    for _ in range(10):
        assert buckets.take("guesser") == 0
    assert buckets.take("guesser") > 0
    for number in range(100_000):
        buckets.take(number)
    assert len(buckets) <= 1_001
    assert buckets.take("guesser") > 0, "not forgotten"
    passed = sum(buckets.take(f"late {number}") == 0 for number in range(10_000))
    assert passed == 0, "new ones share one bucket, which is empty"
    now[0] = 60.0
    assert buckets.take("another") == 0, "full buckets go first"
    assert len(buckets) <= 1_001


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 3)), max_size=200))
def test_whatever_the_order_nobody_gets_more_than_a_burst_and_its_rate(steps):
    now = [0.0]
    buckets = Buckets(2.0, 5, lambda: now[0], most=2)
    passed = dict.fromkeys(range(4), 0)
    for pause, owner in steps:
        now[0] += pause
        passed[owner] += buckets.take(owner) == 0
    for count in passed.values():
        assert count <= 2 * (5 + 2.0 * now[0])  # its own bucket, and at worst the shared one
