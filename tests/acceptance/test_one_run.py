"""A whole worker, one run: from the message to the published model, and whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.world import publish_request, until
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from tests.acceptance.world import World

SLOW_TRAINING = {"steps": 60, "step_s": 0.05, "checkpoint_every": 5}
TO_SUCCESS = b'"to_status": 4'


async def test_message_becomes_a_published_model(world: World) -> None:
    worker = await world.started()
    run = await world.ask(steps=5, checkpoint_every=2)
    row = await world.over(run)
    assert row["status"] == 4, (dict(row), worker.tail())
    assert row["gate"] == "published"
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 4)]
    [version] = await world.pool.fetch("select * from model_versions")
    assert (version["run_id"], version["attempt"]) == (run, 1)
    assert (world.folder / "storage" / version["address"] / "weights.bin").is_file()
    assert (world.folder / "storage" / row["log_address"]).is_file()
    assert [line["step"] for line in world.witnessed(run) if line["what"] == "start"] == [
        "prepare", "train", "evaluate", "export",
    ]  # fmt: skip
    worker.terminate()
    assert await worker.exit_code() == 0
    assert world.trainers(run) == []


async def test_every_step_is_told_the_language_of_the_base_as_it_was_when_the_run_began(world: World) -> None:
    await world.pool.execute("update base_languages set language = 'de' where id = $1", world.base)
    await world.started()
    run = await world.ask(fake={"train": {"1": "crash"}}, steps=2)
    await until(
        lambda: world.pool.fetchval("select inputs is not null from training_runs where id = $1", run), "fixed inputs"
    )
    await world.pool.execute("update base_languages set language = 'en' where id = $1", world.base)
    assert (await world.over(run))["status"] == 4
    begun = [(line["step"], line["language"]) for line in world.witnessed(run) if line["what"] == "start"]
    assert {step for step, _ in begun} == {"prepare", "train", "evaluate", "export"}
    assert {language for _, language in begun} == {"de"}


async def test_message_delivered_several_times_is_one_run(world: World) -> None:
    await world.started()
    run, model = uuid.uuid4(), await world.new_model()
    await publish_request(world.amqp_url, run, *model, times=3)
    assert (await world.over(run))["status"] == 4
    await publish_request(world.amqp_url, run, *model, times=2)
    other = await world.ask()
    await world.over(other)
    assert await world.pool.fetchval("select count(*) from training_runs") == 2
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 4)]


async def test_killed_trainer_is_a_crash_and_the_next_attempt_resumes_from_its_checkpoint(world: World) -> None:
    await world.started()
    run = await world.ask(**SLOW_TRAINING)
    await until(
        lambda: world.pool.fetchval("select count(*) >= 2 from run_checkpoints where run_id = $1", run),
        "two checkpoints",
    )
    os.kill(await world.trainer_of(run, "train"), signal.SIGKILL)
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 1)
    reasons = await world.pool.fetch("select reason_code from run_transitions where run_id = $1 order by sequence", run)
    assert reasons[2]["reason_code"] == "signal_9"
    resumed_at = next(line["n"] for line in world.witnessed(run) if line["attempt"] == 2 and line["what"] == "step")
    assert resumed_at > 10
    assert world.overlaps() == []


async def test_trainer_of_a_killed_worker_dies_and_another_worker_finishes_the_run(world: World) -> None:
    first = await world.started()
    run = await world.ask(**SLOW_TRAINING)
    await world.trainer_of(run, "train")
    first.kill()
    await until(lambda: not world.trainers(run), "the killed worker's trainer is gone", 5)
    await world.started()
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 2, 0), "nobody is charged for a worker that died"
    assert world.overlaps() == []


async def test_trainer_of_a_frozen_worker_pauses_and_the_thawed_worker_writes_nothing(world: World) -> None:
    first = await world.started()
    run = await world.ask(**SLOW_TRAINING)
    await world.trainer_of(run, "train")
    first.freeze()
    await until(lambda: all(process.state in "tT" for process in world.trainers(run)), "its trainer stands still", 5)
    second = await world.started()
    row = await world.over(run)
    assert (row["status"], row["attempt"]) == (4, 2)
    first.thaw()
    await until(lambda: first.said("run lost: another attempt or a cancel owns it"), "the thawed worker notices")
    await until(lambda: not world.trainers(run), "nothing of the run is left")
    assert dict(await world.row(run)) == dict(row)
    assert world.overlaps() == []
    assert first.alive
    assert second.alive


async def test_trainer_of_a_worker_frozen_for_less_than_its_lease_goes_on_in_the_same_attempt(world: World) -> None:
    worker = await world.started(WORKER_LEASE_S="30", WORKER_PAUSE_S="2")
    run = await world.ask(**SLOW_TRAINING)
    await world.trainer_of(run, "train")
    worker.freeze()
    await until(lambda: all(process.state in "tT" for process in world.trainers(run)), "its trainer stands still", 10)
    worker.thaw()
    row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"]) == (4, 1, 0)


async def test_garbage_on_the_event_descriptor_harms_nobody(world: World) -> None:
    worker = await world.started()
    run = await world.ask(fake={"train": "garbage", "evaluate": "long_line"})
    assert (await world.over(run))["status"] == 4
    assert worker.alive


async def test_nothing_but_garbage_is_our_bug_and_not_the_workers_end(world: World) -> None:
    worker = await world.started(WORKER_FAILURE_LIMIT="1")
    run = await world.ask(fake={"train": "garbage_flood"})
    row = await world.over(run)
    assert (row["status"], row["failure_class"], row["failure_code"]) == (5, "bug", "event_garbage")
    assert worker.alive


async def test_database_away_during_the_terminal_write_costs_a_delay_only(world: World) -> None:
    async with Proxy(world.database_url) as proxy:
        await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_SLOTS="1")
        proxy.refuse_at(TO_SUCCESS)
        run = await world.ask()
        await asyncio.wait_for(proxy.refused_one.wait(), 30)
        assert await world.status(run) == 3
        proxy.resume()
        row = await world.over(run)
    assert (row["status"], row["attempt"]) == (4, 1)
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 4)]


async def test_database_away_for_three_leases_during_the_terminal_write_still_ends_in_success(world: World) -> None:
    async with Proxy(world.database_url) as proxy:
        await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_SLOTS="1")
        proxy.refuse_at(TO_SUCCESS)
        run = await world.ask()
        await asyncio.wait_for(proxy.refused_one.wait(), 30)
        await asyncio.sleep(9)
        proxy.resume()
        row = await world.over(run)
    assert (row["status"], row["attempt"]) == (4, 1)


async def test_outage_longer_than_a_paused_trainer_is_kept_is_no_failure_of_the_run(world: World) -> None:
    async with Proxy(world.database_url) as proxy:
        await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_PATIENCE_S="1")
        run = await world.ask(**SLOW_TRAINING)
        await world.trainer_of(run, "train")
        proxy.refuse()
        await until(lambda: not world.trainers(run), "the paused trainer is ended")
        proxy.resume()
        row = await world.over(run)
    assert (row["status"], row["attempt"], row["failures"], row["hand_overs"]) == (4, 2, 0, 1), dict(row)


async def test_answer_lost_to_the_terminal_commit_is_a_success(world: World) -> None:
    async with Proxy(world.database_url) as proxy:
        worker = await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_SLOTS="1")
        proxy.lose_answer_to(TO_SUCCESS)
        run = await world.ask()
        row = await world.over(run)
        await until(lambda: worker.said("attempt ended", to="SUCCESS"), "the worker has heard of its success")
        assert proxy.lost_answers == 1
    assert (row["status"], row["attempt"]) == (4, 1)
    assert await world.pool.fetchval("select count(*) from model_versions") == 1
    assert await world.moves(run) == [(None, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("lost", range(1, 12))
async def test_any_answer_lost_on_the_way_changes_nothing(world: World, lost: int) -> None:
    """The n-th statement after the request loses its answer, whatever it is: claim, progress, outbox, checkpoint."""
    async with Proxy(world.database_url) as proxy:
        await world.started(WORKER_DATABASE_URL=proxy.url, WORKER_SLOTS="1")
        run = await world.ask(steps=8, step_s=0.05, checkpoint_every=2)
        await asyncio.sleep(0.12 * (lost - 1))
        proxy.lose_answers(2)
        row = await world.over(run)
    assert (row["status"], row["failures"]) == (4, 0), dict(row)
    assert await world.pool.fetchval("select count(*) from model_versions") == 1
    assert world.overlaps() == []


async def test_step_that_says_more_than_it_left_is_not_believed(world: World) -> None:
    await world.started(WORKER_FAILURE_LIMIT="1")
    run = await world.ask(fake={"train": "lies"})
    row = await world.over(run)
    assert (row["status"], row["failure_class"], row["failure_code"]) == (5, "bug", "artifact_differs")


async def test_grandchildren_that_change_their_session_end_with_the_run(world: World) -> None:
    await world.started()
    run = await world.ask(fake={"train": "setsid_grandchild"}, steps=20)
    assert (await world.over(run))["status"] == 4
    await until(lambda: not world.trainers(run), "no grandchild is left")
