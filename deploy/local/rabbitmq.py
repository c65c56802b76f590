"""What every private RabbitMQ has, however it runs: addresses, a login that works, virtual hosts, the HTTP API."""

from __future__ import annotations

import base64
import json
import secrets
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aio_pika

from deploy.local.ports import LOOPBACK, answers, kept_ports
from deploy.local.program import Program, run_blocking, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

USER = "training"
BOOT_S = 90.0
HTTP_S = 10.0
DEFAULT_PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus")


class Broker(ABC):
    """One RabbitMQ on loopback under one folder; starting again there brings back ports, password and data."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[str],
        *,
        plugins: Sequence[str] = DEFAULT_PLUGINS,
        consumer_timeout_s: float | None = None,
    ) -> None:
        self.folder = folder.absolute() / "rabbitmq"
        self.plugins = tuple(plugins)
        self.consumer_timeout_s = consumer_timeout_s
        for part in ("data", "log", "config"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.ports = kept_ports(self.folder / "ports.json", ports)
        self.password = self._kept_secret("password", 0o600)
        self.node = Program("RabbitMQ", self.folder / "log" / "console.log")

    @abstractmethod
    def start(self) -> None:
        """Boot and wait for a real login.

        Raises:
            LocalServiceError: it did not come up; the message holds the end of its log.
        """

    @abstractmethod
    def stop(self) -> None:
        """Clean stop; the data stays."""

    @abstractmethod
    def kill(self) -> None:
        """Send kill -9 to the node."""

    @abstractmethod
    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node (0.6 s); returns what it printed.

        Raises:
            LocalServiceError: it failed; the message is its own.
        """

    def pids(self) -> dict[str, int]:
        """The processes that belong to it, by name."""
        return {"rabbitmq": self.node.pid}

    def amqp_url(self, vhost: str = "/") -> str:
        """The address of a virtual host, with its user and password."""
        return f"amqp://{USER}:{self.password}@{LOOPBACK}:{self.ports['amqp']}/{quote(vhost, safe='')}"

    @property
    def management_url(self) -> str | None:
        """The HTTP API with user and password in it, when its plugin is on."""
        if "rabbitmq_management" not in self.plugins:
            return None
        return f"http://{USER}:{self.password}@{LOOPBACK}:{self.ports['management']}"

    @property
    def prometheus_url(self) -> str | None:
        """The broker's own metrics, when that plugin is on."""
        if "rabbitmq_prometheus" not in self.plugins:
            return None
        return f"http://{LOOPBACK}:{self.ports['prometheus']}/metrics"

    def create_vhost(self, name: str) -> str:
        """Make an empty virtual host (20 ms) and return its address."""
        assert self.management_url
        create_vhost(self.management_url, name)
        return self.amqp_url(name)

    def wait_until_queues_are_on_disk(self) -> None:
        """Wait until the node's list of quorum queues has reached its disk (a second after a declaration).

        A kill -9 before that leaves a single node's new queue without a leader for good: calls on it hang
        (rabbitmq-server#10070). Mend: `rabbitmqctl eval 'ra:trigger_election({NAME, node()}).'`.
        """
        wait_until(self._queues_on_disk, timeout_s=BOOT_S, what="its quorum queues on disk", program=self.node)

    def _queues_on_disk(self) -> bool:
        for registry in (self.folder / "data").rglob("names.dets"):
            known = registry.read_bytes()
            folders = [entry.name for entry in registry.parent.iterdir() if entry.is_dir()]
            if any(name.encode() not in known for name in folders):
                return False
        return True

    # -- for the kinds ----------------------------------------------------------------------------------------
    def _wait_until_ready(self) -> None:
        wait_until(self._logs_in, timeout_s=BOOT_S, what="a login over AMQP", program=self.node)
        if self.management_url:
            wait_until(self._manages, timeout_s=BOOT_S, what="the management API", program=self.node)

    def _kept_secret(self, name: str, mode: int) -> str:
        file = self.folder / name
        if not file.exists():
            file.touch(0o600)
            file.write_text(secrets.token_hex(16))
            file.chmod(mode)
        return file.read_text()

    def _logs_in(self) -> bool:
        async def login() -> None:
            connection = await aio_pika.connect(self.amqp_url(), timeout=5)
            await connection.close()

        if not answers(self.ports["amqp"]):
            return False
        try:
            run_blocking(login)
        except (OSError, TimeoutError, aio_pika.exceptions.AMQPError):
            return False
        return True

    def _manages(self) -> bool:
        assert self.management_url
        try:
            call_management(self.management_url, "GET", "whoami")
        except (OSError, urllib.error.URLError):
            return False
        return True


def call_management(management_url: str, method: str, path: str, body: Any = None) -> Any:
    """Call RabbitMQ's HTTP API; `path` comes after `/api/`, the answer is parsed JSON (None when empty).

    Raises:
        urllib.error.HTTPError: it refused.
    """
    scheme, rest = management_url.split("://", 1)
    credentials, host = rest.rsplit("@", 1)
    request = urllib.request.Request(  # noqa: S310 - an address of our own on loopback
        f"{scheme}://{host}/api/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(credentials.encode()).decode(),
            "Content-Type": "application/json",
        },
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no part in loopback
    with opener.open(request, timeout=HTTP_S) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def create_vhost(management_url: str, name: str) -> None:
    """Make an empty virtual host that the management user may use."""
    call_management(management_url, "PUT", f"vhosts/{quote(name, safe='')}", {})
    user = management_url.split("://", 1)[1].split(":", 1)[0]
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    call_management(management_url, "PUT", f"permissions/{quote(name, safe='')}/{user}", everything)


def delete_vhost(management_url: str, name: str) -> None:
    """Remove a virtual host with everything in it; its clients are disconnected."""
    call_management(management_url, "DELETE", f"vhosts/{quote(name, safe='')}")
