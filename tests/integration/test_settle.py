"""The end of an attempt: once, by its owner, whatever happens to the answer; and what the database refuses to anybody."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest

from schemas.failures import FailureClass
from schemas.status import Gate
from tests.chaos.proxy import Proxy
from tests.messages_support import until
from tests.store_support import ClockedDatabase, Stage, stage_at, success
from worker.domain.outcome import Cancelled, Failed, HandedOver, Succeeded
from worker.domain.run import Checkpoint, Progress, Request, RunInputs
from worker.errors import DatabaseAway, DatabaseRefused, RunLost

CRASH = Failed(FailureClass.CRASHED, "signal_9", "It stopped.")
BAD_DATA = Failed(FailureClass.DATA, "too_little", "Too little.")
ENDS = [success(), Succeeded({"wer": 1}, Gate.NO_IMPROVEMENT, None), BAD_DATA, CRASH, HandedOver(), Cancelled()]
INPUTS = RunInputs(
    manifest="m", manifest_sha256="0", rows=1, base_language_id=1, base_key="en", base_weights="/base",
    base_version="1", recipe="whisper", recipe_version="1", seed=1,
)  # fmt: skip


# --- once, and only by the owner ----------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ENDS, ids=lambda outcome: type(outcome).__name__)
async def test_same_move_settled_twice_has_happened_once(stage: Stage, outcome: object) -> None:
    run = await stage.running()
    move = stage.runs.moves.after(run, outcome)
    first = await stage.runs.settle(move)
    again = await stage.runs.settle(move)
    assert first is not None
    assert first == again
    assert len(await stage.history(run.id)) == 3


async def test_a_repeat_that_waited_for_its_own_first_sending_has_succeeded(stage: Stage) -> None:
    """The connection breaks while the statement waits for a lock; the server goes on with it."""
    run = await stage.running()
    move = stage.runs.moves.after(run, success())
    async with Proxy(stage.url) as proxy:
        database = ClockedDatabase(proxy.url, stage.clock, size=1, answer_s=10)
        holder = await asyncpg.connect(stage.url)
        try:
            await holder.execute("begin; select from base_languages for no key update")
            sending = asyncio.create_task(stage.store(database).settle(move))
            await until(lambda: _waiting_for_a_lock(stage, 1), "the first sending waits")
            proxy.cut()
            with pytest.raises(DatabaseAway):
                await sending
            again = asyncio.create_task(stage.runs.settle(move))
            await until(lambda: _waiting_for_a_lock(stage, 2), "its repeat waits behind it")
            await holder.execute("commit")
            settled = await again
            assert settled is not None
            assert settled.status == 4
        finally:
            await holder.close()
            await database.close()


async def _waiting_for_a_lock(stage: Stage, sessions: int) -> bool:
    row = await stage.database.fetch_row(
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    return row is not None and row["n"] >= sessions


async def test_what_is_wrong_with_one_end_harms_no_other(stage: Stage) -> None:
    runs = [await stage.running(f"w{n}") for n in range(4)]
    moves = [stage.runs.moves.after(run, success(f"runs/{run.id}/1/export")) for run in runs]
    moves[0].fields["figures"] = {"wer_custom": float("nan")}
    ends = await asyncio.gather(*(stage.runs.settle(move) for move in moves), return_exceptions=True)
    assert isinstance(ends[0], DatabaseRefused)
    assert [(await stage.row(run.id))["status"] for run in runs] == [3, 4, 4, 4]


async def test_a_trainers_last_output_may_hold_what_postgres_cannot_keep(stage: Stage) -> None:
    run = await stage.running()
    nul = Failed(FailureClass.OUT_OF_MEMORY, "killed_for_memory", "No memory.", "last output: \0\0 Killed, \\u0000")
    assert await stage.settled(run, nul) is not None
    row = await stage.row(run.id)
    assert row["failure_class"] == "out_of_memory"
    assert row["failure_detail"].startswith("last output: \ufffd\ufffd Killed")


async def test_another_id_after_the_end_is_a_lost_run(stage: Stage) -> None:
    run = await stage.running()
    await stage.settled(run, success())
    assert await stage.settled(run, CRASH) is None
    assert (await stage.row(run.id))["status"] == 4


async def test_late_end_of_an_earlier_attempt_changes_nothing(stage: Stage) -> None:
    run = await stage.running()
    await stage.settled(run, HandedOver())
    [second] = await stage.claim("w2", 1)
    assert await stage.settled(run, success()) is None
    row = await stage.row(run.id)
    assert (row["status"], row["attempt"], row["worker_id"]) == (3, 2, "w2")
    assert second.attempt == 2


async def test_end_by_the_last_claimant_is_valid_after_its_lease_has_died(stage: Stage) -> None:
    """The fence is (run, attempt), never the lease's time."""
    run = await stage.running(lease_s=10)
    stage.clock.advance(3600)
    assert (await stage.settled(run, success())) is not None
    assert (await stage.row(run.id))["status"] == 4


