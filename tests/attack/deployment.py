"""What is attacked: one API process and two workers of a checkout, with a private broker, server and file storage.

The processes have limits, so that an attack that succeeds costs the product and not this machine, and no capabilities,
so that root here means no more than a service's own user does. What stands still is killed and started again after a
while, as a liveness probe would.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import asyncpg

from deploy.local.postgres import create_database
from deploy.local.services import LocalServices
from tests.attack.wire import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT: Final = Path(__file__).resolve().parent.parent.parent
ADDRESS_SPACE: Final = 4 << 30
"""Bytes, a soft limit: what starts a child with a limit of its own may still do so."""
OPEN_FILES: Final = 1024
"""What a service gets where nobody asked for more."""
API_PATIENCE_S: Final = 20.0
WORKER_PATIENCE_S: Final = 20.0
START_S: Final = 60.0
SETTINGS: Final = {
    "WORKER_RENEW_S": "1",
    "WORKER_LEASE_S": "6",
    "WORKER_PAUSE_S": "4",
    "WORKER_SWEEP_S": "0.5",
    "WORKER_POLL_S": "0.5",
    "WORKER_PROGRESS_S": "0.5",
    "WORKER_GRACE_S": "5",
    "WORKER_STALL_S": "15",
    "WORKER_SLOTS": "3",
    "WORKER_MINIMUM_AUDIO_S": "1",
}
"""Everything quick; what protects one customer from another keeps its default."""
RUNS_AT_ONCE: Final = 3
"""Of each organization: together as many as the workers have slots."""


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _contained() -> None:
    """In the child, before it becomes what it is to be."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # it ends with the suite
    for limit, most in ((resource.RLIMIT_AS, ADDRESS_SPACE), (resource.RLIMIT_NOFILE, OPEN_FILES)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


@dataclass
class Process:
    """A program under attack, and its log."""

    name: str
    words: tuple[str, ...]
    log: Path
    environment: dict[str, str]
    tree: Path
    patience_s: float
    restarts: int = 0
    running: subprocess.Popen[bytes] | None = None
    silent_since: float | None = None

    def start(self) -> None:
        dropped: tuple[str, ...] = ()
        if os.geteuid() == 0 and shutil.which("setpriv"):
            dropped = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
        with self.log.open("ab") as output:
            self.running = subprocess.Popen(
                [*dropped, sys.executable, "-m", "worker", *self.words],
                env=self.environment, cwd=self.tree, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=_contained,  # noqa: PLW1509 - one thread forks
            )  # fmt: skip
        self.silent_since = None

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def kill(self) -> None:
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                self.running.kill()
            self.running.wait()


@dataclass
class Organization:
    """A customer: its number, and keys by role."""

    id: int
    keys: dict[str, str]


@dataclass
class Deployment:
    """Everything under attack, and where the suite looks at it."""

    folder: Path
    tree: Path
    database: asyncpg.Pool
    api_port: int
    api_metrics_port: int
    environment: dict[str, str]
    secrets: dict[str, str]
    """Platform secrets by name: none of them may ever be seen."""
    api: Process
    workers: list[Process]
    base: int = 0
    organizations: dict[str, Organization] = field(default_factory=dict)

    # --- a first customer ---------------------------------------------------------------------------------------

    async def command(self, *words: str) -> dict[str, Any]:
        """Type ``python -m worker …`` in the tree under attack; its JSON."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", *words, "--json",
            env=self.environment, cwd=self.tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        said, complained = await asyncio.wait_for(process.communicate(), START_S)
        if process.returncode:
            raise RuntimeError(f"worker {' '.join(words)}: {complained.decode()[-1500:]}")
        found: dict[str, Any] = json.loads(said)
        return found

    async def new_organization(self, name: str, roles: dict[str, str]) -> Organization:
        """An organization with a key for each of some names, which have these roles."""
        made = await self.command("organization-add", name, "--max-running", str(RUNS_AT_ONCE))
        added = [
            self.command("key-add", known_as, "--organization", str(made["id"]), "--role", role)
            for known_as, role in roles.items()
        ]
        keys = {known_as: new["key"] for known_as, new in zip(roles, await asyncio.gather(*added), strict=True)}
        self.organizations[name] = Organization(made["id"], keys)
        return self.organizations[name]

    # --- health -------------------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[Process]:
        return [self.api, *self.workers]

    async def answers(self, process: Process, within_s: float) -> bool:
        """Whether a process answers a plain question in time: the API its document, a worker its liveness probe."""
        if not process.alive:
            return False
        if process is self.api:
            client = Client(self.api_port, "127.0.0.9", None, keep=0)
            return (await client.ask("GET", "/caller", timeout_s=within_s)).status in (401, 429)
        client = Client(int(process.environment["WORKER_OBSERVE_PORT"]), "127.0.0.1", None, keep=0)
        return (await client.ask("GET", "/healthz", timeout_s=within_s, root="")).status == 200

    async def look_after(self) -> None:
        """A liveness probe for each process, for ever."""
        await asyncio.gather(*(self._look_after(process) for process in self.processes))

    async def _look_after(self, process: Process) -> None:
        while True:
            asked = time.monotonic()
            if await self.answers(process, 2.0):
                process.silent_since = None
            elif process.silent_since is None:
                process.silent_since = asked
            elif time.monotonic() - process.silent_since > process.patience_s or not process.alive:
                process.kill()
                process.restarts += 1
                process.start()
            await asyncio.sleep(0.5)

    async def healthy(self, within_s: float, *, settle_s: float = 0.5) -> bool:
        """Wait until every process answers promptly; False when one still does not."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if all(await asyncio.gather(*(self.answers(process, settle_s) for process in self.processes))):
                return True
            await asyncio.sleep(0.2)
        return False

    async def metrics(self) -> dict[str, float]:
        """The API's metrics, a sample's name with its labels to its value; empty where it has none."""
        client = Client(self.api_metrics_port, "127.0.0.1", None, keep=0)
        answer = await client.ask("GET", "/metrics", timeout_s=3, root="")
        found = {}
        for line in answer.body.decode(errors="replace").splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                with contextlib.suppress(ValueError):
                    found[name] = float(value)
        return found


def trainer_program(folder: Path, tree: Path) -> Path:
    """The hostile recipe as a program, in a folder of its own: a step may read where its program lies.

    Asked with ``-c``, it is the interpreter that it will use, as a worker asks to find out what a step needs.
    """
    for name in ("tests/fake_trainer.py", "tests/acceptance/fake_recipe.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / name, folder / name)
    shutil.copy(Path(__file__).with_name("recipe.py"), folder / "recipe.py")
    trainer = folder / "trainer-python"
    trainer.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\n'
        f'exec "{sys.executable}" -IS "{folder}/recipe.py" "{tree}" "$@"\n'
    )
    trainer.chmod(0o755)
    return trainer


def environment_for(
    folder: Path, tree: Path, amqp_url: str, database_url: str, seed: int, ports: dict[str, int]
) -> dict[str, str]:
    """Variables of every process; an older tree ignores those that it does not know."""
    trainer = trainer_program(folder / "program", tree)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WORKER_", "TEST_"))}
    return inherited | SETTINGS | {
        "WORKER_AMQP_URL": amqp_url,
        "WORKER_DATABASE_URL": database_url,
        "WORKER_STORAGE_URL": (folder / "storage").as_uri(),
        "WORKER_TRAINER_PYTHON": str(trainer),
        "WORKER_SCRATCH": str(folder / "scratch"),
        "WORKER_CACHE": str(folder / "cache"),
        "WORKER_API_UPLOAD_FOLDER": str(folder / "uploads"),
        "WORKER_API_HOST": "127.0.0.1",
        "WORKER_API_PORT": str(ports["api"]),
        "WORKER_API_METRICS_PORT": str(ports["api_metrics"]),
        "WORKER_API_ENCRYPTION_KEYS": base64.b64encode(os.urandom(32)).decode(),
        "WORKER_S3_SECRET_KEY": f"platform-secret-{seed}-{os.urandom(8).hex()}",
        "PYTHONPATH": str(tree),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


@asynccontextmanager
async def deployed(folder: Path, tree: Path, seed: int) -> AsyncIterator[Deployment]:
    """All of it, running; all of it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("storage", "scratch", "cache", "uploads", "weights", "logs"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)
    (folder / "weights" / "model.bin").write_bytes(b"weights")
    services = LocalServices(folder / "services")
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(services.start)
        stack.callback(services.postgres.remove)
        stack.push_async_callback(lambda: asyncio.to_thread(services.stop))
        database_url = await create_database(services.postgres.url(), "attacked")
        amqp_url = services.rabbitmq.amqp_url()
        ports = {name: _free_port() for name in ("api", "api_metrics", "w1", "w2")}
        environment = environment_for(folder, tree, amqp_url, database_url, seed, ports)
        secrets = {
            "database password": urlsplit(database_url).password or "",
            "broker password": urlsplit(amqp_url).password or "",
        }
        secrets["S3 secret key"] = environment["WORKER_S3_SECRET_KEY"]
        secrets["encryption key"] = environment["WORKER_API_ENCRYPTION_KEYS"]
        api = Process("api", ("api",), folder / "logs" / "api.log", environment, tree, API_PATIENCE_S)
        workers = [
            Process(name, ("run",), folder / "logs" / f"{name}.log",
                    environment | {"WORKER_OBSERVE_PORT": str(ports[name])}, tree, WORKER_PATIENCE_S)
            for name in ("w1", "w2")
        ]  # fmt: skip
        pool = await asyncpg.create_pool(database_url, min_size=1, max_size=3, command_timeout=30)
        stack.callback(pool.terminate)
        made = Deployment(folder, tree, pool, ports["api"], ports["api_metrics"], environment, secrets, api, workers)
        await made.command("migrate")
        made.base = await pool.fetchval(
            "insert into base_languages (key, name, weights, max_running) values ('en', 'English', $1, 1000) returning id",
            str(folder / "weights"),
        )
        stack.callback(_end_all, made)
        for process in made.processes:
            process.start()
        if not await made.healthy(START_S, settle_s=2):
            raise RuntimeError(
                "it did not start: " + "; ".join(p.log.read_text()[-600:] for p in made.processes if p.log.exists())
            )
        yield made


def _end_all(deployment: Deployment) -> None:
    """Kill what was started, and what a training left behind; the services end by themselves."""
    for process in deployment.processes:
        process.kill()
    ours, services = str(deployment.folder).encode(), str(deployment.folder / "services").encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if ours in told and services not in told and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


__all__ = ["Deployment", "Organization", "Process", "deployed"]
