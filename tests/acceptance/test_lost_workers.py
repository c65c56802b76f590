"""Runs that share their workers with one that stops every worker it meets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.acceptance.world import until

if TYPE_CHECKING:
    import uuid

    from tests.acceptance.world import World


async def test_bystanders_of_a_run_that_stops_its_worker_again_and_again_lose_no_retry(world: World) -> None:
    """As it was seen with a transcript that froze workers while they loaded it: three slots, two healthy trainings."""
    await world.started(WORKER_SLOTS="0")  # does no more than find dead leases
    victims = [await world.ask(steps=120, step_s=0.05, checkpoint_every=10) for _ in range(2)]
    poison = await world.ask(await model_that_never_loads(world))
    while await world.status(poison) != 5:
        worker = await world.started(WORKER_SLOTS="3")
        await until(lambda: all_on_a_worker(world, poison, victims), "the poison loads while the victims train")
        worker.kill()
        await until(lambda: nobody_runs(world), "all runs of the lost worker are rescued")
    row = await world.row(poison)
    assert row is not None
    assert (row["failure_code"], row["attempt"]) == ("lost_worker_repeatedly", 3)

    await world.started(WORKER_SLOTS="3")
    for victim in victims:
        row = await world.over(victim)
        assert (row["status"], row["failures"], row["attempt"]) == (4, 0, 4), dict(row)
    reasons = await world.pool.fetch(
        "select reason_code from run_transitions where run_id = $1 and from_status = 3 order by sequence", victims[0]
    )
    assert [reason for (reason,) in reasons[:3]] == ["bystander_of_lost_worker"] * 3


async def model_that_never_loads(world: World) -> tuple[int, int]:
    """Opening its transcript does not come back: a run of it stays in phase load."""
    model, owner = await world.new_model()
    address = await world.pool.fetchval(
        "select address from training_data where custom_model_id = $1 and kind = 'transcript'", model
    )
    path = Path(world.folder / "storage" / address)
    path.unlink()
    os.mkfifo(path)
    return model, owner


async def all_on_a_worker(world: World, poison: uuid.UUID, victims: list[uuid.UUID]) -> bool:
    await world.hurry()
    rows = [await world.row(run) for run in (poison, *victims)]
    return [row and (row["status"], row["phase"]) for row in rows] == [(3, "load"), *[(3, "train")] * len(victims)]


async def nobody_runs(world: World) -> bool:
    return not await world.pool.fetchval("select count(*) from training_runs where status = 3")
