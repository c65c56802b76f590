"""A small world for whole worker processes: a database, a virtual host, a storage folder, a fake trainer, witnesses."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import asyncpg

from worker.broker import connected
from worker.domain.data import kind_of, stem_of
from worker.intake.topology import declare
from worker.launchers.processes import marked_processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ROOT: Final = Path(__file__).resolve().parent.parent.parent
HERE: Final = ROOT  # of this file, whichever release a test runs
PATIENCE_S: Final = 60.0
SHORT: Final = {
    "WORKER_RENEW_S": "0.5",
    "WORKER_LEASE_S": "3",
    "WORKER_PAUSE_S": "2",
    "WORKER_SWEEP_S": "0.5",
    "WORKER_POLL_S": "0.3",
    "WORKER_PROGRESS_S": "0.2",
    "WORKER_GRACE_S": "10",
    "WORKER_PATIENCE_S": "300",
    "WORKER_OBSERVE_PORT": "0",
    "WORKER_SLOTS": "2",
}
"""Everything quick, by settings alone."""


async def until(fact: Callable[[], Awaitable[Any] | Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a fact; fails when it does not come true in time."""
    deadline = time.monotonic() + patience_s
    while True:
        found = fact()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"within {patience_s:.0f} s this did not come true: {what}")
        await asyncio.sleep(0.03)