@pytest.mark.parametrize("outcome", [success(), CRASH, HandedOver()], ids=["success", "crash", "handed_over"])
async def test_answer_lost_on_the_wire_is_found_by_asking_again(stage: Stage, outcome: object) -> None:
    run = await stage.running()
    move = stage.runs.moves.after(run, outcome)
    async with Proxy(stage.url) as proxy:
        database = ClockedDatabase(proxy.url, stage.clock, size=1, answer_s=5)
        store = stage.store(database)
        try:
            proxy.lose_answer_to(str(move.transition_id).encode())
            with pytest.raises(DatabaseAway):
                await store.settle(move)
            settled = await store.settle(move)
        finally:
            await database.close()
        assert proxy.lost_answers == 1
    assert settled is not None
    row = await stage.row(run.id)
    assert (row["status"], row["sequence"]) == (settled.status, 3)
    assert len(await stage.database.fetch("select from model_versions")) == (row["status"] == 4)
    assert len(await stage.database.fetch("select from outbox where run_id = $1", run.id)) == 3
    await stage.books_agree()


async def test_many_settle_in_one_statement_each_with_its_own_end(stage: Stage) -> None:
    runs = []
    for _ in range(12):
        await stage.queued(await stage.organization(f"o{len(runs) % 3}"))
        runs += await stage.claim("w1", 1)
    await stage.settled(runs[0], success())  # lost to whoever settles it again below
    ended = await asyncio.gather(*(stage.settled(run, ENDS[n % len(ENDS)]) for n, run in enumerate(runs)))
    assert ended[0] is None
    assert all(ended[1:])
    await stage.books_agree()


async def test_success_publishes_exactly_one_version_of_exactly_this_attempt(stage: Stage) -> None:
    run = await stage.running()
    await stage.settled(run, success("runs/r/1/export"))
    [version] = await stage.database.fetch("select * from model_versions")
    [model] = await stage.database.fetch("select * from custom_models where id = $1", run.custom_model_id)
    assert (version["run_id"], version["attempt"], version["address"]) == (run.id, 1, "runs/r/1/export")
    assert model["published_version_id"] == version["id"]
    assert model["training_status"] == 4


async def test_model_refused_by_the_gate_publishes_nothing(stage: Stage) -> None:
    run = await stage.running()
    await stage.settled(run, Succeeded({"wer": 1}, Gate.NO_IMPROVEMENT, None))
    assert (await stage.row(run.id))["status"] == 4
    assert await stage.database.fetch("select from model_versions") == []


@pytest.mark.parametrize("outcome", ENDS, ids=lambda outcome: type(outcome).__name__)
async def test_cancel_that_was_asked_for_beats_every_end(stage: Stage, outcome: object) -> None:
    run = await stage.running()
    asked = await stage.runs.request_cancel(run.id)
    assert asked["asked"]
    await stage.settled(run, outcome)
    row = await stage.row(run.id)
    assert (row["status"], row["failure_class"], row["gate"]) == (1, "cancelled", None)
    assert await stage.database.fetch("select from model_versions") == []
    await stage.books_agree()


async def test_success_of_a_deleted_model_publishes_nothing(stage: Stage) -> None:
    run = await stage.running()
    await stage.database.execute("update custom_models set deleted_at = now() where id = $1", run.custom_model_id)
    await stage.settled(run, success())
    assert (await stage.row(run.id))["status"] == 1
    assert await stage.database.fetch("select from model_versions") == []


async def test_cancel_in_every_status(stage: Stage) -> None:
    queued = await stage.queued()
    answer = await stage.runs.request_cancel(queued)
    assert (answer["status"], answer["asked"]) == (2, True)
    [claimed] = await stage.claim("w1", 1)
    assert claimed.cancel_requested  # claimed between the request and its end: the owner is told with the claim
    await stage.settled(claimed, Cancelled())
    assert (await stage.row(queued))["status"] == 1
    over = await stage.runs.request_cancel(queued)
    assert (over["status"], over["asked"]) == (1, False)
    for outcome in (success(), BAD_DATA):
        run = await stage.running()
        await stage.settled(run, outcome)
        assert not (await stage.runs.request_cancel(run.id))["asked"]
    assert await stage.runs.request_cancel(uuid.uuid4()) is None


