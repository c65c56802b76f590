"""A private RabbitMQ node on loopback, without root: 3.10 (Debian 12) to 4.x."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from deploy.local.ports import LOOPBACK, answers
from deploy.local.program import LocalServiceError, Program, wait_until
from deploy.local.rabbitmq import BOOT_S, DEFAULT_PLUGINS, USER, Broker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PORTS = ("amqp", "distribution", "epmd", "tools", "tools_last", "management", "prometheus")


class RabbitMQNode(Broker):
    """A node from unpacked packages (see `debs`), with its own Erlang port mapper, cookie and Erlang ports."""

    def __init__(
        self,
        program: Path,
        folder: Path,
        *,
        plugins: Sequence[str] = DEFAULT_PLUGINS,
        consumer_timeout_s: float | None = None,
    ) -> None:
        super().__init__(folder, PORTS, plugins=plugins, consumer_timeout_s=consumer_timeout_s)
        self.program = program
        (self.folder / "home").mkdir(exist_ok=True)
        self._kept_secret("home/.erlang.cookie", 0o400)
        self.epmd = Program("epmd", self.folder / "log" / "epmd.log")

    def pids(self) -> dict[str, int]:
        """The node's and its port mapper's."""
        return {**super().pids(), "epmd": self.epmd.pid}

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
        self._wait_until_ready()

    def stop(self) -> None:
        """Clean stop of the node, then of the port mapper."""
        self.node.stop()
        self.epmd.stop()

    def kill(self) -> None:
        """Send kill -9 to the node; its port mapper stays, as a machine's would."""
        self.node.kill()

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

    def _only(self, pattern: str) -> Path:
        found = sorted(self.program.glob(pattern))
        if not found:
            raise LocalServiceError(f"{self.program} holds no {pattern}: remove that folder and set up again.")
        return found[-1]

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
