"""Where it happens: private broker and server, wires that misbehave, several workers that are started again when dead."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from deploy.local.postgres import create_database
from deploy.local.services import LocalServices
from tests.acceptance.world import WorkerProcess, World, request_message, world_at
from tests.chaos.proxy import Proxy
from tests.chaos.steady import SteadyDatabase, SteadyProducer
from worker.domain.run import Request
from worker.launchers.processes import marked_processes
from worker.store.database import Database
from worker.store.migrations import migrate
from worker.store.runs import Limits, RunStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.launchers.processes import Marked

LEASE_S: Final = 4.0
SETTINGS: Final = {
    "WORKER_RENEW_S": "0.7",
    "WORKER_LEASE_S": str(LEASE_S),
    "WORKER_PAUSE_S": "2.5",
    "WORKER_SWEEP_S": "0.5",
    "WORKER_POLL_S": "0.3",
    "WORKER_GRACE_S": "5",
    "WORKER_PATIENCE_S": "20",
    "WORKER_STALL_S": "20",
    "WORKER_FAILURE_LIMIT": "60",
    "WORKER_HAND_OVER_LIMIT": "200",
    "WORKER_LOST_WORKER_LIMIT": "60",  # workers die every second here: three in a row at one point are nothing
    "WORKER_LOG_LEVEL": "info",
}
PLAN: Final = {"steps": 8, "step_s": 0.04, "other_steps": 2, "checkpoint_every": 3}
LONG: Final = PLAN | {"steps": 14, "step_s": 0.4}
"""A training longer than a lease: what a frozen worker's trainer would go on with if nobody paused it."""
GRANDCHILD: Final = PLAN | {"fake": {"train": "setsid_grandchild"}}
CAPS: Final = (1, 2, 3, 4, 6)
BY_STATEMENT: Final = 0.2
"""Share of runs asked for by the API's own statement, in one transaction with their message."""
SAME_MODEL: Final = 0.3
"""Share of runs on a model that has trained before."""


@dataclass
class Asked:
    """One run that was accepted: confirmed by the broker, or committed as the API does."""

    run: uuid.UUID
    model: int
    organization: int
    at: float
    cancel_answered: bool = False


@dataclass
class Field:
    """Everything that faults are done to, and everything that witnesses need."""

    folder: Path
    services: LocalServices
    world: World
    database: SteadyDatabase
    producer: SteadyProducer
    wires: dict[str, Proxy]
    chance: random.Random
    module: str
    crowd: int
    organizations: dict[int, int]
    """Organization to its cap."""
    accepted: dict[uuid.UUID, Asked] = field(default_factory=dict)
    ends: list[tuple[str, int, bool]] = field(default_factory=list)
    """Name, exit code, whether the suite ended it."""
    ended_by_us: set[int] = field(default_factory=set)
    garbage_sent: int = 0
    busy: dict[str, asyncio.Lock] = field(default_factory=dict)
    mending: set[asyncio.Task[Any]] = field(default_factory=set)
    restarting: bool = True
    long_share: float = 0.15
    long_plan: dict[str, Any] = field(default_factory=lambda: dict(LONG))

    # --- workers -----------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerProcess]:
        return [worker for worker in self.world.workers if worker.alive]

    def start_worker(self) -> None:
        self.world.worker(module=self.module)

    async def keep_crowd(self) -> None:
        """A dead worker is followed by a new one, as any service manager would have it."""
        counted: set[int] = set()
        while True:
            for worker in self.world.workers:
                if not worker.alive and worker.pid not in counted:
                    counted.add(worker.pid)
                    code = worker.process.returncode
                    assert code is not None
                    self.ends.append((worker.name, code, worker.pid in self.ended_by_us))
                    if self.restarting:
                        self.start_worker()
            await asyncio.sleep(0.1)

    def trainers(self, *, supervisors: bool = False) -> list[Marked]:
        home = f"HOME={self.folder}".encode()
        found = []
        for marked in marked_processes():
            try:
                ours = home in Path(f"/proc/{marked.process.pid}/environ").read_bytes()
            except OSError:
                continue
            if ours and marked.supervises == supervisors:
                found.append(marked)
        return found

    # --- runs --------------------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """One more run, accepted when this returns."""
        organization = self.chance.choice(list(self.organizations))
        model = await self._model(organization)
        run = uuid.uuid4()
        lot = self.chance.random()
        if lot < self.long_share:
            self.world.plan(run, **self.long_plan)
        elif lot > 0.95:
            self.world.plan(run, **GRANDCHILD)
        if self.chance.random() < BY_STATEMENT:
            await self._ask_by_statement(run, model, organization)
        else:
            await self.producer.publish(request_message(run, model, organization))
        self.accepted[run] = Asked(run, model, organization, time.monotonic())

    async def _model(self, organization: int) -> int:
        if self.chance.random() < SAME_MODEL:
            free = await self.database.value(
                "select m.id from custom_models m where m.organization_id = $1 and m.deleted_at is null"
                " and m.training_status in (1, 4) and not m.id = any ($2::bigint[]) order by m.last_modified desc limit 1",
                organization,
                [asked.model for asked in self.accepted.values() if await self._open(asked)],
            )
            if free is not None:
                return int(free)
        name = uuid.uuid4().hex[:12]
        await self.database.fetch(
            "insert into custom_models (key, name, organization_id, base_language_id) values ($1, $1, $2, $3)"
            " on conflict do nothing",
            f"m-{name}", organization, self.world.base,
        )  # fmt: skip
        model = int(await self.database.value("select id from custom_models where key = $1", f"m-{name}"))
        for file, content in (("a.wav", f"sound {model}".encode()), ("a.txt", b"hello there")):
            await self._add_file(model, organization, file, content)
        return model

    async def _open(self, asked: Asked) -> bool:
        """Whether a message may still be on its way, or the run under way."""
        status = await self.database.value("select status from training_runs where id = $1", asked.run)
        return status not in (1, 4, 5)

    async def _add_file(self, model: int, organization: int, name: str, content: bytes) -> None:
        """As ``World.add_file``, by a patient statement."""
        statement, arguments = self.world.stored_file(model, organization, name, content)
        await self.database.fetch(statement + " on conflict do nothing", *arguments)

    async def _ask_by_statement(self, run: uuid.UUID, model: int, organization: int) -> None:
        from datetime import UTC, datetime  # noqa: PLC0415

        from worker.errors import DatabaseAway, DatabaseRefused  # noqa: PLC0415
        from worker.store.database import queries  # noqa: PLC0415

        request = Request(run, model, organization, datetime.now(UTC))
        while True:
            database = Database(self.world.database_url, size=1, answer_s=5)
            store = RunStore(database, Limits(), random.random)
            try:
                await database.fetch(
                    queries("runs")["register_runs"], *store.registration([request], ["event", "request"])
                )
            except (DatabaseAway, DatabaseRefused):
                await asyncio.sleep(0.3)
            else:
                return
            finally:
                await database.close()

    async def unfinished(self) -> int:
        over = await self.database.value("select count(*) from training_runs where status in (1, 4, 5)")
        return len(self.accepted) - int(over)

    async def hurry(self) -> None:
        """Back-offs are cut short, as an impatient operator would: the suite has no 15 minutes for one."""
        while True:
            await self.database.fetch(
                "update training_runs set due_at = now() where status = 2 and due_at > now() + interval '1 s'"
            )
            await asyncio.sleep(0.7)

    async def mended(self) -> None:
        """Every frozen process thawed, every service up, every wire whole."""
        while self.mending:
            await asyncio.gather(*list(self.mending), return_exceptions=False)
        for wire in self.wires.values():
            wire.resume()
        for worker in self.world.workers:
            worker.thaw()


