"""Requests and free slots meet in one transaction; whatever becomes of its answer, what was claimed begins once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.chaos.proxy import Proxy
from tests.messages_support import until
from tests.store_support import ClockedDatabase, Stage
from worker.clock import Clock
from worker.domain.run import Request
from worker.errors import DatabaseAway, DatabaseRefused
from worker.metrics import Metrics
from worker.pipeline.heartbeat import Heartbeat
from worker.services.dispatcher import Dispatcher
from worker.store.workers import WorkerStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.domain.run import ClaimedRun
    from worker.store.runs import RunStore


class Slow:
    """A runner whose runs last until the test lets them end."""

    def __init__(self) -> None:
        self.begun: list[ClaimedRun] = []
        self.let_go = asyncio.Event()

    async def run(self, run: ClaimedRun, _claimed_at: float) -> None:
        self.begun.append(run)
        await self.let_go.wait()


Make = Callable[..., Dispatcher]


@pytest.fixture
def runner() -> Slow:
    return Slow()


@pytest.fixture
async def make(stage: Stage, runner: Slow) -> AsyncIterator[Make]:
    """Makes dispatchers; those that run are stopped."""

    def one(slots: int, runs: RunStore | None = None) -> Dispatcher:
        clock, metrics, store = Clock(random=lambda: 0.5), Metrics(), runs or stage.runs
        heartbeat = Heartbeat(
            store, WorkerStore(stage.database), "w1",
            renew_s=10, lease_s=60, pause_s=40, clock=clock, metrics=metrics,
        )  # fmt: skip
        return Dispatcher(
            store, runner, heartbeat,  # type: ignore[arg-type] # what it does with a run is not asked here
            worker_id="w1", slots=slots, lease_s=60, poll_s=0.2, clock=clock, metrics=metrics,
        )  # fmt: skip

    yield one
    runner.let_go.set()


async def asked(stage: Stage, count: int = 1) -> list[Request]:
    owner = await stage.organization()
    return [Request(uuid.uuid4(), await stage.model(owner), owner, stage.clock.now) for _ in range(count)]


async def status(stage: Stage, request: Request) -> int:
    row = await stage.runs.by_id(request.run_id)
    assert row is not None
    return int(row["status"])


async def test_a_request_that_need_not_wait_runs_with_the_commit_that_made_it(stage, make, runner):
    [request] = await asked(stage)
    assert await make(1).take_in([request]) == [True]
    await until(lambda: runner.begun)
    assert await stage.history(request.run_id) == [(None, 2), (2, 3)]
    transactions = await stage.database.fetch("select distinct xmin::text from run_transitions")
    assert len(transactions) == 1


async def test_requests_beyond_the_free_slots_wait_and_a_repeat_makes_nothing(stage, make, runner):
    requests = await asked(stage, 3)
    dispatcher = make(2)
    assert await dispatcher.take_in([*requests, requests[0]]) == [True, True, True, False]
    assert await dispatcher.take_in(requests) == [False, False, False]
    await until(lambda: len(runner.begun) == 2)
    assert sorted([await status(stage, request) for request in requests]) == [2, 3, 3]


async def test_slots_are_never_asked_for_twice(stage, make, runner):
    stop, dispatcher = asyncio.Event(), make(3)
    dispatching = asyncio.create_task(dispatcher.run(stop))
    batches = [await asked(stage, 2) for _ in range(6)]
    await asyncio.gather(*(dispatcher.take_in(batch) for batch in batches))
    await until(lambda: len(runner.begun) == 3)
    for _ in range(5):
        dispatcher.ring()
        await asyncio.sleep(0.02)
    assert len(runner.begun) == 3
    runner.let_go.set()
    await until(lambda: len(runner.begun) == 12)
    stop.set()
    await dispatching


async def test_what_was_claimed_by_a_commit_whose_answer_was_lost_begins_once(stage, make, runner):
    async with Proxy(stage.url) as proxy:
        database = ClockedDatabase(proxy.url, stage.clock, size=2, answer_s=5)
        dispatcher, stop = make(2, stage.store(database)), asyncio.Event()
        first, second = await asked(stage, 2)
        try:
            await dispatcher.take_in([first])  # the statements are prepared now
            proxy.lose_answer_to(b"commit")
            with pytest.raises(DatabaseAway):
                await dispatcher.take_in([second])
            assert proxy.lost_answers == 1
            dispatching = asyncio.create_task(dispatcher.run(stop))
            await until(lambda: len(runner.begun) == 2, "the run that nobody heard of")
            assert await dispatcher.take_in([second]) == [False]
            assert [(run.id, run.attempt) for run in runner.begun] == [(first.run_id, 1), (second.run_id, 1)]
            stop.set()
            await dispatching
        finally:
            await database.close()


async def test_a_claim_that_the_server_finishes_after_its_connection_broke_begins_too(stage, make, runner):
    run_id = await stage.queued()
    async with Proxy(stage.url) as proxy:
        database = ClockedDatabase(proxy.url, stage.clock, size=2, answer_s=5)
        dispatcher, stop = make(2, stage.store(database)), asyncio.Event()
        holder = await asyncpg.connect(stage.url)
        try:
            await holder.execute("begin; select from base_languages for no key update")
            dispatching = asyncio.create_task(dispatcher.run(stop))
            await until(lambda: _waits_for_a_lock(stage), "the claim waits")
            proxy.cut()
            await until(lambda: dispatcher._unheard and not dispatcher._asked, "it seems to have taken nothing")
            await holder.execute("commit")
            await until(lambda: [run.id for run in runner.begun] == [run_id], "it is begun all the same")
            stop.set()
            await dispatching
        finally:
            await holder.close()
            await database.close()


async def _waits_for_a_lock(stage: Stage) -> bool:
    row = await stage.database.fetch_row(
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    return row is not None and row["n"] > 0


async def test_a_caller_that_goes_away_in_the_middle_leaves_no_claim_behind(stage, make, runner, monkeypatch):
    [request] = await asked(stage)
    dispatcher, stop, sent, answer = make(1), asyncio.Event(), asyncio.Event(), asyncio.Event()
    register_and_claim = stage.runs.register_and_claim

    async def slowly(*arguments: Any) -> Any:
        sent.set()
        await answer.wait()
        return await register_and_claim(*arguments)

    monkeypatch.setattr(stage.runs, "register_and_claim", slowly)
    caller = asyncio.create_task(dispatcher.take_in([request]))
    await sent.wait()
    caller.cancel()
    dispatching = asyncio.create_task(dispatcher.run(stop))
    stop.set()
    answer.set()
    await dispatching
    await until(lambda: [run.id for run in runner.begun] == [request.run_id])


async def test_a_dispatcher_that_has_stopped_takes_requests_in_and_claims_nothing(stage, make, runner):
    dispatcher, stop = make(1), asyncio.Event()
    stop.set()
    await dispatcher.run(stop)
    [request] = await asked(stage)
    assert await dispatcher.take_in([request]) == [True]
    assert await status(stage, request) == 2
    assert runner.begun == []


async def test_a_refused_registration_gives_its_slots_back(stage, make, runner):
    await stage.database.execute("alter table run_transitions rename to hidden")
    dispatcher = make(1)
    [request] = await asked(stage)
    with pytest.raises(DatabaseRefused):
        await dispatcher.take_in([request])
    await stage.database.execute("alter table hidden rename to run_transitions")
    assert await dispatcher.take_in([request]) == [True]
    await until(lambda: runner.begun)


async def test_a_worker_that_is_stopped_in_the_middle_holds_nobody_up_for_long(stage):
    owner = await stage.organization()
    other = ClockedDatabase(stage.url, stage.clock, size=1)
    lock, got = "select id from organizations where id = $1 for no key update", None

    async def stopped() -> None:
        nonlocal got
        async with stage.database.brief_transaction() as connection:
            await connection.execute(lock, owner)
            # a stopped process says nothing: the other one gets the lock because the server takes it from us
            got = await other.fetch_row(lock, owner)

    with pytest.raises(DatabaseAway):
        await stopped()
    assert got is not None
    await other.close()