def _as_a_child_of_the_test(niceness: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # it dies with the test
    os.nice(niceness)


class WorkerProcess:
    """One ``python -m worker run``."""

    def __init__(self, name: str, log: Path, environment: dict[str, str], module: str, niceness: int) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "run"],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: _as_a_child_of_the_test(niceness),  # noqa: PLW1509 - one thread forks
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill -9; returns when it is gone."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    async def exit_code(self, patience_s: float = PATIENCE_S) -> int:
        await until(lambda: not self.alive, f"worker {self.name} ends", patience_s)
        assert self.process.returncode is not None
        return self.process.returncode

    def lines(self) -> list[dict[str, Any]]:
        """Its log, as objects; what is no JSON comes as ``{"text": …}``."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                parsed = json.loads(line)
            except ValueError:
                parsed = {"text": line}
            found.append(parsed if isinstance(parsed, dict) else {"text": line})
        return found

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in self.lines()
            if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])


@dataclass
class World:
    """Where workers live; what they did is read from the database, the broker and the witness file."""

    folder: Path
    amqp_url: str
    """As the test itself reaches the broker."""
    database_url: str
    pool: asyncpg.Pool
    base: int
    organization: int
    settings: dict[str, str] = field(default_factory=dict)
    """Environment of workers, over the short defaults."""
    workers: list[WorkerProcess] = field(default_factory=list)
    niceness: int = 0
    """Of workers."""
    _made: int = 0

    # --- things ------------------------------------------------------------------------------------------------

    async def new_organization(self, name: str, cap: int = 1000) -> int:
        return await self.pool.fetchval(
            "insert into organizations (name, max_running) values ($1, $2) returning id", name, cap
        )

    async def new_model(self, organization: int | None = None, *, files: bool = True) -> tuple[int, int]:
        """A model with one recording and its transcript; (model, organization)."""
        owner = organization or self.organization
        self._made += 1
        model = await self.pool.fetchval(
            "insert into custom_models (key, name, organization_id, base_language_id) values ($1, $1, $2, $3) returning id",
            f"m{self._made}-{uuid.uuid4().hex[:6]}",
            owner,
            self.base,
        )
        if files:
            for name, content in (("a.wav", f"sound {model}".encode()), ("a.txt", b"hello there")):
                await self.add_file(model, owner, name, content)
        return model, owner

    async def imported_model(self) -> tuple[int, int]:
        """A model whose recordings were imported by command, wherever the workers keep their files."""
        model, owner = await self.new_model(files=False)
        folder = self.folder / "recordings"
        folder.mkdir()
        lines = []
        for n in range(5):
            (folder / f"r{n}.wav").write_bytes(b"sound %d" % n)
            lines.append(json.dumps({"audio_filepath": f"r{n}.wav", "text": f"Sentence {n}."}))
        (folder / "all.jsonl").write_text("\n".join(lines))
        done = self.command("import", str(folder / "all.jsonl"), "--model", str(model), "--json")
        assert done.returncode == 0, done.stderr
        return model, owner

    def stored_file(self, model: int, owner: int, name: str, content: bytes) -> tuple[str, tuple[object, ...]]:
        """Put a file into storage; the statement that makes its row, with its arguments."""
        digest = hashlib.sha256(content).hexdigest()
        key = f"organizations/{owner}/models/{model}/data/{digest}"
        path = self.folder / "storage" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return (
            (
                "insert into training_data (custom_model_id, organization_id, name, stem, kind, bytes, sha256, address, verdict)"
                " values ($1, $2, $3, $4, $5, $6, $7, $8, 'waiting_for_run')"
            ),
            (model, owner, name, stem_of(name), kind_of(name), len(content), digest, key),
        )

    async def add_file(self, model: int, owner: int, name: str, content: bytes) -> None:
        statement, arguments = self.stored_file(model, owner, name, content)
        await self.pool.execute(statement, *arguments)

    def plan(self, run: uuid.UUID | None = None, **parameters: Any) -> None:
        """How the fake trainer behaves in this run, or in all that have no plan of their own."""
        path = self.folder / "plans" / f"{run or 'default'}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(parameters))
        partial.rename(path)

    # --- workers -----------------------------------------------------------------------------------------------

    def environment(self, **changed: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WORKER_", "TEST_"))}
        return (
            inherited
            | SHORT
            | {
                "WORKER_AMQP_URL": self.amqp_url,
                "WORKER_DATABASE_URL": self.database_url,
                "WORKER_STORAGE_URL": (self.folder / "storage").as_uri(),
                "WORKER_TRAINER_PYTHON": str(self.folder / "trainer-python"),
                # the fake recipe lies among the tests, and its witness in the world's own folder
                "WORKER_TRAINER_READABLE": os.pathsep.join([str(HERE), sys.prefix, sys.base_prefix]),
                "WORKER_TRAINER_WRITABLE": str(self.folder),
                "WORKER_SCRATCH": str(self.folder / "scratch"),
                "WORKER_CACHE": str(self.folder / "cache"),
                "PYTHONPATH": str(ROOT),
            }
            | self.settings
            | changed
        )

    def worker(self, *, module: str = "worker", **changed: str) -> WorkerProcess:
        name = f"w{len(self.workers) + 1}"
        made = WorkerProcess(name, self.folder / f"{name}.log", self.environment(**changed), module, self.niceness)
        self.workers.append(made)
        return made

    async def started(self, **changed: str) -> WorkerProcess:
        """A worker that has signed on and listens to its queue."""
        made = self.worker(**changed)
        await until(lambda: made.said("worker started") or not made.alive, "the worker starts")
        assert made.alive, made.tail()
        return made

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Type ``python -m worker …``."""
        return subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            env=self.environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    # --- runs --------------------------------------------------------------------------------------------------

    async def ask(self, model: tuple[int, int] | None = None, run: uuid.UUID | None = None, **plan: Any) -> uuid.UUID:
        """Publish a request, confirmed, as any producer would."""
        wanted = run or uuid.uuid4()
        if plan:
            self.plan(wanted, **plan)
        model_id, owner = model or await self.new_model()
        await publish_request(self.amqp_url, wanted, model_id, owner)
        return wanted

    async def row(self, run: uuid.UUID) -> asyncpg.Record | None:
        return await self.pool.fetchrow("select * from training_runs where id = $1", run)

    async def status(self, run: uuid.UUID) -> int | None:
        return await self.pool.fetchval("select status from training_runs where id = $1", run)

    async def moves(self, run: uuid.UUID) -> list[tuple[int | None, int]]:
        rows = await self.pool.fetch(
            "select from_status, to_status from run_transitions where run_id = $1 order by sequence", run
        )
        return [(row[0], row[1]) for row in rows]

    async def in_phase(self, run: uuid.UUID, phase: str, attempt: int | None = None) -> asyncpg.Record:
        async def there() -> asyncpg.Record | None:
            row = await self.row(run)
            return row if row and row["phase"] == phase and attempt in (None, row["attempt"]) else None

        return await until(there, f"run in phase {phase}")

    async def over(self, run: uuid.UUID, patience_s: float = PATIENCE_S) -> asyncpg.Record:
        """The run's row once it has ended. Back-offs are cut short, as an impatient operator would."""

        async def ended() -> asyncpg.Record | None:
            row = await self.row(run)
            if row is not None and row["status"] == 2:
                await self.hurry()
            return row if row is not None and row["status"] in (1, 4, 5) else None

        try:
            return await until(ended, "the run ends", patience_s)
        except AssertionError:
            row = await self.row(run)
            raise AssertionError(
                f"the run did not end: {dict(row) if row else None}\n"
                + "\n".join(f"--- {worker.name}\n{worker.tail()}" for worker in self.workers)
            ) from None

    async def hurry(self) -> None:
        """End every back-off now."""
        await self.pool.execute("update training_runs set due_at = now() where status = 2 and due_at > now()")

    # --- witnesses ---------------------------------------------------------------------------------------------

    def witnessed(self, run: uuid.UUID | None = None) -> list[dict[str, Any]]:
        """What trainers wrote themselves, in order of the host's clock."""
        path = self.folder / "witness.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return sorted(
            (line for line in lines if run is None or line["run"] == str(run)), key=lambda line: line.get("at", 0)
        )

    def trainers(self, run: uuid.UUID) -> list[Any]:
        """Living processes of a run's trainers, supervisors not counted."""
        return [found.process for found in marked_processes() if found.run_id == str(run) and not found.supervises]

    async def trainer_of(self, run: uuid.UUID, step: str, attempt: int = 1) -> int:
        """The pid of a step's trainer, once it has said that it works."""

        def working() -> list[dict[str, Any]]:
            return [
                line
                for line in self.witnessed(run)
                if line["step"] == step and line["attempt"] == attempt and line["what"] in ("step", "start")
            ]

        return (await until(working, f"{step} of attempt {attempt} starts"))[0]["pid"]

    def overlaps(self) -> list[str]:
        """Attempts of one run that acted at once: an earlier one still writing after a later one began."""
        newest: dict[str, int] = {}
        found = []
        for line in self.witnessed():
            attempt = int(line["attempt"])
            if attempt < newest.get(line["run"], 0):
                found.append(
                    f"{line['run']}: attempt {attempt} {line['what']} after attempt {newest[line['run']]} began"
                )
            newest[line["run"]] = max(attempt, newest.get(line["run"], 0))
        return found


