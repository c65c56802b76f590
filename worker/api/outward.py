"""One POST to an address somebody else chose: resolved once, checked, and connected to exactly there.

A host name that first resolves to a public address and then to an internal one gains nothing: the connection goes to
the address that was checked. Redirects are not followed, little is read, and nothing waits for long.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 10.0
_LONGEST_HEAD: Final = 16 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?![0-9])")
_INTERNAL: Final = tuple(
    # Not all Pythons count these: site-local (old), IPv4 in the last bytes (older), NAT64 inside a network.
    map(ipaddress.IPv6Network, ("fec0::/10", "::/96", "64:ff9b:1::/48"))
)
_PORTS: Final = frozenset({80, 443, 8080, 8443})


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
    if not private and port not in _PORTS:
        raise AddressRefused(f"The port is one of: {', '.join(map(str, sorted(_PORTS)))}.")
    with contextlib.suppress(ValueError):
        check_address(parts.hostname, private=private)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", parts.hostname, port, path)


def check_address(text: str, *, private: bool) -> None:
    """Refuse an internal IP address, in whatever dress.

    Raises:
        AddressRefused: it is internal.
        ValueError: it is no IP address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if not private and isinstance(address, ipaddress.IPv6Address) and any(address in net for net in _INTERNAL):
        raise AddressRefused("The address is an internal one.")
    inner: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner += [found for found in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if found]
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64 carries an IPv4 address in its last bytes
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    for one in inner:
        if not private and (not one.is_global or one.is_multicast):
            raise AddressRefused("The address is an internal one.")


async def resolve(target: Target, *, private: bool) -> str:
    """The IP address to connect to; every address the name has must be allowed.

    Raises:
        AddressRefused: one of them is internal.
        NotDelivered: the name has none.
    """
    try:
        async with asyncio.timeout(_CONNECT_S):
            found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:
        raise NotDelivered("the host name has no address") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        check_address(address, private=private)
    return addresses[0]


async def post(target: Target, headers: dict[str, str], body: bytes, *, private: bool) -> int:
    """Send one POST; the status of the answer.

    Raises:
        AddressRefused: the name resolves to an internal address.
        NotDelivered: nobody there, too slow, or no HTTP.
    """
    address = await resolve(target, private=private)
    context = ssl.create_default_context() if target.tls else None
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(
                address, target.port, ssl=context, server_hostname=target.host if context else None, limit=_LONGEST_HEAD
            )
    except (OSError, TimeoutError) as error:
        raise NotDelivered(f"no connection: {type(error).__name__}") from error
    try:
        async with asyncio.timeout(_ANSWER_S):
            writer.write(_head(target, headers, body) + body)
            await writer.drain()
            return _status(await reader.readline())
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
        raise NotDelivered(f"no answer: {type(error).__name__}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                await writer.wait_closed()


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
