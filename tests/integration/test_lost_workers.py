"""Runs of lost workers, in the database: who is counted, where they stood, and that a worker's runs are judged together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.store_support import Stage, stage_at, success
from worker.clock import Clock
from worker.domain.outcome import HandedOver
from worker.domain.run import Checkpoint, Progress
from worker.metrics import Metrics
from worker.services.rescuer import Rescuer
from worker.store.runs import Limits
from worker.store.workers import WorkerStore

if TYPE_CHECKING:
    import uuid

    from worker.domain.run import ClaimedRun

LEASE_S = 60.0


def rescuer_of(stage: Stage, metrics: Metrics | None = None) -> Rescuer:
    """Of another worker: with a store of its own."""
    return Rescuer(
        stage.store(stage.database),
        WorkerStore(stage.database),
        "rescuer",
        sweep_s=15,
        lease_s=LEASE_S,
        clock=Clock(sleep=asyncio.sleep, random=lambda: 0.5),
        metrics=metrics or Metrics(),
    )


async def in_phase(stage: Stage, run: ClaimedRun, phase: str) -> None:
    await stage.runs.record_progress([Progress(run.fence, phase, 10, None, {})])


async def with_checkpoint(stage: Stage, run: ClaimedRun, steps: int) -> None:
    checkpoint = Checkpoint(run.attempt, steps, f"runs/{run.id}/{run.attempt}/c{steps}", "0" * 64, 1, "1")
    await stage.runs.register_checkpoint(run.fence, checkpoint)


async def standing(stage: Stage, run_id: uuid.UUID) -> tuple[int, int, int, int]:
    """Failures, hand-overs, and workers that a run lost as a bystander and, at one point, as a suspect."""
    row = await stage.row(run_id)
    return row["failures"], row["hand_overs"], row["bystander_losses"], row["worker_losses"]


async def claimed_by(stage: Stage, worker: str, slots: int) -> dict[uuid.UUID, ClaimedRun]:
    stage.clock.advance(3600)
    return {run.id: run for run in await stage.claim(worker, slots, LEASE_S)}


async def test_run_that_stops_its_worker_while_loading_is_ended_after_three_and_bystanders_lose_no_retry(
    stage: Stage,
) -> None:
    poison, *victims = [await stage.queued() for _ in range(3)]
    for attempt in (1, 2, 3):
        claimed = await claimed_by(stage, f"w{attempt}", 3)
        for victim in victims:
            await in_phase(stage, claimed[victim], "train")
        stage.clock.advance(LEASE_S + 1)
        assert await rescuer_of(stage).sweep() == 3
    row = await stage.row(poison)
    assert (row["status"], row["attempt"], row["failure_class"]) == (5, 3, "lost_worker")
    assert row["failure_code"] == "lost_worker_repeatedly"
    assert [await standing(stage, victim) for victim in victims] == [(0, 0, 3, 0)] * 2
    reasons = [row["reason_code"] for row in await stage.runs.transitions(poison)]
    assert reasons[2::2] == ["lease_expired", "lease_expired", "lost_worker_repeatedly"]
    claimed = await claimed_by(stage, "w4", 3)
    for victim in victims:
        await stage.settled(claimed[victim], success())
        assert (await stage.row(victim))["status"] == 4
    await stage.books_agree()


async def test_run_alone_on_every_worker_it_loses_is_ended_after_three(stage: Stage) -> None:
    run_id = await stage.queued()
    for attempt in (1, 2, 3):
        assert (await claimed_by(stage, f"w{attempt}", 1))[run_id].attempt == attempt
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
    row = await stage.row(run_id)
    assert (row["status"], row["failure_code"], row["attempt"]) == (5, "lost_worker_repeatedly", 3)


async def test_machines_that_die_end_no_run_that_writes_a_checkpoint_or_reaches_another_phase_in_between(
    stage: Stage,
) -> None:
    run_id = await stage.queued()
    for attempt, (phase, steps) in enumerate(
        [("load", 0), ("prepare", 0), ("train", 0), ("train", 10), ("train", 20), ("evaluate", 20)], 1
    ):
        run = (await claimed_by(stage, f"w{attempt}", 1))[run_id]
        await in_phase(stage, run, phase)
        if steps:
            await with_checkpoint(stage, run, steps)
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
        assert await standing(stage, run_id) == (0, attempt, 0, 1)
    assert (await stage.row(run_id))["status"] == 2


async def test_losses_in_a_phase_that_the_run_has_passed_since_count_no_more(stage: Stage) -> None:
    """Every attempt begins with load: also one that comes after the run had trained."""
    run_id = await stage.queued()
    for attempt, reached in enumerate(["load", "load", "train", "load", "load"], 1):
        run = (await claimed_by(stage, f"w{attempt}", 1))[run_id]
        await in_phase(stage, run, reached)
        if reached == "train":
            await stage.settled(run, HandedOver())
            continue
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
    assert await standing(stage, run_id) == (0, 5, 0, 2)
    assert (await stage.row(run_id))["status"] == 2


async def test_losses_in_a_phase_are_not_forgotten_on_the_way_back_to_it(stage: Stage) -> None:
    run_id = await stage.queued()
    for attempt in (1, 2, 3):
        run = (await claimed_by(stage, f"w{attempt}", 1))[run_id]
        for phase in ("load", "prepare", "train"):
            await in_phase(stage, run, phase)
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
    row = await stage.row(run_id)
    assert (row["status"], row["failure_code"], row["lost_in_phase"]) == (5, "lost_worker_repeatedly", "train")


async def test_checkpoint_of_no_more_steps_than_before_is_no_progress(stage: Stage) -> None:
    run_id = await stage.queued()
    for attempt in (1, 2, 3):
        run = (await claimed_by(stage, f"w{attempt}", 1))[run_id]
        await in_phase(stage, run, "train")
        await with_checkpoint(stage, run, 10)
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
    assert (await stage.row(run_id))["failure_code"] == "lost_worker_repeatedly"


async def test_host_whose_eight_runs_die_with_it_fails_none_of_them(stage: Stage) -> None:
    runs = [await stage.queued() for _ in range(8)]
    for host in range(4):
        claimed = await claimed_by(stage, f"w{host}", 8)
        for run in claimed.values():
            await in_phase(stage, run, "train")
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
    assert [await standing(stage, run) for run in runs] == [(0, 4, 0, 4)] * 8
    assert {(await stage.row(run))["status"] for run in runs} == {2}


async def test_runs_of_a_worker_are_judged_together_however_late_each_was_claimed(stage: Stage) -> None:
    """The poison was claimed after the last renewal: its lease outlives the others', and they are judged with it."""
    victim = await stage.running("w1", LEASE_S)
    await in_phase(stage, victim, "train")
    stage.clock.advance(10)
    poison = await stage.running("w1", LEASE_S)
    stage.clock.advance(LEASE_S - 5)
    assert await stage.runs.orphans(10) == []
    stage.clock.advance(6)
    await rescuer_of(stage).sweep()
    assert await standing(stage, victim.id) == (0, 0, 1, 0)
    assert await standing(stage, poison.id) == (0, 1, 0, 1)