async def test_cancel_of_a_queued_run_is_one_guarded_move(stage: Stage) -> None:
    run_id = await stage.queued()
    answer = await stage.runs.request_cancel(run_id)
    from worker.domain.run import Fence  # noqa: PLC0415

    settled = await stage.runs.settle(stage.runs.moves.cancel_queued(Fence(run_id, answer["attempt"])))
    assert settled is not None
    assert settled.status == 1
    assert await stage.history(run_id) == [(None, 2), (2, 1)]
    assert await stage.claim("w1", 1) == []


async def test_too_many_hand_overs_become_a_failure(database_url: str) -> None:
    from worker.store.runs import Limits  # noqa: PLC0415

    async with stage_at(database_url, limits=Limits(failures=1, hand_overs=2)) as stage:
        run_id = await stage.queued()
        for _ in range(3):
            [run] = await stage.claim("w1", 1)
            await stage.settled(run, HandedOver())
        row = await stage.row(run_id)
        assert (row["status"], row["failure_class"], row["failure_code"]) == (5, "lost_worker", "too_many_hand_overs")


# --- every write of an owner goes through the fence ---------------------------------------------------------------


async def test_every_write_after_the_claim_is_refused_to_a_former_owner(stage: Stage) -> None:
    run = await stage.running()
    await stage.runs.fix_inputs(run.fence, INPUTS)
    await stage.settled(run, HandedOver())
    [second] = await stage.claim("w2", 1)
    fence = run.fence
    for write in (
        lambda: stage.runs.fix_inputs(fence, INPUTS),
        lambda: stage.runs.follow_recipe(fence, {"recipe_version": "2"}),
        lambda: stage.runs.record_log(fence, "log"),
        lambda: stage.runs.record_data_report(fence, {}),
        lambda: stage.runs.register_checkpoint(fence, Checkpoint(1, 5, "a", "b", 1, "1")),
        lambda: stage.runs.store_step_output(fence, "key", "train", "a", "b", 1, {}),
    ):
        with pytest.raises(RunLost):
            await write()
    await stage.runs.record_progress([Progress(fence, "train", 77, None, {})])
    assert (await stage.row(run.id))["percent"] == 0
    assert await stage.runs.renew("w1", [fence], 60) == {}
    assert await stage.runs.renew("w1", [second.fence], 60) == {}  # not w1's
    assert await stage.runs.renew("w2", [second.fence], 60) == {second.fence: False}


async def test_inputs_are_those_of_the_first_claim(stage: Stage) -> None:
    run = await stage.running()
    await stage.runs.fix_inputs(run.fence, INPUTS)
    await stage.settled(run, HandedOver())
    [second] = await stage.claim("w2", 1)
    later = INPUTS.model_copy(update={"manifest": "another"})
    assert second.inputs == INPUTS
    assert await stage.runs.fix_inputs(second.fence, later) == INPUTS


async def test_of_the_inputs_only_what_depends_on_the_recipe_follows_another_version_of_it(stage: Stage) -> None:
    run = await stage.running()
    await stage.runs.fix_inputs(run.fence, INPUTS)
    settled = {"recipe_version": "2", "parameters": {"epochs": 3}, "seed": 5}
    await stage.runs.follow_recipe(run.fence, settled)
    assert await stage.runs.fix_inputs(run.fence, INPUTS) == INPUTS.model_copy(update=settled)
    with pytest.raises(DatabaseRefused, match="fixed at its first claim"):
        await stage.runs.follow_recipe(run.fence, {"base_version": "2"})


# --- registered once ----------------------------------------------------------------------------------------------


async def test_request_registered_by_many_at_once_is_one_run(stage: Stage) -> None:
    owner = await stage.organization()
    request = Request(uuid.uuid4(), await stage.model(owner), owner, stage.clock.now)
    stores = [stage.store(stage.database) for _ in range(8)]
    made = await asyncio.gather(*(store.register([request]) for store in stores))
    assert sorted(made) == [[False]] * 7 + [[True]]
    assert await stage.history(request.run_id) == [(None, 2)]


async def test_two_runs_of_one_model_asked_for_at_once_become_one(stage: Stage) -> None:
    owner = await stage.organization()
    model = await stage.model(owner)
    requests = [Request(uuid.uuid4(), model, owner, stage.clock.now) for _ in range(8)]
    made = await asyncio.gather(*(stage.store(stage.database).register([request]) for request in requests))
    assert sorted(made) == [[False]] * 7 + [[True]]
    told = await stage.runs.explain(requests)
    assert len({row["active_run_id"] for row in told.values()}) == 1


# --- what no writer can do ----------------------------------------------------------------------------------------


