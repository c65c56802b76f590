"""A release rolls out while trainings run: old and new version side by side on one schema, and back again.

The new version is this one with a higher number and one more migration that expands the schema, in a folder of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import tests.acceptance.world as world_module
from tests.acceptance.world import ROOT, WorkerProcess, World, until, world_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from uuid import UUID

EXPAND = """\
-- oldest code: {oldest}
-- Expand: columns that old code does not know must be nullable or have a default.
alter table training_runs add column next_release_note text;
alter table workers add column next_release_zone text not null default 'here';
create index next_release_notes on training_runs (next_release_note) where next_release_note is not null;
"""


@pytest.fixture
async def world(tmp_path: Path, vhost: str, database_url: str) -> AsyncIterator[World]:
    async with world_at(tmp_path / "world", vhost, database_url, WORKER_SLOTS="3") as made:
        yield made


def release(folder: Path, version: str, oldest: str) -> Path:
    """A copy of this code with another version and one more migration."""
    for part in ("worker", "schemas", "sql"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "worker" / "__init__.py"
    init.write_text(re.sub(r'__version__ = "[^"]+"', f'__version__ = "{version}"', init.read_text()))
    migrations = folder / "sql" / "migrations"
    number = len(list(migrations.glob("0*.sql"))) + 1
    (migrations / f"{number:04d}_next_release.sql").write_text(EXPAND.format(oldest=oldest))
    return folder


def with_another_recipe_version(code: Path, version: str) -> Path:
    """The same inputs would give other weights there."""
    recipes = code / "schemas" / "recipes.py"
    recipes.write_text(re.sub(r'version="\d+"', f'version="{version}"', recipes.read_text(), count=1))
    return code


def migrate(world: World, code: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "migrate"], env=world.environment(PYTHONPATH=str(code)), cwd=code,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


async def worker_of(world: World, code: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    with monkeypatch.context() as patch:
        patch.setattr(world_module, "ROOT", code)
        return await world.started(PYTHONPATH=str(code))


async def training(world: World, number: int) -> list[UUID]:
    runs = [await world.ask(steps=240, step_s=0.1, checkpoint_every=20) for _ in range(number)]
    for run in runs:
        await world.in_phase(run, "train")
        await until(lambda run=run: steps_of(world, run, 1), "it trains")
    return runs


def steps_of(world: World, run: UUID, attempt: int) -> list[dict[str, float]]:
    return [
        line
        for line in world.witnessed(run)
        if (line["step"], line["what"], line["attempt"]) == ("train", "step", attempt)
    ]


def repeated_s(world: World, run: UUID, attempt: int) -> float:
    """Seconds of training that this attempt did although the one before had done them."""
    known = max(line["n"] for line in steps_of(world, run, attempt - 1))
    return 0.1 * sum(line["n"] <= known for line in steps_of(world, run, attempt))


async def versions_at_work(world: World) -> set[str]:
    rows = await world.pool.fetch("select version from workers where stopped_at is null")
    return {row["version"] for row in rows}


async def test_a_rolling_upgrade_and_the_way_back_lose_nothing_and_repeat_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    new_code = release(tmp_path / "new", "0.2.0", "0.1.0")
    old = await worker_of(world, ROOT, monkeypatch)
    runs = await training(world, 3)

    done = migrate(world, new_code)  # the schema goes ahead, under running trainings
    assert "next_release" in done.stdout, done.stderr
    another_old = await worker_of(world, ROOT, monkeypatch)  # old code still starts on the new schema
    another_old.terminate()
    assert await another_old.exit_code() == 0, another_old.tail()
    new = await worker_of(world, new_code, monkeypatch)
    assert await versions_at_work(world) == {"0.1.0", "0.2.0"}
    old.terminate()
    assert await old.exit_code() == 0, old.tail()
    for run in runs:
        await world.in_phase(run, "train", attempt=2)
        await until(lambda run=run: steps_of(world, run, 2), "the new version trains on")

    back = await worker_of(world, ROOT, monkeypatch)  # the new release disappoints: back to the old one
    new.terminate()
    assert await new.exit_code() == 0, new.tail()
    for run in runs:
        row = await world.over(run)
        assert (row["status"], row["failures"], row["hand_overs"]) == (4, 0, 2), dict(row)
    back.terminate()
    assert await back.exit_code() == 0
    repeated = [repeated_s(world, run, attempt) for run in runs for attempt in (2, 3)]
    gaps = [
        steps_of(world, run, attempt)[0]["at"] - steps_of(world, run, attempt - 1)[-1]["at"]
        for run in runs
        for attempt in (2, 3)
    ]
    assert max(repeated) == 0, "a hand-over writes a checkpoint first"
    assert not world.overlaps()
    with capsys.disabled():
        print(f"\n6 hand-overs: work repeated {max(repeated):.1f} s, longest standstill {max(gaps):.1f} s")


async def test_another_recipe_version_starts_runs_over_and_the_way_back_goes_on_where_it_was(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    new_code = with_another_recipe_version(release(tmp_path / "new", "0.2.0", "0.1.0"), "next")
    assert migrate(world, new_code).returncode == 0
    old = await worker_of(world, ROOT, monkeypatch)
    [run] = await training(world, 1)
    fixed = (await world.row(run))["inputs"]

    new = await worker_of(world, new_code, monkeypatch)
    old.terminate()
    assert await old.exit_code() == 0, old.tail()
    await until(lambda: steps_of(world, run, 2), "the new version trains")
    assert steps_of(world, run, 2)[0]["n"] == 1
    followed = (await world.row(run))["inputs"]
    assert json.loads(followed) == json.loads(fixed) | {"recipe_version": "next"}
    assert new.said("the run began with another recipe version: starting over with the one installed here")
    assert new.said("checkpoint of another recipe version: starting over")

    await worker_of(world, ROOT, monkeypatch)
    new.terminate()
    assert await new.exit_code() == 0, new.tail()
    row = await world.over(run)
    assert (row["status"], row["failures"], row["hand_overs"]) == (4, 0, 2), dict(row)
    assert steps_of(world, run, 3)[0]["n"] == steps_of(world, run, 1)[-1]["n"] + 1
    assert (await world.row(run))["inputs"] == fixed


async def test_a_contracting_release_keeps_code_that_is_too_old_from_starting(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    new_code = release(tmp_path / "new", "0.2.0", "0.2.0")
    assert migrate(world, new_code).returncode == 0
    old = world.worker()
    await until(lambda: not old.alive, "the old version refuses")
    assert "needs code 0.2.0 or newer; this is 0.1.0: upgrade" in old.tail()
    new = await worker_of(world, new_code, monkeypatch)
    assert (await world.over(await world.ask()))["status"] == 4
    new.terminate()
    assert await new.exit_code() == 0


async def test_new_code_waits_for_its_schema(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    new_code = release(tmp_path / "new", "0.2.0", "0.1.0")
    with monkeypatch.context() as patch:
        patch.setattr(world_module, "ROOT", new_code)
        new = world.worker(PYTHONPATH=str(new_code))
    await until(lambda: not new.alive, "the new version refuses")
    assert "run `python -m worker migrate`" in new.tail()