async def test_a_run_that_a_living_worker_lost_alone_is_rescued_while_the_worker_goes_on(stage: Stage) -> None:
    workers = WorkerStore(stage.database)
    await workers.sign_on("w1", "host", 1, "0", 2)
    forgotten = await stage.running("w1", LEASE_S)
    stage.clock.advance(30)
    kept = await stage.running("w1", LEASE_S)
    stage.clock.advance(31)
    assert await stage.runs.renew("w1", [kept.fence], LEASE_S) == {kept.fence: False}
    await workers.sign_of_life("w1")
    [[orphan]] = await stage.runs.orphans(10)
    assert orphan.fence == forgotten.fence
    await rescuer_of(stage).sweep()
    assert (await stage.row(kept.id))["status"] == 3
    assert await standing(stage, forgotten.id) == (0, 1, 0, 1)


async def test_a_batch_never_parts_the_runs_of_a_worker(stage: Stage) -> None:
    for worker, runs in (("w1", 3), ("w2", 2), ("w3", 1)):
        for _ in range(runs):
            await stage.running(worker, LEASE_S)
        stage.clock.advance(1)
    stage.clock.advance(LEASE_S)
    assert [len(of_one) for of_one in await stage.runs.orphans(1)] == [3]
    assert [len(of_one) for of_one in await stage.runs.orphans(4)] == [3]
    assert [len(of_one) for of_one in await stage.runs.orphans(5)] == [3, 2]
    assert [len(of_one) for of_one in await stage.runs.orphans(100)] == [3, 2, 1]


