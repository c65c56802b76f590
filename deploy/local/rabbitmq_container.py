"""A private RabbitMQ in a container, for machines with a Docker engine and without apt."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from deploy.local.cache import digest
from deploy.local.ports import LOOPBACK
from deploy.local.program import LocalServiceError
from deploy.local.rabbitmq import USER, Broker

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "rabbitmq:4-management"
# Port names, and where the image listens inside.
PORTS = {"amqp": 5672, "management": 15672, "prometheus": 15692}


class RabbitMQContainer(Broker):
    """The official image, its ports published on 127.0.0.1 only, its data in this folder.

    `docker run` stays in the foreground on a leash: a stop signal reaches the node through it, and the container
    is removed when it ends.
    """

    def __init__(self, folder: Path, *, consumer_timeout_s: float | None = None) -> None:
        super().__init__(folder, list(PORTS), consumer_timeout_s=consumer_timeout_s)
        self.name = f"speech-training-{digest(str(self.folder))}"

    def start(self) -> None:
        """Pull the image if it is not there (110 MB), boot, wait for a real login."""
        self._remove()  # what a killed client left
        config = self.folder / "config"
        lines = ["disk_free_limit.absolute = 200MB"]
        if self.consumer_timeout_s is not None:
            lines.append(f"consumer_timeout = {int(self.consumer_timeout_s * 1000)}")
        (config / "local.conf").write_text("\n".join(lines) + "\n")
        secrets = config / "environment"  # a file, because command lines can be read by every user
        secrets.touch(0o600)
        secrets.write_text(f"RABBITMQ_DEFAULT_USER={USER}\nRABBITMQ_DEFAULT_PASS={self.password}\n")
        published = [f"--publish={LOOPBACK}:{self.ports[name]}:{inside}" for name, inside in PORTS.items()]
        command = [
            *("docker", "run", "--rm", f"--name={self.name}", "--hostname=training", f"--env-file={secrets}"),
            *published,
            f"--volume={self.folder / 'data'}:/var/lib/rabbitmq",
            f"--volume={config / 'local.conf'}:/etc/rabbitmq/conf.d/90-local.conf:ro",
            IMAGE,
        ]
        pulled = subprocess.run(["docker", "pull", "--quiet", IMAGE], capture_output=True, text=True, check=False)
        if pulled.returncode:
            raise LocalServiceError(f"docker pull {IMAGE}: {pulled.stderr.strip()}")
        self.node.start(command, os.environ)
        self._wait_until_ready()

    def stop(self) -> None:
        """Clean stop; the container goes, the data stays."""
        self.node.stop()
        self._remove()

    def kill(self) -> None:
        """Send kill -9 to the node inside."""
        subprocess.run(["docker", "kill", "--signal=KILL", self.name], capture_output=True, check=False)
        self.node.wait()

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` inside."""
        command = ["docker", "exec", self.name, "rabbitmqctl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LocalServiceError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def _remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", self.name], capture_output=True, check=False)
