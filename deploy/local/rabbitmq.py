"""A private RabbitMQ node on loopback, without root: 3.10 (Debian 12) to 4.x."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aio_pika

from deploy.local.ports import LOOPBACK, answers, kept_ports
from deploy.local.program import LocalServiceError, Program, run_blocking, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

USER = "training"
BOOT_S = 90.0
HTTP_S = 10.0
PORTS = ("amqp", "distribution", "epmd", "tools", "tools_last", "management", "prometheus")
DEFAULT_PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus")


class RabbitMQ:
    """One node with its own Erlang port mapper, cookie, password, data and ports, all under one folder.

    Starting again in the same folder brings back the same ports, password and data.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        *,
        plugins: Sequence[str] = DEFAULT_PLUGINS,
        consumer_timeout_s: float | None = None,
    ) -> None:
        self.program = program
        self.folder = folder.absolute() / "rabbitmq"
        self.plugins = tuple(plugins)
        self.consumer_timeout_s = consumer_timeout_s
        for part in ("home", "data", "log", "config"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.ports = kept_ports(self.folder / "ports.json", PORTS)
        self.password = self._kept_secret("password", 0o600)
        self._kept_secret("home/.erlang.cookie", 0o400)
        self.epmd = Program("epmd", self.folder / "log" / "epmd.log")
        self.node = Program("RabbitMQ", self.folder / "log" / "console.log")

    # -- addresses ------------------------------------------------------------------------------------------
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

    # -- life -----------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Boot and wait for a real login (4 to 9 s).

        Raises:
            LocalServiceError: it did not come up; the message holds the end of its log.
        """
        self._write_config()
        environment = self._environment()
        if not self.epmd.running:
            epmd = self._only("usr/lib/erlang/erts-*/bin/epmd")
            port = str(self.ports["epmd"])
            self.epmd.start([epmd, "-port", port, "-address", LOOPBACK], environment)
            wait_until(
                lambda: answers(self.ports["epmd"]),
                timeout_s=BOOT_S,
                what="the port mapper",
                program=self.epmd,
            )
        server = self._only("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
        self.node.start([server, "-noinput"], environment)
        wait_until(self._logs_in, timeout_s=BOOT_S, what="a login over AMQP", program=self.node)
        if self.management_url:
            wait_until(self._manages, timeout_s=BOOT_S, what="the management API", program=self.node)

    def stop(self) -> None:
        """Clean stop of the node, then of the port mapper."""
        self.node.stop()
        self.epmd.stop()

    def kill(self) -> None:
        """Send kill -9 to the node; its port mapper stays, as a machine's would."""
        self.node.kill()

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

    # -- virtual hosts --------------------------------------------------------------------------------------
    def create_vhost(self, name: str) -> str:
        """Make an empty virtual host (20 ms) and return its address."""
        assert self.management_url
        create_vhost(self.management_url, name)
        return self.amqp_url(name)

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node (0.6 s); returns what it printed.

        Raises:
            LocalServiceError: it failed; the message is its own.
        """
        tool = self._only("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmqctl")
        done = subprocess.run(
            [str(tool), *arguments], env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LocalServiceError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    # -- inside ---------------------------------------------------------------------------------------------
    def _only(self, pattern: str) -> Path:
        found = sorted(self.program.glob(pattern))
        if not found:
            raise LocalServiceError(f"{self.program} holds no {pattern}: remove that folder and set up again.")
        return found[-1]

    def _kept_secret(self, name: str, mode: int) -> str:
        file = self.folder / name
        if not file.exists():
            file.touch(0o600)
            file.write_text(secrets.token_hex(16))
            file.chmod(mode)
        return file.read_text()

    def _write_config(self) -> None:
        lines = [
            f"listeners.tcp.1 = {LOOPBACK}:{self.ports['amqp']}",
            f"default_user = {USER}",
            f"default_pass = {self.password}",
            "default_user_tags.administrator = true",
            "disk_free_limit.absolute = 200MB",  # a nearly full disk must not silently block publishers
            "log.console = true",
            "log.console.level = info",
            "log.file = false",
        ]
        if self.consumer_timeout_s is not None:
            lines.append(f"consumer_timeout = {int(self.consumer_timeout_s * 1000)}")
        for name in ("management", "prometheus"):
            if f"rabbitmq_{name}" in self.plugins:  # their default is every interface
                lines += [f"{name}.tcp.ip = {LOOPBACK}", f"{name}.tcp.port = {self.ports[name]}"]
        (self.folder / "config" / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "config" / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")

    def _environment(self) -> dict[str, str]:
        config, ports = self.folder / "config", self.ports
        erlang = self.program / "usr/lib/erlang/bin"
        return {
            "PATH": f"{erlang}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": "training@localhost",
            "RABBITMQ_DIST_PORT": str(ports["distribution"]),
            "ERL_EPMD_PORT": str(ports["epmd"]),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_CTL_DIST_PORT_MIN": str(min(ports["tools"], ports["tools_last"])),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(max(ports["tools"], ports["tools_last"])),
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(config / "generated"),
            "RABBITMQ_CONFIG_FILE": str(config / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(config / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(config / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(config / "rabbitmq-env.conf"),
            "RABBITMQ_PID_FILE": str(self.folder / "node.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_ALLOW_INPUT": "1",  # makes the start script exec the node: the pid is its own
        }

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
