"""Networks that nobody outside may make this server connect to, of both families.

The registries of special-purpose addresses at IANA (RFC 6890 and what was added since; looked through in November 2026)
are written down here and not taken from the interpreter, whose tables differ between versions. Clouds put services
that believe whoever reaches them at public addresses, too: those are here by their makers' documentation. What else
an operator does not want to be reached comes on top, by a setting.
"""

import base64
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SPECIAL_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers; Alibaba's metadata 100.100.100.200, many clusters' pods
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and most clouds' metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata 192.0.0.192
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # automatic multicast tunnels
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "168.63.129.16/32",  # Azure's host agent, the same public address on every host
            "161.26.0.0/16",  # IBM Cloud's services for its own hosts
            "166.8.0.0/14",  # the same
        ),
    )
)
GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")
"""All that is routed publicly; what is outside is special without a list: mapped, local, unique local, multicast …"""
SPECIAL_6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, AS112, drones
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which carries an IPv4 address
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
LARGEST_PORT: Final = 65_535
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""The well-known prefix: how hosts without IPv4 reach it. Its last four bytes are the IPv4 address."""
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""The third quarter of an address that tunnels to the IPv4 address in the fourth."""


@dataclass(frozen=True)
class Proxy:
    """The way out: a proxy that opens connections by CONNECT.

    Attributes:
        authorization: value of the header Proxy-Authorization; empty: none.
    """

    host: str
    port: int
    authorization: str


def parse_proxy(url: str) -> Proxy | None:
    """The proxy of a setting, ``http://[user:password@]host:port``; None for an empty text.

    Raises:
        ValueError: it is none; the text does not show it, as it may hold a password.
    """
    if not url.strip():
        return None
    parts = urlsplit(url.strip())
    if parts.scheme != "http" or not parts.hostname or parts.port is None or parts.path not in {"", "/"}:
        raise ValueError("not a proxy such as http://proxy.example:3128 or http://user:password@proxy.example:3128")
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    authorization = "" if parts.username is None else "Basic " + base64.b64encode(user.encode()).decode()
    return Proxy(parts.hostname, parts.port, authorization)


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks of a setting, separated by commas or white space; an address alone is a network of one.

    Raises:
        ValueError: one is none; says which.
    """
    found = []
    for word in text.replace(",", " ").split():
        try:
            found.append(ipaddress.ip_network(word))
        except ValueError as error:
            raise ValueError(f"not a network such as 192.0.2.0/24 or 2001:db8::/32: {error}") from error
    return tuple(found)


def parse_nameservers(text: str) -> tuple[str, ...]:
    """The name servers of a setting, as c-ares takes them: ``192.0.2.1``, ``192.0.2.1:53`` or ``[2001:db8::1]:53``.

    Raises:
        ValueError: one is none; says which.
    """
    found = text.replace(",", " ").split()
    for word in found:
        host, _, port = word.rpartition(":") if word.startswith("[") or word.count(":") == 1 else (word, "", "53")
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError as error:
            raise ValueError(f"not the IP address of a name server: {error}") from error
        if not port.isdecimal() or not 0 < int(port) <= LARGEST_PORT:
            raise ValueError(f"not the port of a name server: {port!r}")
    return tuple(found)


def is_special(address: Address) -> bool:
    """Whether an address is none of a public host, in whatever dress."""
    if isinstance(address, ipaddress.IPv4Address):
        return not address.is_global or any(address in network for network in SPECIAL_4)
    if address.ipv4_mapped is not None or address in _NAT64:
        return is_special(_last_bytes(address))
    if address not in GLOBAL_6 or any(address in network for network in SPECIAL_6):
        return True
    tunnelled = int(address) >> 32 & 0xFFFF_FFFF in _ISATAP
    return not address.is_global or (tunnelled and is_special(_last_bytes(address)))


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address, or the IPv4 address that it carries, is in one of these networks."""
    carried = [address]
    if isinstance(address, ipaddress.IPv6Address):
        carried.append(_last_bytes(address))
    return any(one in network for network in networks for one in carried if one.version == network.version)


def _last_bytes(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
