# ruff: noqa: ASYNC240, E501 - /proc answers at once
"""What one run asks of Postgres and one worker of its host: ``python -m deploy.capacity.measure``.

Needs the tests' services (TEST_AMQP_URL, TEST_MANAGEMENT_URL, TEST_DATABASE_URL, see tests/run.sh); trains nothing: the
whole pipeline with the tests' fake recipe, and the orchestration alone with the launcher noop.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from deploy.local.postgres import create_database, drop_database
from deploy.local.rabbitmq import create_vhost, delete_vhost
from tests.acceptance.world import World, until, world_at
from worker.store.migrations import migrate

RUNS = {"local": 24, "noop": 400}


async def counted(world: World) -> tuple[int, int]:
    """Transactions committed in this database, and bytes of what grows with runs."""
    await asyncio.sleep(1.5)  # Postgres tells its statistics once a second
    commits = await world.pool.fetchval("select xact_commit from pg_stat_database where datname = current_database()")
    size = await world.pool.fetchval(
        "select sum(pg_total_relation_size(t::regclass)) from unnest(array['training_runs', 'run_transitions',"
        " 'run_checkpoints', 'model_versions', 'step_outputs', 'outbox']) t"
    )
    return int(commits), int(size)


def memory_bytes(pid: int) -> int:
    """Proportional share of memory of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


async def measured(world: World, launcher: str) -> dict[str, Any]:
    """One worker, all runs asked for at once."""
    models = [await world.new_model() for _ in range(RUNS[launcher])]
    worker = await world.started(WORKER_LAUNCHER=launcher, WORKER_SLOTS="8" if launcher == "local" else "64")
    await asyncio.sleep(4)  # what was made above is told, the first looks are over
    begin_commits, begin_bytes = await counted(world)
    idle_from = time.monotonic()
    await asyncio.sleep(10)
    idle_commits, _ = await counted(world)
    idle_a_second = (idle_commits - begin_commits) / (time.monotonic() - idle_from)
    began = time.monotonic()
    ticks = sum(map(int, Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").split()[13:15]))
    for model in models:
        await world.ask(model)

    async def over() -> bool:
        return await world.pool.fetchval("select count(*) from training_runs where status = 4") >= RUNS[launcher]

    await until(over, "all runs are over", 300)
    took_s = time.monotonic() - began
    cpu_s = (sum(map(int, Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").split()[13:15])) - ticks) / 100
    end_commits, end_bytes = await counted(world)
    connections = await world.pool.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'training-%'"
    )
    return {
        "launcher": launcher,
        "runs": RUNS[launcher],
        "transactions_a_run": round((end_commits - idle_commits - idle_a_second * (took_s + 1.5)) / RUNS[launcher], 1),
        "transactions_a_second_idle": round(idle_a_second, 1),
        "bytes_a_run": round((end_bytes - begin_bytes) / RUNS[launcher]),
        "worker_cpu_s_a_run": round(cpu_s / RUNS[launcher], 4),
        "worker_memory_mib": round(memory_bytes(worker.pid) / 2**20),
        "connections": connections,
        "seconds": round(took_s, 1),
    }


async def main() -> None:
    """Measure and print one JSON line for each launcher."""
    for launcher in RUNS:
        name = f"capacity_{uuid.uuid4().hex[:8]}"
        url = await create_database(os.environ["TEST_DATABASE_URL"], name)
        await migrate(url)
        create_vhost(os.environ["TEST_MANAGEMENT_URL"], name)
        amqp = os.environ["TEST_AMQP_URL"].rsplit("/", 1)[0] + "/" + name
        try:
            with tempfile.TemporaryDirectory() as folder:
                # The intervals that installations use, not the tests' short ones.
                usual = {"WORKER_RENEW_S": "15", "WORKER_LEASE_S": "60", "WORKER_PAUSE_S": "45", "WORKER_SWEEP_S": "15",
                         "WORKER_POLL_S": "2", "WORKER_PROGRESS_S": "1"}  # fmt: skip
                async with world_at(Path(folder), amqp, url, **usual) as world:
                    print(json.dumps(await measured(world, launcher)), flush=True)
        finally:
            delete_vhost(os.environ["TEST_MANAGEMENT_URL"], name)
            await drop_database(os.environ["TEST_DATABASE_URL"], name)


if __name__ == "__main__":
    asyncio.run(main())