async def test_two_rescuers_at_once_count_a_loss_once_and_agree_on_the_suspect(stage: Stage) -> None:
    for _ in range(5):
        poison, victim = await stage.queued(), await stage.queued()
        claimed = await claimed_by(stage, "w1", 2)
        await in_phase(stage, claimed[victim], "train")
        stage.clock.advance(LEASE_S + 1)
        moved = await asyncio.gather(*(rescuer_of(stage).sweep() for _ in range(4)))
        assert sum(moved) == 2
        assert await standing(stage, victim) == (0, 0, 1, 0)
        assert await standing(stage, poison) == (0, 1, 0, 1)
        for run in (poison, victim):
            await stage.runs.settle(stage.runs.moves.cancel_queued(claimed[run].fence))


async def test_only_its_running_time_bounds_how_many_workers_a_bystander_may_lose(database_url: str) -> None:
    """A count would let one customer's runs end another's."""
    async with stage_at(database_url, limits=Limits(failures=1, hand_overs=2)) as stage:
        victim = await stage.queued()
        for attempt in range(1, 7):
            poison = await stage.queued()
            claimed = await claimed_by(stage, f"w{attempt}", 2)
            await in_phase(stage, claimed[victim], "train")
            assert claimed[victim].waits == 0
            stage.clock.advance(LEASE_S + 1)
            await rescuer_of(stage).sweep()
            await stage.runs.settle(stage.runs.moves.cancel_queued(claimed[poison].fence))
        assert await standing(stage, victim) == (0, 0, 6, 0)
        row = await stage.row(victim)
        assert row["status"] == 2
        assert row["ran_s"] >= 6 * LEASE_S
        [run] = await stage.claim("w9", 1, LEASE_S)
        await stage.settled(run, HandedOver())
        assert (await stage.row(victim))["status"] == 2, "and its hand-overs are still all there"


async def test_rescues_are_counted_by_what_became_of_the_run(stage: Stage) -> None:
    metrics = Metrics()
    victim = await stage.running("w1", LEASE_S)
    await in_phase(stage, victim, "train")
    await stage.running("w1", LEASE_S)
    stage.clock.advance(LEASE_S + 1)
    await rescuer_of(stage, metrics).sweep()
    for reason, counted in (("lease_expired", 1), ("bystander_of_lost_worker", 1), ("lost_worker_repeatedly", 0)):
        assert metrics.registry.get_sample_value("training_rescued_runs_total", {"reason": reason}) == counted


async def test_a_worker_that_dies_before_the_phase_is_written_is_no_progress_and_counts_on(stage: Stage) -> None:
    run_id = await stage.queued()
    for host, phase in enumerate(("train", "load", "prepare")):
        claimed = await claimed_by(stage, f"w{host}", 1)
        await in_phase(stage, claimed[run_id], phase)
        stage.clock.advance(LEASE_S + 1)
        await rescuer_of(stage).sweep()
    row = await stage.row(run_id)
    assert (row["failure_code"], row["worker_losses"], row["lost_in_phase"]) == ("lost_worker_repeatedly", 3, "train")
