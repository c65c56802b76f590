"""Who is measured, and how each is started: as many processes and slots as the others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(__file__).resolve().parent
PEERS = (
    "celery==5.7.0",
    "dramatiq[rabbitmq]==2.2.1",
    "taskiq==0.13.0",
    "taskiq-aio-pika==0.6.1",
    "faststream[rabbit,cli]==0.7.8",
    "procrastinate==3.10.0",
    "asyncpg==0.32.0",
    "psycopg[binary,pool]==3.3.9",
    "uvloop==0.23.0",
)


@dataclass(frozen=True)
class Place:
    """Where one contestant works: its own virtual host, database and log."""

    amqp_url: str
    database_url: str
    folder: Path
    processes: int
    slots: int

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(BENCH),
            "BENCH_AMQP_URL": self.amqp_url,
            "BENCH_DATABASE_URL": self.database_url,
            "BENCH_SLOTS": str(self.slots),
        }


@dataclass
class Peer:
    """A queue library in an environment of its own; never a dependency of the project."""

    name: str
    module: str
    commands: list[list[str]]
    """Programs of its environment with their arguments; `{p}` and `{s}` are processes and slots."""
    each_process: bool = False
    """Whether the command is one process, to be started several times."""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, place: Place, python: Path) -> None:
        for copy in range(place.processes if self.each_process else 1):
            for command in self.commands:
                words = [word.format(p=place.processes, s=place.slots, n=copy) for word in command]
                self.running.append(_started([str(python.parent / words[0]), *words[1:]], place, f"{self.name}-{copy}"))

    def publish(self, place: Place, python: Path, *what: str) -> None:
        subprocess.run(
            [str(python), "-m", "peers.publishing", self.module, *what], env=place.environment(), cwd=BENCH, check=True
        )


@dataclass
class Ours:
    """This project's worker with the launcher that starts no process; everything else as in production."""

    name: str = "ours"
    module: str = ""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, place: Place, _python: Path) -> None:
        for copy in range(place.processes):
            environment = place.environment() | {
                "PYTHONPATH": str(ROOT),
                "WORKER_AMQP_URL": place.amqp_url,
                "WORKER_DATABASE_URL": place.database_url,
                "WORKER_STORAGE_URL": f"file://{place.folder}/storage",
                "WORKER_SCRATCH": str(place.folder / f"scratch-{copy}"),
                "WORKER_CACHE": str(place.folder / "cache"),
                "WORKER_LAUNCHER": "noop",
                "WORKER_SLOTS": str(place.slots),
                "WORKER_OBSERVE_PORT": "0",
            }
            self.running.append(_started([sys.executable, "-m", "worker", "run"], place, f"ours-{copy}", environment))


def _started(
    command: list[str], place: Place, log: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with (place.folder / f"{log}.log").open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment or place.environment(),
            cwd=BENCH,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def peers() -> list[Peer]:
    """Every peer, with the command its documentation gives for a worker."""
    return [
        Peer(
            "celery",
            "celery_peer",
            [
                [
                    "celery", "-A", "peers.celery_peer", "worker", "--pool", "threads", "--concurrency", "{s}",
                    "--hostname", "w{n}@bench", "--without-gossip", "--without-mingle", "--loglevel", "warning",
                ]
            ],
            each_process=True,
        ),
        Peer(
            "dramatiq",
            "dramatiq_peer",
            [["dramatiq", "peers.dramatiq_peer", "--processes", "{p}", "--threads", "{s}"]],
        ),
        Peer(
            "taskiq",
            "taskiq_peer",
            [
                [
                    "taskiq", "worker", "peers.taskiq_peer:broker", "--workers", "{p}", "--max-async-tasks", "{s}",
                    "--ack-type", "when_executed", "--log-level", "WARNING",
                ]
            ],
        ),
        Peer("faststream", "faststream_peer", [["faststream", "run", "peers.faststream_peer:app", "--workers", "{p}"]]),
        Peer(
            "procrastinate",
            "procrastinate_peer",
            [["procrastinate", "-a", "peers.procrastinate_peer.app", "worker", "--concurrency", "{s}"]],
            each_process=True,
        ),
    ]  # fmt: skip
