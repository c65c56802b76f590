"""Who is at the other end: the client behind trusted proxies, and the network that counts as one client."""

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from worker.api.networks import Address, Network

UNKNOWN: Final = "unknown"
_LONGEST: Final = 60
"""Characters that an address with a zone and a port has at most."""
_HOPS: Final = 20
_CLIENT_PREFIX_BITS: Final = 64
"""What one subscriber gets of IPv6 at least: addresses in it are one client's."""


def _parsed(text: str) -> Address | None:
    """An address as proxies write it: with or without a port, IPv6 with or without brackets and a zone."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class Proxies:
    """Reverse proxies whose word about the client is believed.

    Args:
        trusted: their networks; none: nobody's word is.
    """

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self.trusts = lru_cache(maxsize=4096)(self._trusts)
        """Is this address one of them?"""

    def _trusts(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._trusted)

    def client(self, peer: str, forwarded_for: Iterable[bytes]) -> str:
        """The address of the client.

        Each proxy appends who spoke to it, so the list is read from its end, as far as trusted proxies wrote it: what a
        client wrote itself stands before that and is not believed.

        Args:
            peer: the other end of the connection.
            forwarded_for: values of the headers ``X-Forwarded-For``, in order.
        """
        if not self._trusted or not self.trusts(peer):
            return peer
        hops = b",".join(forwarded_for).decode("latin-1").rsplit(",", _HOPS)[-_HOPS:]
        client = peer
        for hop in reversed(hops):
            parsed = _parsed(hop)
            if parsed is None:
                break
            client = str(parsed)
            if not self.trusts(client):
                break
        return client


@lru_cache(maxsize=4096)
def client_network(address: str) -> str:
    """What is limited as one client: an IPv4 address, or 64 bits of an IPv6 address."""
    parsed = _parsed(address)
    if parsed is None:
        return UNKNOWN
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.ip_network((parsed, _CLIENT_PREFIX_BITS), strict=False))
