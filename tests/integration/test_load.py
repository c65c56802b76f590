"""The load phase against a real database: imported files become a manifest, verdicts come back to their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas.steps import ManifestRow, Verdict
from tests.store_support import Stage, stage_at
from worker.pipeline.importer import import_data
from worker.pipeline.load import ManifestLimits, build_manifest
from worker.pipeline.report import merge_verdicts
from worker.storage import FileStorage
from worker.store.data import DataStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEMO = Path(__file__).parents[2] / "deploy/demo/data"


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with stage_at(database_url) as made:
        yield made


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FileStorage]:
    files = FileStorage(tmp_path / "storage")
    yield files
    await files.aclose()


async def test_demo_recordings_become_a_manifest_whole_and_the_same_each_time(
    stage: Stage, storage: FileStorage, tmp_path: Path
) -> None:
    data, organization = DataStore(stage.database), await stage.organization()
    model = await stage.model(organization)
    for manifest in ("train.jsonl", "test.jsonl", "test_unseen_voices.jsonl"):
        report = await import_data(DEMO / manifest, model, organization, storage, data)
        assert report.faults == []
    made = [
        await build_manifest(data.of_model(model), storage, tmp_path / name, ManifestLimits()) for name in ("a", "b")
    ]
    assert made[0].sha256 == made[1].sha256
    assert (made[0].rows, made[0].counts) == (480, {})
    rows = [ManifestRow.model_validate_json(line) for line in made[0].path.read_bytes().splitlines()]
    assert {row.split for row in rows} == {"train", "test"}
    for row in rows:
        place = storage.local_path(row.audio)
        assert place.stat().st_size == row.audio_bytes == (DEMO / row.file).stat().st_size


async def test_an_import_that_is_repeated_changes_nothing_and_an_upload_moves_no_row(
    stage: Stage, storage: FileStorage, tmp_path: Path
) -> None:
    data, organization = DataStore(stage.database), await stage.organization()
    model = await stage.model(organization)
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(30):
        (folder / f"f{n:02}.wav").write_bytes(b"sound %d" % n)
        (folder / f"f{n:02}.txt").write_text(f"Sentence {n}.")
    manifests = []
    for repeat in range(3):
        if repeat == 2:
            (folder / "more.wav").write_bytes(b"more")
            (folder / "more.txt").write_text("One more.")
        await import_data(folder, model, organization, storage, data)
        manifests.append(await build_manifest(data.of_model(model), storage, tmp_path / str(repeat), ManifestLimits()))
    first, again, more = (manifest.path.read_text().splitlines() for manifest in manifests)
    assert first == again
    assert [json.loads(line)["text"] for line in more if json.loads(line)["file"] != "more.wav"] == [
        json.loads(line)["text"] for line in first
    ]


async def test_verdicts_return_to_their_files_and_only_the_owner_may_write_them(
    stage: Stage, storage: FileStorage, tmp_path: Path
) -> None:
    data = DataStore(stage.database)
    run = await stage.running()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "good.wav").write_bytes(b"good")
    (folder / "good.txt").write_text("Good words.")
    (folder / "alone.wav").write_bytes(b"alone")
    await import_data(folder, run.custom_model_id, run.organization_id, storage, data)
    manifest = await build_manifest(data.of_model(run.custom_model_id), storage, tmp_path / "m", ManifestLimits())
    rows = [ManifestRow.model_validate_json(line) for line in manifest.path.read_bytes().splitlines()]
    prepared = [
        Verdict(data_ids=row.data_ids, row=row.row, file=row.file, verdict="accepted", duration_s=2.5, split="train")
        for row in rows
    ]
    report = merge_verdicts(manifest.verdicts, prepared)
    await data.set_verdicts(run.fence, report.items)

    async def shown() -> dict[str, tuple[str, str | None, float | None]]:
        found = await stage.database.fetch("select name, verdict, reason_code, duration_s from training_data")
        return {row["name"]: (row["verdict"], row["reason_code"], row["duration_s"]) for row in found}

    expected = {
        "good.wav": ("accepted", None, 2.5),
        "good.txt": ("accepted", None, None),
        "alone.wav": ("waiting_for_pair", "waiting_for_pair", None),
    }
    assert await shown() == expected
    refused = [
        verdict.model_copy(update={"verdict": "rejected", "reason_code": "silent", "reason": "No."})
        for verdict in report.items
    ]
    late = run.fence.__class__(run.id, run.attempt - 1)
    await data.set_verdicts(late, refused)
    assert await shown() == expected
