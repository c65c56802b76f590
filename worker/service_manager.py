"""Tells systemd how this process is: started, alive, stopping. Where nobody listens, it tells nobody.

The protocol is a datagram of ``NAME=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names (``man 3 sd_notify``).
"""

import os
import socket
from collections.abc import Mapping

import structlog

_log = structlog.get_logger(__name__)


class ServiceManager:
    """The service manager that started this process, if one wants to be told.

    Args:
        environment: where it says so: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._watched = "WATCHDOG_USEC" in environment and environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._socket = _connected(environment.get("NOTIFY_SOCKET", ""))
        self._heard = True

    def started(self) -> None:
        """Everything is open: what waits for this service may begin."""
        self._tell("READY=1\nSTATUS=working")

    def waiting(self, what: str) -> None:
        """Not started yet, for want of something."""
        self._tell(f"STATUS=waiting for {what}")

    def alive(self) -> None:
        """The event loop turns. Told more often than ``WatchdogSec`` asks, by whoever watches the loop."""
        if self._watched:
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun, and takes its time."""
        self._tell("STOPPING=1\nSTATUS=handing over")

    def _tell(self, state: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(state.encode())
            self._heard = True
        except OSError as error:  # full or gone: the next turn tells again, and its own watchdog watches
            if self._heard:
                _log.warning("service manager not told", state=state, error=str(error))
            self._heard = False


def _connected(address: str) -> socket.socket | None:
    if address[:1] not in ("/", "@"):  # unset, or of a kind that systemd gives to virtual machines only
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    connection.settimeout(0)  # the loop waits for nobody, this one included
    try:
        connection.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        _log.warning("no service manager listens", address=address, error=str(error))
        connection.close()
        return None
    return connection
