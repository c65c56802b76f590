"""The Ray launcher against a real Ray in a network namespace of its own: conformance, and what only a cluster shows.

Needs the `ray` program on the PATH, beside Python, or named in TEST_RAY; and `unshare`.
"""

import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_ports
from deploy.local.ray_cluster import LocalRay, local_ray, ray_program
from deploy.local.report import MissingPieceError
from tests.launchers.conformance import FAKE_TRAINER, WITNESSED, Steps, everybody, until
from tests.launchers.remote_cases import RemoteConformance, outpost
from worker.launchers.exchange.folder import FolderExchanges
from worker.launchers.interface import LauncherUnavailable
from worker.launchers.processes import descendants
from worker.launchers.ray import RayCluster, RayOptions
from worker.launchers.remote import RemoteLauncher, RemoteOptions
from worker.launchers.verdict import StepDone, classify

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def make(address: str, exchange: str, **options: Any) -> RemoteLauncher:
    command = (sys.executable, "-IS", str(FAKE_TRAINER))
    settled = {"beat_s": 0.2, "sighting_s": 0.5, "command": command, "outpost": outpost()} | WITNESSED | options
    cluster = RayCluster(RayOptions(address=address, cpus=0.1, timeout_s=30))
    return RemoteLauncher(cluster, FolderExchanges(Path(exchange)), RemoteOptions(**settled))


class RayPlace:
    moment_s = 10.0

    def __init__(self, cluster: LocalRay) -> None:
        self.folder = cluster.folder
        self.address = cluster.address
        self.head = cluster.head

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


@contextmanager
def cluster() -> Iterator[RayPlace]:
    try:
        program = os.environ.get("TEST_RAY") or ray_program()
    except MissingPieceError as error:
        pytest.skip(str(error))
    with local_ray(program) as made:
        yield RayPlace(made)


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