async def publish_request(amqp_url: str, run: uuid.UUID, model: int, owner: int, times: int = 1) -> None:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange("training", ensure=False)
        for _ in range(times):
            await exchange.publish(request_message(run, model, owner), "training.run.requested")


def request_message(run: uuid.UUID, model: int, owner: int) -> aio_pika.Message:
    body = {
        "run_id": str(run),
        "custom_model_id": model,
        "organization_id": owner,
        "requested_at": datetime.now(UTC).isoformat(),
    }
    return aio_pika.Message(
        json.dumps(body).encode(),
        message_id=str(run),
        content_type="application/json",
        type="training.run.requested.v1",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


@asynccontextmanager
async def world_at(folder: Path, amqp_url: str, database_url: str, **settings: str) -> AsyncIterator[World]:
    """A world with a base language and an organization; its workers end with it."""
    for part in ("storage", "plans", "scratch", "cache", "weights"):
        (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "weights" / "model.bin").write_bytes(b"weights")
    trainer = folder / "trainer-python"
    recipe = ROOT / "tests" / "acceptance" / "fake_recipe.py"
    trainer.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{recipe}" "{folder}" "$@"\n')
    trainer.chmod(0o755)
    async with connected(amqp_url, "world") as connection:
        await declare(connection)
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=4)
    base = await pool.fetchval(
        "insert into base_languages (key, name, weights, max_running) values ('en', 'English', $1, 1000)"
        " on conflict (key) do update set weights = excluded.weights returning id",
        str(folder / "weights"),
    )
    organization = await pool.fetchval(
        "insert into organizations (name, max_running) values ('clinic', 1000) returning id"
    )
    world = World(folder, amqp_url, database_url, pool, base, organization, settings)
    try:
        yield world
    finally:
        for worker in world.workers:
            worker.kill()
        with suppress(TimeoutError):
            await asyncio.wait_for(pool.close(), 5)
        pool.terminate()
        await until(
            lambda: not [m for m in marked_processes() if _scratch_of(m.process.pid, folder)], "no trainer is left"
        )


def _scratch_of(pid: int, folder: Path) -> bool:
    with suppress(OSError):
        return f"HOME={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False
