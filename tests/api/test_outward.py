"""Where webhooks go: never inside, whatever the address is dressed as, and nobody's names hold up anybody else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.api.name_server import name_server
from tests.api.test_webhooks import Receiver
from worker.api import outward
from worker.api.networks import (
    GLOBAL_6,
    SPECIAL_4,
    SPECIAL_6,
    is_special,
    parse_nameservers,
    parse_networks,
    parse_proxy,
)
from worker.api.outward import AddressRefused, NotDelivered, Outward
from worker.api.settings import ApiSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.conftest import Customer
    from tests.api.name_server import NameServer

# One inside each network of IANA's registries of special-purpose addresses, and what clouds put at public ones.
SPECIAL = """
0.0.0.1 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.254
192.0.0.1 192.0.0.8 192.0.0.9 192.0.0.170 192.0.0.192 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.1.1 192.175.48.1
198.18.0.1 198.19.255.254 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16 161.26.0.10
166.8.0.1 166.9.14.1 166.11.255.254
:: ::1 ::127.0.0.1 ::93.184.216.34 ::ffff:10.0.0.1 ::ffff:168.63.129.16 ::ffff:0:10.0.0.1 ::ffff:0:93.184.216.34
64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::168.63.129.16 64:ff9b:1::1 100::1 100:0:0:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
2001:1::1 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:db8::1 2002:7f00:1:: 2002:5db8:d822::1 2620:4f:8000::1
3fff::1 5f00::1 4000::1 fc00::1 fd00:ec2::254 fd20:ce::254 fd00:42::42 fe80::1 fe80::a9fe:a9fe fec0::1 ff02::1
2600:1f18::5efe:10.0.0.1 2600:1f18::200:5efe:127.0.0.1
""".split()  # noqa: SIM905 - readable as it is
PUBLIC = """
1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 168.63.129.15 168.63.129.17 192.0.1.1 198.17.0.1
198.20.0.1 223.255.255.254 2606:4700:4700::1111 2001:4860:4860::8888 2a00:1450:4001:800::200e 2001:200::1
::ffff:93.184.216.34 64:ff9b::93.184.216.34
""".split()  # noqa: SIM905 - readable as it is


@pytest.mark.parametrize("address", SPECIAL)
def test_a_special_address_is_refused(address):
    with pytest.raises(AddressRefused):
        outward.check_address(address, private=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not(address):
    outward.check_address(address, private=False)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_in_each_dress(address):
    number = int(address)
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        dressed = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + number)
        assert is_special(dressed) == is_special(address)
    tunnelled = ipaddress.IPv6Address(int(ipaddress.IPv6Address("2600:1f18::5efe:0:0")) + number)
    assert is_special(tunnelled) >= is_special(address)


@given(st.ip_addresses())
def test_what_the_interpreter_calls_local_is_special_in_any_case(address):
    # Mapped and translated ones are judged by the address they carry.
    if address.version == 4 or address in GLOBAL_6:
        assert is_special(address) >= (not address.is_global)


def test_operators_networks_are_refused_even_where_private_ones_are_allowed():
    refused = parse_networks("8.8.8.0/24, 2606:4700::/32 127.0.0.53")
    for address in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::1", "127.0.0.53"):
        for private in (True, False):
            with pytest.raises(AddressRefused):
                outward.check_address(address, private=private, refused=refused)
    outward.check_address("127.0.0.1", private=True, refused=refused)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("api_webhook_refused_networks", "10.0.0.1/8"),
        ("api_webhook_refused_networks", "intranet"),
        ("api_webhook_nameservers", "dns.example"),
        ("api_webhook_nameservers", "192.0.2.1:x"),
        ("api_webhook_nameservers", "192.0.2.1:70000"),
        ("api_webhook_proxy", "proxy.example:3128"),
        ("api_webhook_proxy", "https://me:hunter2@proxy.example:3128"),
        ("api_webhook_proxy", "http://me:hunter2@proxy.example"),
    ],
)
def test_a_setting_that_does_not_fit_stops_the_start_and_shows_no_password(setting, value):
    with pytest.raises(ValueError, match=setting) as refused:
        ApiSettings(**{setting: value})
    assert "hunter2" not in str(refused.value)


def test_settings_are_read_as_lists():
    assert parse_nameservers("192.0.2.1, [2001:db8::1]:53 192.0.2.1:5353 2001:db8::2") == (
        "192.0.2.1", "[2001:db8::1]:53", "192.0.2.1:5353", "2001:db8::2",
    )  # fmt: skip
    assert parse_proxy("") is None
    assert (
        parse_proxy("http://me:p%40ss@proxy.example:3128").authorization
        == "Basic " + base64.b64encode(b"me:p@ss").decode()
    )


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    async with name_server(
        {"public.example": ["93.184.216.34"], "mixed.example": ["93.184.216.34", "10.1.2.3"]}
    ) as made:
        yield made


async def test_a_name_that_leads_inside_with_one_of_its_addresses_gains_nothing(names):
    """The answer of the resolver is checked at every delivery, and the connection goes to what was checked."""
    way = Outward(private=False, nameservers=[f"127.0.0.1:{names.port}"])
    assert await way.resolve(way.parse("https://public.example/")) == "93.184.216.34"
    with pytest.raises(AddressRefused):
        await way.post(way.parse("https://mixed.example/"), {}, b"{}")
    with pytest.raises(NotDelivered):
        await way.resolve(way.parse("https://unknown.example/"))
    names.known["public.example"] = ["127.0.0.1"]
    with pytest.raises(AddressRefused):
        await way.post(way.parse("https://public.example/"), {}, b"{}")
    await way.aclose()


async def test_names_that_never_answer_take_no_thread_of_the_event_loop(names, monkeypatch):
    way = Outward(private=True, nameservers=[f"127.0.0.1:{names.port}"])
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", None)  # whoever used it would fail
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", None)
    lost = [asyncio.create_task(way.resolve(way.parse(f"https://n{n}.silent.example/"))) for n in range(50)]
    while len({name for name in names.asked if name.endswith("silent.example")}) < 50:
        await asyncio.sleep(0.01)
    assert await way.resolve(way.parse("http://public.example/")) == "93.184.216.34"
    assert not any(task.done() for task in lost)
    await way.aclose()
    assert all(
        isinstance(one, NotDelivered | asyncio.CancelledError)
        for one in await asyncio.gather(*lost, return_exceptions=True)
    )


class TestOneCustomersNames:
    @pytest.fixture
    def api_settings(self, names: NameServer) -> dict[str, object]:
        return {"api_webhook_private": True, "api_webhook_nameservers": f"127.0.0.1:{names.port}"}

    async def test_names_that_never_answer_hold_up_no_other_organization(
        self, names: NameServer, customer: Customer, stranger: Customer
    ):
        """Registrations of the hostile one are still under way when the other's is answered, and its event delivered."""
        hostile = [
            asyncio.create_task(stranger.http.post("/webhooks", json={"url": f"https://n{n}.silent.example/"}))
            for n in range(8)
        ]
        while not any(name.endswith("silent.example") for name in names.asked):
            await asyncio.sleep(0.01)
        receiver = Receiver()
        async with await asyncio.start_server(receiver, "127.0.0.1", 0) as server:
            names.known["customer.example"] = ["127.0.0.1"]
            url = f"http://customer.example:{server.sockets[0].getsockname()[1]}/"
            answer = await customer.http.post("/webhooks", json={"url": url})
            assert answer.status_code == 201, answer.text
            assert not any(task.done() for task in hostile)
            await customer.http.post(f"/webhooks/{answer.json()['id']}/test")
            await asyncio.wait_for(receiver.got.get(), 20)
        for answer in await asyncio.gather(*hostile):
            assert (answer.status_code, answer.json()["detail"]) == (422, "the host name has no address")

    async def test_an_organization_that_registers_without_end_is_slowed_down_alone(
        self, customer: Customer, stranger: Customer
    ):
        answers = [await stranger.http.post("/webhooks", json={"url": "http://unknown.example/"}) for _ in range(40)]
        assert {answer.status_code for answer in answers} == {422, 429}
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert (await customer.http.post("/webhooks", json={"url": "http://public.example/"})).status_code == 201


