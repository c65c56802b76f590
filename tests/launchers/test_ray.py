"""The Ray launcher against a real Ray in a network namespace of its own: conformance, and what only a cluster shows.

Needs the `ray` program on the PATH, beside Python, or named in TEST_RAY; and `unshare`.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_ports
from deploy.local.program import Program, wait_until
from tests.launchers.conformance import FAKE_TRAINER, Steps, everybody, until
from tests.launchers.remote_cases import RemoteConformance, outpost
from worker.launchers.interface import LauncherUnavailable
from worker.launchers.processes import descendants, read_process
from worker.launchers.ray import RayCluster, RayOptions
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.launchers.verdict import StepDone, classify

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


def accepts(address: str) -> bool:
    """Whether a job can be submitted; the dashboard answers some seconds earlier."""
    order = json.dumps({"entrypoint": "true", "entrypoint_num_cpus": 0.1}).encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/", order, headers), timeout=30):
            return True
    except OSError:
        return False


def ray_program() -> str:
    beside = Path(sys.executable).with_name("ray")
    found = os.environ.get("TEST_RAY") or shutil.which("ray") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("no Ray here: pip install 'ray[default]'")
    return found


@contextmanager
def cluster() -> Iterator[RayPlace]:
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
        wait_until(lambda: accepts(place.address), timeout_s=90, what="a job accepted", program=head)
        yield place
    finally:
        forward.stop()
        inhabitants = descendants(head.pid)
        head.kill()  # its init: the kernel ends everything in the namespace with it, a moment later
        while any(read_process(process.pid) for process in inhabitants):
            time.sleep(0.05)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ray() -> Iterator[RayPlace]:
    with cluster() as place:
        yield place


class TestRay(RemoteConformance):
    @pytest.fixture
    def place(self, ray: RayPlace) -> RayPlace:
        return ray

    @pytest.fixture
    def away(self, ray: RayPlace) -> RemoteLauncher:
        return make(f"http://127.0.0.1:{free_ports(1)[0]}", ray.exchange)


def kill_inside(place: RayPlace, name: str) -> None:
    """SIGKILL to the cluster's processes of this name."""
    for process in descendants(place.head.pid):
        with suppress(FileNotFoundError):
            if name in Path(f"/proc/{process.pid}/cmdline").read_text():
                process.send(signal.SIGKILL)


class TestRayLost:
    """A cluster that dies. Each case has one of its own."""

    @pytest.fixture
    async def steps(self, tmp_path: Path) -> AsyncIterator[Steps]:
        with cluster() as place:
            yield Steps(place, tmp_path)

    async def test_lost_head_loses_no_step_that_its_owner_still_grants(self, steps: Steps):
        handle = await steps.start("succeed", lease_s=20, options={"patience_s": 1}, steps=100, step_s=0.1)
        await until(lambda: steps.has("step", 3))
        kill_inside(steps.place, "gcs_server")
        await until(lambda: not answers(f"{steps.place.address}/api/jobs/"))
        verdict = classify(await handle.wait())
        await until(lambda: not everybody(steps.run_id))
        done = [tick["n"] for tick in steps.ticks() if tick["what"] == "step"]
        assert done == list(range(1, len(done) + 1))
        assert isinstance(verdict, StepDone) or verdict.code == "supervisor_lost"

    async def test_lost_cluster_ends_the_step_and_nothing_is_left(self, steps: Steps):
        handle = await steps.start("setsid_grandchild", steps=100_000)
        await until(lambda: steps.has("step", 3))
        steps.place.head.kill()
        await until(lambda: not everybody(steps.run_id))
        await steps.assert_nothing_moves()
        # nobody can say what became of it: the owner waits, and says so when asked to be sure
        with pytest.raises(LauncherUnavailable):
            await steps.launcher().ensure_stopped(steps.run_id, 2)
        handle.let_go()
