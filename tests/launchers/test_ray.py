"""The Ray launcher against a real Ray in a network namespace of its own: conformance, and what only a cluster shows.

Needs the `ray` program on the PATH, beside Python, or named in TEST_RAY; and `unshare`.
"""

import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_ports
from deploy.local.program import Program, wait_until
from tests.launchers.conformance import FAKE_TRAINER
from tests.launchers.remote_cases import RemoteConformance, outpost
from worker.launchers.ray import RayCluster, RayOptions
from worker.launchers.remote import RemoteLauncher, RemoteOptions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
FORWARD = Path(__file__).parent / "forward.py"


def make(address: str, exchange: str, **options: Any) -> RemoteLauncher:
    command = (sys.executable, "-IS", str(FAKE_TRAINER))
    settled = {"beat_s": 0.2, "sighting_s": 0.5, "command": command, "outpost": outpost(), **options}
    cluster = RayCluster(RayOptions(address=address, cpus=0.1, timeout_s=30))
    return RemoteLauncher(cluster, RemoteOptions(exchange_root=Path(exchange), **settled))


class RayPlace:
    moment_s = 10.0

    def __init__(self, folder: Path, port: int, head: Program, forward: Program) -> None:
        self.folder = folder
        self.address = f"http://127.0.0.1:{port}"
        self.head = head
        self.forward = forward

    @property
    def exchange(self) -> str:
        return str(self.folder / "exchange")

    def launcher(self, **options: Any) -> RemoteLauncher:
        return make(self.address, self.exchange, **options)

    def owner(self, **options: Any) -> list[str]:
        maker = {"address": self.address, "exchange": self.exchange, **options}
        return ["tests.launchers.test_ray:make", json.dumps(maker)]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def ray_program() -> str:
    beside = Path(sys.executable).with_name("ray")
    found = os.environ.get("TEST_RAY") or shutil.which("ray") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("no Ray here: pip install 'ray[default]'")
    return found


@pytest.fixture(scope="module")
def ray() -> Iterator[RayPlace]:
    # Ray puts sockets below its folder: the path must stay short
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port = free_ports(1)[0]
    inside = (
        f"ip link set lo up; {sys.executable} {FORWARD} unix:{folder}/dashboard tcp:127.0.0.1:8265 & "
        f"exec {ray_program()} start --head --block --node-ip-address=127.0.0.1 --port=6379 "
        f"--dashboard-host=127.0.0.1 --dashboard-port=8265 --num-cpus=4 --object-store-memory=100000000 "
        f"--temp-dir={folder}/t --disable-usage-stats"
    )
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "RAY_AUTH_MODE": "disabled"}
    head = Program("ray", folder / "head.log")
    forward = Program("forward", folder / "forward.log")
    as_root = [] if os.getuid() == 0 else ["-U", "-r"]
    head.start(["unshare", *as_root, "-n", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c", inside], environment)
    forward.start([sys.executable, FORWARD, f"tcp:127.0.0.1:{port}", f"unix:{folder}/dashboard"], environment)
    place = RayPlace(folder, port, head, forward)
    try:
        wait_until(lambda: answers(f"{place.address}/api/jobs/"), timeout_s=90, what="dashboard", program=head)
        yield place
    finally:
        forward.stop()
        head.kill()  # its init: the kernel ends everything in the namespace with it
        shutil.rmtree(folder, ignore_errors=True)


class TestRay(RemoteConformance):
    @pytest.fixture
    def place(self, ray: RayPlace) -> RayPlace:
        return ray

    @pytest.fixture
    def away(self, ray: RayPlace) -> RemoteLauncher:
        return make(f"http://127.0.0.1:{free_ports(1)[0]}", ray.exchange)