@asynccontextmanager
async def field_at(
    folder: Path, seed: int, *, module: str = "worker", crowd: int = 3, slots: int = 3
) -> AsyncIterator[Field]:
    """A field with its services, wires and workers; all of it ends with the block."""
    services = LocalServices(folder / "services")
    await asyncio.to_thread(services.start)
    async with AsyncExitStack() as stack:
        stack.callback(services.postgres.remove)
        stack.push_async_callback(lambda: asyncio.to_thread(services.stop))
        database_url = await create_database(services.postgres.url(), "chaos")
        await migrate(database_url)
        amqp_url = services.rabbitmq.amqp_url()
        wires = {
            "database": await stack.enter_async_context(Proxy(database_url)),
            "broker": await stack.enter_async_context(Proxy(amqp_url, postgres=False)),
        }
        world = await stack.enter_async_context(world_at(folder, amqp_url, database_url))
        world.settings |= SETTINGS | {
            "WORKER_DATABASE_URL": wires["database"].url,
            "WORKER_AMQP_URL": wires["broker"].url,
            "WORKER_SLOTS": str(slots),
        }
        world.plan(**PLAN)
        world.niceness = 10  # on a busy machine the broker and the suite come first: starved, they prove nothing
        await _events_queue(amqp_url)
        database, producer = SteadyDatabase(database_url), SteadyProducer(amqp_url)
        stack.push_async_callback(database.close)
        stack.push_async_callback(producer.close)
        organizations = {await world.new_organization(f"cap {cap}", cap): cap for cap in CAPS}
        made = Field(
            folder, services, world, database, producer, wires, random.Random(f"field {seed}"), module, crowd,
            organizations, busy={name: asyncio.Lock() for name in ("postgres", "broker", "wire", "term")},
        )  # fmt: skip
        await asyncio.to_thread(services.rabbitmq.wait_until_queues_are_on_disk)
        for _ in range(crowd):
            made.start_worker()
        yield made


async def _events_queue(amqp_url: str) -> None:
    """What the outbox tells is kept for the witnesses."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("events", durable=True, arguments={"x-queue-type": "quorum"})
        for name in ("queued", "running", "succeeded", "failed", "cancelled"):
            await queue.bind("training", f"training.run.{name}")