async def _refused(stage: Stage, statement: str, *arguments: object) -> str:
    connection = await asyncpg.connect(stage.url)
    try:
        with pytest.raises(asyncpg.PostgresError) as error:
            async with connection.transaction():
                await connection.execute(statement, *arguments)
        return str(error.value)
    finally:
        await connection.close()


async def test_database_refuses_every_illegal_transition_to_any_writer(stage: Stage) -> None:
    legal = {(2, 3), (3, 4), (3, 5), (3, 2), (2, 5), (2, 1), (3, 1)}
    for start in range(1, 6):
        for end in range(1, 6):
            if start == end or (start, end) in legal:
                continue
            run_id = await _run_in(stage, start)
            told = await _refused(
                stage,
                "update training_runs set status = $2::int, sequence = sequence + 1, ended_at = case when $2::int in (1, 4, 5)"
                " then now() end, worker_id = case when $2::int = 3 then 'x' end, lease_expires_at = case when $2::int = 3"
                " then now() end, figures = '{}', gate = 'published', failure_class = 'bug', failure_reason = 'x' where id = $1",
                run_id,
                end,
            )
            assert f"illegal transition {start} to {end}" in told


async def _run_in(stage: Stage, status: int) -> uuid.UUID:
    if status == 2:
        return await stage.queued()
    run_id = await stage.queued()
    run = next(run for run in await stage.claim("w1", 99) if run.id == run_id)
    outcome = {1: Cancelled(), 4: success(), 5: BAD_DATA}.get(status)
    if outcome is not None:
        await stage.settled(run, outcome)
    return run_id


async def test_database_refuses_a_move_without_its_history(stage: Stage) -> None:
    run_id = await stage.queued()
    told = await _refused(
        stage,
        "update training_runs set status = 1, sequence = 2, ended_at = now(), failure_class = 'cancelled' where id = $1",
        run_id,
    )
    assert "move_is_in_history" in told


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("status = 5, sequence = 3, failure_class = 'bug', failure_reason = 'x', worker_id = null, lease_expires_at = null", "over_has_an_end"),
        ("status = 4, sequence = 3, ended_at = now(), worker_id = null, lease_expires_at = null", "success_has_figures"),
        ("status = 5, sequence = 3, ended_at = now(), worker_id = null, lease_expires_at = null", "failed_has_a_reason"),
        ("status = 4, sequence = 3, ended_at = now(), figures = '{}', gate = 'published'", "running_has_an_owner"),
        ("ended_at = now()", "over_has_an_end"),
        ("worker_id = null", "running_has_an_owner"),
        ("attempt = attempt + 1", "attempt grows by one with each claim"),
        ("attempt = attempt - 1", "attempt grows by one with each claim"),
        ("sequence = 9", "sequence counts transitions only"),
        ("organization_id = 77", "whose run it is never changes"),
    ],
)  # fmt: skip
async def test_database_refuses_nonsense_to_any_writer(stage: Stage, change: str, constraint: str) -> None:
    run = await stage.running()
    assert constraint in await _refused(stage, f"update training_runs set {change} where id = $1", run.id)


async def test_database_refuses_two_active_runs_and_strangers(stage: Stage) -> None:
    run_id = await stage.queued()
    row = await stage.row(run_id)
    insert = (
        "insert into training_runs (id, custom_model_id, organization_id, base_language_id, requested_at{more})"
        " select gen_random_uuid(), $1, $2, $3, now(){values}"
    )
    own = (row["custom_model_id"], row["organization_id"], row["base_language_id"])
    assert "one_active_run_per_model" in await _refused(stage, insert.format(more="", values=""), *own)
    stranger = await stage.organization("stranger")
    told = await _refused(stage, insert.format(more="", values=""), own[0], stranger, own[2])
    assert "foreign key" in told or "one_active_run" in told
    begun = insert.format(
        more=", status, worker_id, lease_expires_at, attempt, started_at", values=", 3, 'x', now(), 1, now()"
    )
    assert "begins READY_TO_RUN" in await _refused(stage, begun, *own)


async def test_history_is_append_only_in_order_and_without_repeats(stage: Stage) -> None:
    run = await stage.running()
    [first, *_] = await stage.runs.transitions(run.id)
    insert = "insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt) values ($1, $2, $3, $4, $5, 1)"
    assert "run_transitions_id_key" in await _refused(stage, insert, first["id"], run.id, 3, 3, 4)
    assert "run_transitions_pkey" in await _refused(stage, insert, uuid.uuid4(), run.id, 2, 2, 3)
    assert "legal_move" in await _refused(stage, insert, uuid.uuid4(), run.id, 3, 4, 2)
