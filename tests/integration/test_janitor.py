"""What runs leave behind goes; what anybody may still need stays."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from schemas.failures import FailureClass
from tests.store_support import Stage, success
from worker.clock import Clock
from worker.domain.outcome import Failed
from worker.domain.run import Checkpoint, Request, RunInputs
from worker.errors import StorageAway
from worker.services.janitor import Janitor, Retention, Swept
from worker.storage import FileStorage
from worker.storage.cache import Cache
from worker.store.janitor import JanitorStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from worker.domain.run import ClaimedRun

DAY = 86_400.0
INPUTS = RunInputs(
    manifest="m", manifest_sha256="0", rows=1, base_language_id=1, base_key="en", base_weights="/base",
    base_version="1", recipe="whisper", recipe_version="1", seed=1,
)  # fmt: skip


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FileStorage]:
    files = FileStorage(tmp_path / "storage")
    yield files
    await files.aclose()


@pytest.fixture
def janitor(stage: Stage, storage: FileStorage, tmp_path: Path) -> Janitor:
    return Janitor(JanitorStore(stage.database), storage, tmp_path / "scratch", Retention(), Clock())


async def left_behind(stage: Stage, storage: FileStorage) -> ClaimedRun:
    """A run with everything that an attempt stores."""
    run = await stage.running(lease_s=1e9)
    prefix = f"runs/{run.id}/{run.attempt}"
    for step in ("prepare", "train", "evaluate", "export"):
        await storage.put_bytes(f"{prefix}/{step}/file", b"x")
        await stage.runs.store_step_output(run.fence, f"{run.id}-{step}", step, f"{prefix}/{step}", "0" * 64, 1, {})
    for steps in (50, 100):
        address = f"{prefix}/checkpoints/{steps:08d}"
        await storage.put_bytes(f"{address}/state", b"x")
        await stage.runs.register_checkpoint(run.fence, Checkpoint(run.attempt, steps, address, "0" * 64, 1, "1"))
    await storage.put_bytes(f"{prefix}/log.txt", b"log")
    return run


async def kept(storage: FileStorage, run: ClaimedRun) -> set[str]:
    prefix = f"runs/{run.id}/{run.attempt}/"
    return {stored.key.removeprefix(prefix) async for stored in storage.listing(f"runs/{run.id}")}


async def test_nothing_of_a_run_goes_while_it_may_still_be_needed(
    stage: Stage, storage: FileStorage, janitor: Janitor
) -> None:
    run = await left_behind(stage, storage)
    stage.clock.advance(2 * DAY)
    assert await janitor.sweep() == Swept()
    await stage.settled(run, success(f"runs/{run.id}/{run.attempt}/export"))
    stage.clock.advance(3_000)
    assert await janitor.sweep() == Swept()
    assert len(await kept(storage, run)) == 7


async def test_a_published_run_keeps_its_model_its_log_and_its_dataset_only(
    stage: Stage, storage: FileStorage, janitor: Janitor
) -> None:
    run = await left_behind(stage, storage)
    await stage.settled(run, success(f"runs/{run.id}/{run.attempt}/export"))
    stage.clock.advance(3_601)
    assert await janitor.sweep() == Swept(outputs=3, checkpoints=2)
    assert await kept(storage, run) == {"prepare/file", "export/file", "log.txt"}
    assert await stage.runs.checkpoints(run.id) == []
    assert await stage.runs.find_step_output(run.organization_id, f"{run.id}-prepare") is not None
    assert await janitor.sweep() == Swept()


async def test_a_report_outlives_a_run_that_published_nothing(
    stage: Stage, storage: FileStorage, janitor: Janitor
) -> None:
    run = await left_behind(stage, storage)
    report = f"runs/{run.id}/{run.attempt}/export/report.html"
    await stage.settled(run, replace(success(), version=None, report_address=report))
    stage.clock.advance(3_601)
    await janitor.sweep()
    assert await kept(storage, run) == {"prepare/file", "export/file", "log.txt"}


async def test_a_failed_run_keeps_its_log_and_its_dataset_until_that_is_long_unused(
    stage: Stage, storage: FileStorage, janitor: Janitor
) -> None:
    run = await left_behind(stage, storage)
    await stage.settled(run, Failed(FailureClass.DATA, "too_little_usable_audio", "Too little."))
    stage.clock.advance(3_601)
    await janitor.sweep()
    assert await kept(storage, run) == {"prepare/file", "log.txt"}
    stage.clock.advance(20 * DAY)
    assert await stage.runs.find_step_output(run.organization_id, f"{run.id}-prepare") is not None  # used again
    stage.clock.advance(20 * DAY)
    assert await janitor.sweep() == Swept()
    stage.clock.advance(11 * DAY)
    assert await janitor.sweep() == Swept(outputs=1)
    assert await kept(storage, run) == {"log.txt"}


@pytest.mark.parametrize("published", [True, False])
async def test_what_was_stored_and_never_registered_goes_once_the_run_is_over(
    stage: Stage, storage: FileStorage, janitor: Janitor, *, published: bool
) -> None:
    run = await left_behind(stage, storage)
    prefix = f"runs/{run.id}/{run.attempt}"
    inputs = INPUTS.model_copy(update={"manifest": f"{prefix}/load/manifest.jsonl"})
    await stage.runs.fix_inputs(run.fence, inputs)
    unnamed = ("checkpoints/00000150/state", "export2/file", "train/half")
    for name in (*unnamed, "load/manifest.jsonl", "load/verdicts.jsonl"):
        await storage.put_bytes(f"{prefix}/{name}", b"x")
    failed = Failed(FailureClass.DATA, "too_little_usable_audio", "Too little.")
    await stage.settled(run, success(f"{prefix}/export") if published else failed)
    stage.clock.advance(3_000)
    assert await janitor.sweep() == Swept()
    stage.clock.advance(601)
    swept = await janitor.sweep()
    assert swept == Swept(outputs=3, checkpoints=2, unnamed=2)  # the third lay in a folder that went
    stays = {"load/manifest.jsonl", "load/verdicts.jsonl", "prepare/file", "log.txt"}
    assert await kept(storage, run) == (stays | {"export/file"} if published else stays)
    assert await janitor.sweep() == Swept()


async def test_the_bytes_of_an_earlier_run_stay_while_the_model_trains_again(
    stage: Stage, storage: FileStorage, janitor: Janitor
) -> None:
    run = await stage.running()
    await storage.put_bytes(f"runs/{run.id}/1/prepare/file", b"x")
    await stage.settled(run, success())
    request = Request(uuid.uuid4(), run.custom_model_id, run.organization_id, stage.clock.now)
    assert await stage.runs.register([request]) == [True]
    stage.clock.advance(3_601)
    assert await janitor.sweep() == Swept()
    [again] = await stage.claim("w1", 1)
    assert await janitor.sweep() == Swept()
    await stage.settled(again, Failed(FailureClass.DATA, "too_little_usable_audio", "Too little."))
    assert await janitor.sweep() == Swept(unnamed=1)


async def test_rows_outlive_a_storage_that_is_away_so_that_nothing_is_forgotten(
    stage: Stage, storage: FileStorage, janitor: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await left_behind(stage, storage)
    await stage.settled(run, success(f"runs/{run.id}/{run.attempt}/export"))
    stage.clock.advance(3_601)

    async def away(_: str) -> int:
        raise StorageAway("gone")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_prefix", away)
        with pytest.raises(StorageAway):
            await janitor.sweep()
    assert await janitor.sweep() == Swept(outputs=3, checkpoints=2)


async def test_scratch_of_attempts_that_are_over_goes_and_no_other(
    stage: Stage, janitor: Janitor, tmp_path: Path
) -> None:
    run = await stage.running(lease_s=1e9)
    over = await stage.queued()
    stranger = uuid.uuid4()
    folders = {
        name: tmp_path / "scratch" / folder
        for name, folder in (
            ("under way", f"attempts/{run.id}/1"),
            ("earlier attempt", f"attempts/{run.id}/0"),
            ("over", f"attempts/{over}/1"),
            ("just made", f"attempts/{over}/2"),
            ("of another database", f"attempts/{stranger}/1"),
            ("step under way", f"steps/{run.id}-1-train"),
            ("step of an earlier attempt", f"steps/{run.id}-0-train"),
            ("step that is over", f"steps/{over}-1-prepare"),
            ("step of another database", f"steps/{stranger}-1-train"),
            ("no step", "steps/a-b-c"),
        )
    }
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "audio.i16").write_bytes(b"x")
        if name != "just made":
            os.utime(folder, (1, 1))
    assert await janitor.sweep() == Swept(scratch=4)
    assert {name for name, folder in folders.items() if folder.exists()} == {
        "under way", "just made", "of another database", "step under way", "step of another database", "no step",
    }  # fmt: skip


async def test_half_a_file_of_a_killed_process_goes_after_a_day(storage: FileStorage, janitor: Janitor) -> None:
    old, new = storage.root / ".partial/old", storage.root / ".partial/new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert await janitor.sweep() == Swept(cache_bytes=4)
    assert (old.exists(), new.exists()) == (False, True)


class FetchingStorage(FileStorage):
    """Files that are fetched to this host before they are read, as from a bucket."""

    def __init__(self, root: Path, cache: Cache) -> None:
        super().__init__(root)
        self.cache = cache

    async def fetched(self, unused_s: float) -> set[str]:
        return self.cache.origins(unused_s)

    async def forget_fetched(self, keys: Collection[str], unused_s: float) -> int:
        return self.cache.forget(keys, unused_s)


async def test_what_a_host_fetched_goes_when_its_owner_has_deleted_it(stage: Stage, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    storage = FetchingStorage(tmp_path / "storage", cache)
    janitor = Janitor(JanitorStore(stage.database), storage, tmp_path / "scratch", Retention(), Clock())
    kept_run, deleted_run = await stage.running(lease_s=1e9), await stage.running(lease_s=1e9)
    for run in (kept_run, deleted_run):
        prefix = f"runs/{run.id}/{run.attempt}"
        await stage.runs.store_step_output(run.fence, f"{run.id}", "prepare", f"{prefix}/prepare", "0" * 64, 1, {})
        await stage.settled(run, success(f"{prefix}/export"))
    await stage.database.execute(
        "insert into training_data (custom_model_id, organization_id, name, stem, kind, bytes, sha256, address)"
        " values ($1, $2, 'a.wav', 'a', 'audio', 1, repeat('a', 64), 'organizations/1/models/1/data/kept')",
        kept_run.custom_model_id,
        kept_run.organization_id,
    )
    stranger, one, two = uuid.uuid4(), f"runs/{kept_run.id}/1", f"runs/{deleted_run.id}/1"
    stays = {
        "organizations/1/models/1/data/kept",
        f"{one}/prepare",
        f"{one}/export",
        f"runs/{stranger}/1/train",
        "base/x",
    }
    goes = {"organizations/1/models/1/data/gone", f"{one}/load/manifest.jsonl", f"{two}/prepare", f"{two}/export"}
    for number, key in enumerate(sorted(stays | goes)):

        async def fetch(folder: Path, key: str = key) -> None:
            (folder / "x").write_text(key)

        place = await cache.kept(f"{number:064x}", fetch, key)
        used = time.time() - Retention().over_s - 60
        os.utime(place, (used, used))
    await stage.database.execute(
        "update custom_models set deleted_at = db_now() where id = $1", deleted_run.custom_model_id
    )
    await janitor.sweep()
    assert cache.origins(0) == stays
    await storage.aclose()
