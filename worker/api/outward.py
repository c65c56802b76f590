"""One POST to an address somebody else chose: resolved once, checked, and connected to exactly there.

A host name that first resolves to a public address and then to an internal one gains nothing: the connection goes to
the address that was checked. Redirects are not followed, little is read, and nothing waits for long.

Names are resolved by c-ares, which waits for name servers without a thread. The system's resolver blocks one for as
long as it waits, and the event loop has four of them for all: names that never answer would stop whoever needs one,
the database's pool included.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiodns

from worker.api.networks import Network, Proxy, is_special, is_within

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 10.0
_TRY_S: Final = 2.0
"""How long c-ares waits for one name server; it asks each twice."""
_LONGEST_HEAD: Final = 16 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?![0-9])")
PORTS: Final = frozenset({80, 443, 8080, 8443})
"""Where webhooks may go; the NetworkPolicy in deploy/kubernetes lets the same ones through."""


class AddressRefused(Exception):  # noqa: N818 - a verdict
    """Not an address that events may go to; the text says why."""


class NotDelivered(Exception):  # noqa: N818 - a state of the world
    """Nobody there, or no HTTP spoken; the text says which."""


@dataclass(frozen=True)
class Target:
    """Where a POST goes, taken apart."""

    tls: bool
    host: str
    port: int
    path: str


def parse(url: str, *, private: bool) -> Target:
    """An address, when events may go to such a one as far as its text tells.

    Args:
        url: as the customer wrote it.
        private: http, any port and internal addresses are allowed: for tests and closed networks.

    Raises:
        AddressRefused: it is none.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise AddressRefused("Write the address in ASCII, without spaces.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused("This is no address.") from error
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise AddressRefused("The address begins with https://.")
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise AddressRefused("The address names a host and no user.")
    port = port or (443 if parts.scheme == "https" else 80)
    if not private and port not in PORTS:
        raise AddressRefused(f"The port is one of: {', '.join(map(str, sorted(PORTS)))}.")
    with contextlib.suppress(ValueError):
        check_address(parts.hostname, private=private)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", parts.hostname, port, path)


def check_address(text: str, *, private: bool, refused: Sequence[Network] = ()) -> None:
    """Refuse an IP address that events may not go to, in whatever dress.

    Args:
        text: the address.
        private: internal ones are allowed.
        refused: networks that are not, whatever else holds.

    Raises:
        AddressRefused: it is internal, or in one of the refused networks.
        ValueError: it is no IP address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if not private and is_special(address):
        raise AddressRefused("The address is an internal one.")
    if is_within(address, refused):
        raise AddressRefused("Nothing is sent to this address from here.")


class Outward:
    """The way to addresses that somebody else chose.

    Args:
        private: http, any port and internal addresses are allowed: for tests and closed networks.
        refused: networks that nothing goes to, whatever else holds.
        proxy: connections are opened by it, to the address that was checked here.
        nameservers: ``address`` or ``address:port``; none: the system's.
    """

    def __init__(
        self,
        *,
        private: bool,
        refused: Sequence[Network] = (),
        proxy: Proxy | None = None,
        nameservers: Sequence[str] = (),
    ) -> None:
        self._private = private
        self._refused = tuple(refused)
        self._proxy = proxy
        self._nameservers = tuple(nameservers)
        self._resolver: aiodns.DNSResolver | None = None

    async def aclose(self) -> None:
        """Ask no name server any more; look-ups under way end as cancelled."""
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None

    def parse(self, url: str) -> Target:
        """An address, when events may go to such a one as far as its text tells.

        Raises:
            AddressRefused: it is none.
        """
        return parse(url, private=self._private)

    async def resolve(self, target: Target) -> str:
        """The IP address to connect to; every address the name has must be allowed.

        Raises:
            AddressRefused: one of them is not.
            NotDelivered: the name has none, or no name server said so in time.
        """
        addresses = await self._addresses(target.host)
        for address in addresses:
            check_address(address, private=self._private, refused=self._refused)
        return addresses[0]

    async def _addresses(self, host: str) -> list[str]:
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        if self._resolver is None:  # here, since it belongs to the event loop that runs now
            self._resolver = aiodns.DNSResolver(nameservers=self._nameservers or None, timeout=_TRY_S, tries=2)
        try:
            async with asyncio.timeout(_CONNECT_S):
                found = await self._resolver.getaddrinfo(host, type=socket.SOCK_STREAM)
        except (aiodns.error.DNSError, OSError, TimeoutError, ValueError) as error:
            raise NotDelivered("the host name has no address") from error
        addresses = [_text(node.addr[0]) for node in found.nodes]
        if not addresses:
            raise NotDelivered("the host name has no address")
        return addresses

    async def post(self, target: Target, headers: dict[str, str], body: bytes) -> int:
        """Send one POST; the status of the answer.

        Raises:
            AddressRefused: the name resolves to an address that nothing may go to.
            NotDelivered: nobody there, too slow, or no HTTP.
        """
        address = await self.resolve(target)
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await self._connection(target, address)
        except (OSError, TimeoutError, ValueError, EOFError) as error:
            raise NotDelivered(f"no connection: {type(error).__name__}") from error
        try:
            async with asyncio.timeout(_ANSWER_S):
                writer.write(_head(target, headers, body) + body)
                await writer.drain()
                return _status(await reader.readline())
        except (OSError, TimeoutError, ValueError, EOFError) as error:
            raise NotDelivered(f"no answer: {type(error).__name__}") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    await writer.wait_closed()

    async def _connection(self, target: Target, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context() if target.tls else None
        name = target.host if context else None
        if self._proxy is None:
            return await asyncio.open_connection(
                address, target.port, ssl=context, server_hostname=name, limit=_LONGEST_HEAD
            )
        reader, writer = await asyncio.open_connection(self._proxy.host, self._proxy.port, limit=_LONGEST_HEAD)
        transport = writer.transport
        try:
            await _tunnel(reader, writer, self._proxy, f"[{address}]" if ":" in address else address, target.port)
            if context:
                await writer.start_tls(context, server_hostname=name)
        except BaseException:
            transport.abort()  # closing would wait for a peer whose TLS has failed
            raise
        return reader, writer


async def _tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, proxy: Proxy, address: str, port: int
) -> None:
    """Have the proxy open a connection.

    Raises:
        ValueError: it does not.
        EOFError: it hung up.
    """
    lines = [f"CONNECT {address}:{port} HTTP/1.1", f"Host: {address}:{port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise ValueError("the proxy's answer has no end") from error
    status = _status(head)
    if not 200 <= status < 300:  # noqa: PLR2004 - what HTTP calls success
        raise ConnectionRefusedError(f"the proxy answered {status}")


def _text(address: str | bytes) -> str:
    return address.decode("ascii") if isinstance(address, bytes) else address


def _head(target: Target, headers: dict[str, str], body: bytes) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    plain = target.port == (443 if target.tls else 80)
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {host}" if plain else f"Host: {host}:{target.port}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _status(line: bytes) -> int:
    """The status in a status line.

    Raises:
        ValueError: it is none.
    """
    found = _STATUS_LINE.match(line)
    if found is None:
        raise ValueError("no HTTP")
    return int(found[1])
