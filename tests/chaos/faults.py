"""What is done to them. A fault says whether it hit; one that found nobody to hit comes again later."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import aio_pika

from deploy.local.program import LocalServiceError
from tests.acceptance.world import request_message
from tests.chaos.field import LEASE_S, Asked, Field
from worker.domain.run import Fence
from worker.errors import DatabaseAway
from worker.launchers.processes import read_process
from worker.store.database import Database
from worker.store.runs import Limits, RunStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.acceptance.world import WorkerProcess


def later(field: Field, seconds: float, mend: Callable[[], object]) -> None:
    """Undo a fault after a while; the end of the suite waits for it."""

    async def wait() -> None:
        await asyncio.sleep(seconds)
        done = mend()
        if asyncio.iscoroutine(done):
            await done

    task = asyncio.ensure_future(wait())
    field.mending.add(task)
    task.add_done_callback(field.mending.discard)


def long_or_short(chance: random.Random) -> float:
    """Half within a lease, half beyond it."""
    return chance.uniform(0.2, LEASE_S * 0.6) if chance.random() < 0.5 else chance.uniform(LEASE_S, LEASE_S * 2.2)


def _victim(field: Field, chance: random.Random, *, awake: bool = False) -> WorkerProcess | None:
    """A worker that has begun to work and that nobody is ending; ``awake``: not frozen already."""
    found = [
        worker
        for worker in field.workers()
        if worker.pid not in field.ended_by_us and worker.said("worker started") and not (awake and _frozen(worker.pid))
    ]
    return chance.choice(found) if found else None


def _frozen(pid: int) -> bool:
    process = read_process(pid)
    return process is None or process.state in "Tt"


# --- workers ------------------------------------------------------------------------------------------------------


async def kill_worker(field: Field, chance: random.Random) -> bool:
    worker = _victim(field, chance)
    if worker is None:
        return False
    field.ended_by_us.add(worker.pid)
    worker.kill()
    return True


async def freeze_worker(field: Field, chance: random.Random) -> bool:
    worker = _victim(field, chance, awake=True)
    if worker is None:
        return False
    worker.freeze()
    later(field, long_or_short(chance), worker.thaw)
    return True


async def freeze_busy_worker_beyond_its_lease(field: Field, _: random.Random) -> bool:
    """For broken builds only: the busiest one, while another is awake to take its runs over."""
    awake = [worker for worker in field.workers() if worker.said("worker started") and not _frozen(worker.pid)]
    busiest = max(awake, key=lambda w: len(w.said("attempt begins")) - len(w.said("attempt ended")), default=None)
    if len(awake) < 2 or busiest is None or not busiest.said("phase begins", phase="train"):
        return False
    busiest.freeze()
    later(field, 2.5 * LEASE_S, busiest.thaw)
    return True


async def term_worker(field: Field, chance: random.Random) -> bool:
    worker = _victim(field, chance)
    if worker is None:
        return False
    field.ended_by_us.add(worker.pid)
    worker.terminate()
    if chance.random() < 0.3:
        later(field, 0.5, worker.terminate)
    return True


# --- supervisors and trainers -------------------------------------------------------------------------------------


async def _signalled(field: Field, chance: random.Random, number: signal.Signals, *, supervisors: bool) -> bool:
    found = await asyncio.to_thread(field.trainers, supervisors=supervisors)
    if number is signal.SIGSTOP:
        found = [marked for marked in found if not _frozen(marked.process.pid)]
    if not found:
        return False
    process = chance.choice(found).process
    process.send(number)
    if number is signal.SIGSTOP:
        later(field, long_or_short(chance), lambda: process.send(signal.SIGCONT))
    return True


async def kill_supervisor(field: Field, chance: random.Random) -> bool:
    return await _signalled(field, chance, signal.SIGKILL, supervisors=True)


async def freeze_supervisor(field: Field, chance: random.Random) -> bool:
    return await _signalled(field, chance, signal.SIGSTOP, supervisors=True)


async def term_supervisor(field: Field, chance: random.Random) -> bool:
    return await _signalled(field, chance, signal.SIGTERM, supervisors=True)


async def kill_trainer(field: Field, chance: random.Random) -> bool:
    return await _signalled(field, chance, signal.SIGKILL, supervisors=False)


async def freeze_trainer(field: Field, chance: random.Random) -> bool:
    return await _signalled(field, chance, signal.SIGSTOP, supervisors=False)


async def term_trainer(field: Field, chance: random.Random) -> bool:
    return await _signalled(field, chance, signal.SIGTERM, supervisors=False)


# --- services and wires -------------------------------------------------------------------------------------------


async def kill_postgres(field: Field, chance: random.Random) -> bool:
    if field.busy["postgres"].locked():
        return False
    await field.busy["postgres"].acquire()
    postgres = field.services.postgres
    await asyncio.to_thread(postgres.kill)

    async def start() -> None:
        await asyncio.to_thread(postgres.start)
        field.busy["postgres"].release()

    later(field, chance.choice([0.0, 0.5, 1.5, LEASE_S, 2 * LEASE_S]), start)
    return True


async def kill_broker(field: Field, chance: random.Random) -> bool:
    if field.busy["broker"].locked():
        return False
    await field.busy["broker"].acquire()
    broker = field.services.rabbitmq
    await asyncio.to_thread(broker.kill)

    async def start() -> None:
        while True:
            try:
                await asyncio.to_thread(broker.start)
                break
            except LocalServiceError:  # a crowded machine: it did not answer within its patience
                await asyncio.to_thread(broker.kill)
        field.busy["broker"].release()

    later(field, chance.choice([0.0, 0.5, 2.0]), start)
    return True


def _wire(field: Field, chance: random.Random) -> str:
    return chance.choice(["database", "database", "broker"])


async def cut(field: Field, chance: random.Random) -> bool:
    wire = field.wires[_wire(field, chance)]
    if chance.random() < 0.5:
        return wire.cut(chance.randint(1, 4)) > 0
    if field.busy["wire"].locked():
        return False
    await field.busy["wire"].acquire()
    wire.refuse()
    later(field, chance.uniform(0.2, LEASE_S), lambda: (wire.resume(), field.busy["wire"].release()))
    return True


async def delay(field: Field, chance: random.Random) -> bool:
    if field.busy["wire"].locked():
        return False
    await field.busy["wire"].acquire()
    wire = field.wires[_wire(field, chance)]
    if chance.random() < 0.4:
        wire.pause()
    else:
        wire.delay(chance.uniform(0.02, 0.4))
    later(field, chance.uniform(0.5, LEASE_S * 1.3), lambda: (wire.resume(), field.busy["wire"].release()))
    return True


async def lost_answers(field: Field, chance: random.Random) -> bool:
    """Up to five statements are done and nobody hears of it; half the time it is those that end a run or claim one."""
    wire = field.wires["database"]
    before = wire.lost_answers
    if chance.random() < 0.5:
        wire.lose_answer_to(chance.choice([b'"to_status": 4', b'"to_status": 2', b'"transition_id"']))
    else:
        wire.lose_answers(chance.randint(1, 5))
    for _ in range(40):
        await asyncio.sleep(0.05)
        if wire.lost_answers > before:
            return True
    return False


# --- messages -----------------------------------------------------------------------------------------------------


async def duplicates(field: Field, chance: random.Random) -> bool:
    """Messages of runs long over and of runs under way, several times, in another order."""
    if not field.accepted:
        return False
    again = chance.choices(list(field.accepted.values()), k=chance.randint(2, 6))
    sent = [
        await field.producer.publish(request_message(asked.run, asked.model, asked.organization), once=True)
        for asked in again
    ]
    return any(sent)


async def garbage(field: Field, chance: random.Random) -> bool:
    organization = chance.choice(list(field.organizations))
    bodies = [
        b"",
        b"\xff\xfe not json",
        b"[" * 100_000,
        b'{"run_id": "no uuid"}',
        b"{}",
        os.urandom(200),
        request_message(uuid4(), 10**12, organization).body,
        request_message(uuid4(), -5, organization).body,
    ]
    message = aio_pika.Message(
        chance.choice(bodies), content_type=chance.choice(["application/json", "text/plain"]), delivery_mode=2
    )
    if not await field.producer.publish(message, once=True):
        return False
    field.garbage_sent += 1
    return True


# --- people -------------------------------------------------------------------------------------------------------


async def _some_open_run(field: Field, chance: random.Random) -> Asked | None:
    rows = await field.database.fetch("select id from training_runs where status in (2, 3)")
    found = [field.accepted[row["id"]] for row in rows if row["id"] in field.accepted]
    return chance.choice(sorted(found, key=lambda asked: asked.at)) if found else None


async def _stopped(field: Field, asked: Asked) -> bool:
    """Cancel as the command line does; True when the answer was yes."""
    database = Database(field.world.database_url, size=1, answer_s=5)
    runs = RunStore(database, Limits(), random.random)
    try:
        answer = await runs.request_cancel(asked.run)
        if answer is None or not answer["asked"]:
            return False
        if answer["status"] == 2:
            await runs.settle(runs.moves.cancel_queued(Fence(asked.run, answer["attempt"])))
    except DatabaseAway:
        return False
    finally:
        await database.close()
    return True


async def cancel(field: Field, chance: random.Random) -> bool:
    asked = await _some_open_run(field, chance)
    if asked is None or not await _stopped(field, asked):
        return False
    asked.cancel_answered = True
    return True


async def delete(field: Field, chance: random.Random) -> bool:
    asked = await _some_open_run(field, chance)
    if asked is None:
        return False
    done = await field.database.fetch(
        "update custom_models m set deleted_at = now() from training_runs r where m.id = $1 and m.deleted_at is null"
        " and r.id = $2 and r.status in (2, 3) returning m.id",
        asked.model, asked.run,
    )  # fmt: skip
    await _stopped(field, asked)
    return bool(done)


FAULTS: Final[dict[str, Callable[[Field, random.Random], Coroutine[object, object, bool]]]] = {
    function.__name__: function
    for function in (
        kill_worker, freeze_worker, freeze_busy_worker_beyond_its_lease, kill_supervisor, freeze_supervisor, kill_trainer, freeze_trainer, kill_postgres,
        kill_broker, term_worker, term_trainer, term_supervisor, cut, delay, lost_answers, duplicates, garbage, cancel, delete,
    )
}  # fmt: skip