class Proxy:
    """A proxy that knows CONNECT, and says what it was asked."""

    def __init__(self, status: str = "200 OK") -> None:
        self.asked: list[str] = []
        self.status = status
        self.ended = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()
            self.ended += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        writer.write(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
        if self.status.startswith("200"):
            line = head.split(" ")[1]
            there, back = await asyncio.open_connection(*line.rsplit(":", 1))
            await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(4096):
            writer.write(piece)
    writer.close()


async def test_a_proxy_connects_to_the_address_that_was_checked(names):
    receiver, proxy = Receiver(), Proxy()
    names.known["customer.example"] = ["127.0.0.1"]
    async with (
        await asyncio.start_server(receiver, "127.0.0.1", 0) as server,
        await asyncio.start_server(proxy, "127.0.0.1", 0) as between,
    ):
        port, by = (one.sockets[0].getsockname()[1] for one in (server, between))
        way = Outward(
            private=True, proxy=parse_proxy(f"http://me:word@127.0.0.1:{by}"), nameservers=[f"127.0.0.1:{names.port}"]
        )
        assert await way.post(way.parse(f"http://customer.example:{port}/x"), {}, b"{}") == 200
        assert proxy.asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n")
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:word').decode()}\r\n" in proxy.asked[0]
        line, headers, _ = receiver.got.get_nowait()
        assert (line, headers["Host"]) == ("POST /x HTTP/1.1", f"customer.example:{port}")
        proxy.status = "407 Proxy Authentication Required"
        with pytest.raises(NotDelivered):
            await way.post(way.parse(f"http://customer.example:{port}/x"), {}, b"{}")
        await way.aclose()


def test_the_network_policy_and_the_code_agree_on_networks_and_ports():
    policies = yaml.safe_load_all(Path("deploy/kubernetes/base/network.yaml").read_text(encoding="utf-8"))
    policy = next(one for one in policies if one["metadata"]["name"] == "api")
    [webhooks] = [rule for rule in policy["spec"]["egress"] if any("ipBlock" in to for to in rule["to"])]
    assert {port["port"] for port in webhooks["ports"]} == outward.PORTS
    blocks = {to["ipBlock"]["cidr"]: to["ipBlock"]["except"] for to in webhooks["to"]}
    assert sorted(map(ipaddress.ip_network, blocks["0.0.0.0/0"])) == sorted(SPECIAL_4)
    assert sorted(map(ipaddress.ip_network, blocks[str(GLOBAL_6)])) == sorted(SPECIAL_6)
    assert set(blocks) == {"0.0.0.0/0", str(GLOBAL_6)}


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for a name, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("through_a_proxy", [False, True])
def test_https_is_checked_against_the_name_with_and_without_a_proxy(tmp_path, monkeypatch, loop, through_a_proxy):
    """The API runs on uvloop; the certificate has to be the name's although the connection goes to an address."""
    cert, key = certificate(tmp_path, "customer.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(cert, key)

    async def tried() -> None:
        receiver, proxy = Receiver(), Proxy()
        known = {"customer.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
        async with (
            name_server(known) as names,
            await asyncio.start_server(receiver, "127.0.0.1", 0, ssl=server_side) as server,
            await asyncio.start_server(proxy, "127.0.0.1", 0) as between,
        ):
            port, by = (one.sockets[0].getsockname()[1] for one in (server, between))
            way = Outward(
                private=True,
                proxy=parse_proxy(f"http://127.0.0.1:{by}" if through_a_proxy else ""),
                nameservers=[f"127.0.0.1:{names.port}"],
            )
            assert await way.post(way.parse(f"https://customer.example:{port}/x"), {}, b"{}") == 200
            assert len(proxy.asked) == int(through_a_proxy)
            with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
                await way.post(way.parse(f"https://other.example:{port}/x"), {}, b"{}")
            while proxy.ended < len(proxy.asked):  # a connection left open would hold it
                await asyncio.sleep(0.01)
            await way.aclose()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(tried())
