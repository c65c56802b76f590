"""A real Ray of one node in namespaces of its own: what it opens, nobody else on this machine or its network reaches.

A Ray dashboard runs whatever it is told to by whoever reaches it. This one is reached through one loopback port,
passed on by a socket in the cluster's folder, until the cluster is stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.ports import free_ports
from deploy.local.program import Program, wait_until
from deploy.local.report import MissingPieceError
from worker.launchers.processes import descendants, read_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORWARD = Path(__file__).with_name("forward.py")
START_S = 180.0


class LocalRay:
    """A running cluster.

    Attributes:
        folder: its own; short, for Ray puts sockets into it.
        address: its dashboard's.

    Args:
        folder: see above.
        program: the ``ray`` program.
        cpus: how many processors it offers.
        reaching: loopback ports of this machine that the node reaches too, under the same numbers.
        hiding: folders of this machine that the node sees empty.
    """

    def __init__(
        self, folder: Path, program: str, cpus: int, *, reaching: Sequence[int] = (), hiding: Sequence[Path] = ()
    ) -> None:
        self.folder = folder
        self._port = free_ports(1)[0]
        self.address = f"http://127.0.0.1:{self._port}"
        self.head = Program("ray", folder / "head.log")
        self._forward = Program("forward", folder / "forward.log")
        self._ways_out = [
            (port, f"unix:{folder}/out-{port}", Program("way out", folder / "ways-out.log")) for port in reaching
        ]
        passed_out = "".join(
            f"{sys.executable} {FORWARD} tcp:127.0.0.1:{port} {way} & " for port, way, _ in self._ways_out
        )
        hidden = "".join(f"mount -t tmpfs tmpfs {shlex.quote(str(path))}; " for path in hiding)
        self._inside = (
            f"{hidden}ip link set lo up; {passed_out}"
            f"{sys.executable} {FORWARD} unix:{folder}/dashboard tcp:127.0.0.1:8265 & "
            f"exec {program} start --head --block --node-ip-address=127.0.0.1 --port=6379 "
            f"--dashboard-host=127.0.0.1 --dashboard-port=8265 --num-cpus={cpus} --object-store-memory=100000000 "
            f"--temp-dir={folder}/t --disable-usage-stats"
        )

    def start(self) -> None:
        """Start it; returns when it takes jobs.

        Raises:
            LocalServiceError: it does not.
        """
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.folder), "RAY_AUTH_MODE": "disabled"}
        as_root = [] if os.getuid() == 0 else ["-U", "-r"]
        namespaces = ["unshare", *as_root, "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
        self.head.start([*namespaces, "sh", "-c", self._inside], environment)
        passed_on = (f"tcp:127.0.0.1:{self._port}", f"unix:{self.folder}/dashboard")
        self._forward.start([sys.executable, FORWARD, *passed_on], environment)
        for port, way, program in self._ways_out:
            program.start([sys.executable, FORWARD, way, f"tcp:127.0.0.1:{port}"], environment)
        wait_until(self._takes_jobs, timeout_s=START_S, what="a job accepted", program=self.head)

    def stop(self) -> None:
        """End it with everything in it; returns when all is gone."""
        for forward in (self._forward, *(program for _, _, program in self._ways_out)):
            forward.stop()
        inhabitants = descendants(self.head.pid) if self.head.running else []
        self.head.kill()  # its init: the kernel ends everything in the namespace with it, a moment later
        while any(read_process(process.pid) for process in inhabitants):
            time.sleep(0.05)

    def _takes_jobs(self) -> bool:
        """Whether a job can be submitted; the dashboard answers some seconds earlier."""
        order = json.dumps({"entrypoint": "true", "entrypoint_num_cpus": 0.1}).encode()
        asked = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.address}/api/jobs/", order, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=30):  # noqa: S310
                return True
        except OSError:
            return False


def ray_program() -> str:
    """The ``ray`` program: on the PATH, or beside this Python.

    Raises:
        MissingPieceError: there is none, or no ``unshare``.
    """
    for program in ("unshare", "ip"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise MissingPieceError(f"no `{program}` here: a local Ray runs in namespaces of its own, on Linux only")
    beside = Path(sys.executable).with_name("ray")
    found = shutil.which("ray") or (str(beside) if beside.exists() else None)
    if found is None:
        raise MissingPieceError("no Ray here: pip install 'ray[default]'")
    return found


@contextmanager
def local_ray(
    program: str, *, cpus: int = 4, reaching: Sequence[int] = (), hiding: Sequence[Path] = ()
) -> Iterator[LocalRay]:
    """A cluster while the block lasts; see ``LocalRay``.

    Raises:
        LocalServiceError: it does not start.
    """
    # Ray puts sockets below it: the path must stay short
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = LocalRay(folder, program, cpus, reaching=reaching, hiding=hiding)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
