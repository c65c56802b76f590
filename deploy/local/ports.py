"""Free ports on 127.0.0.1 for private services."""

from __future__ import annotations

import json
import random
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOPBACK = "127.0.0.1"
# Below the range from which Linux takes ports for outgoing connections (32768 up): a service that was killed
# finds its port still free when it comes back.
LOWEST, HIGHEST = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """Pick `count` different ports that nobody listens on at this moment."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randint(LOWEST, HIGHEST)
        if port in found:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
    return found


def kept_ports(file: Path, names: Sequence[str]) -> dict[str, int]:
    """The ports a service of this folder had before, or new free ones, kept for its next start."""
    if file.exists():
        kept: dict[str, int] = json.loads(file.read_text())
        if set(kept) == set(names):
            return kept
    chosen = dict(zip(names, free_ports(len(names)), strict=True))
    file.write_text(json.dumps(chosen))
    return chosen


def answers(port: int) -> bool:
    """Whether somebody accepts connections on this port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
