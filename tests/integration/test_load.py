"""The load phase against a real database: imported files become a manifest, verdicts come back to their rows."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import TypeAdapter

from schemas.digest import file_digest
from schemas.splits import row_key
from schemas.steps import ManifestRow, Verdict
from worker.pipeline.importer import import_data
from worker.pipeline.load import ManifestLimits, build_manifest
from worker.pipeline.manifest_writer import splits_in
from worker.pipeline.report import merge_verdicts
from worker.storage import FileStorage
from worker.store import api_data
from worker.store import data as data_module
from worker.store.data import DataStore
from worker.store.database import queries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from schemas.splits import RowKey, Split
    from tests.store_support import Stage
    from worker.domain.run import ClaimedRun

DEMO = Path(__file__).parents[2] / "deploy/demo/data"


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
    digests = TypeAdapter(dict[int, str]).validate_json(manifest.digests_path.read_bytes())
    await data.set_verdicts(run.fence, run.custom_model_id, report.items, digests)

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
    await data.set_verdicts(late, run.custom_model_id, refused, digests)
    assert await shown() == expected


async def _file(data: DataStore, run: ClaimedRun, name: str, sha256: str = "a" * 64) -> int:
    kind = "audio" if name.endswith(".wav") else "transcript"
    return await data.add(
        run.custom_model_id, run.organization_id, name=name, stem=name[:-4], kind=kind, size=1, sha256=sha256,
        address=f"organizations/1/{name}", duration_s=2.0, verdict="accepted",
    )  # fmt: skip


async def test_the_decoded_length_replaces_the_claimed_one_in_the_row_and_in_every_counter(stage: Stage) -> None:
    data, run = DataStore(stage.database), await stage.running()
    lied, cut = await _file(data, run, "lied.wav"), await _file(data, run, "cut.wav")  # both claim 2 s
    verdicts = [
        Verdict(data_ids=[lied], file="lied.wav", verdict="accepted", duration_s=5.0, recording_s=3_600.0),
        Verdict(data_ids=[cut], file="cut.wav", verdict="accepted", duration_s=0.5, recording_s=0.75),
    ]
    await data.set_verdicts(run.fence, run.custom_model_id, verdicts, {})
    rows = await stage.database.fetch("select duration_s, used_s from training_data order by id")
    assert [tuple(row) for row in rows] == [(3_600.0, 5.0), (0.75, 0.5)]
    model = await stage.database.fetch_row(
        "select data_ms, usable_ms from custom_models where id = $1", run.custom_model_id
    )
    assert tuple(model) == (3_600_750, 5_500)  # the quota counts whole recordings, the next run what it can use
    counts = await stage.database.fetch_row("select stored_ms from organization_counts")
    assert counts["stored_ms"] == 3_600_750


async def test_a_page_of_verdicts_looks_at_its_own_files_and_not_at_all_of_a_large_model(stage: Stage) -> None:
    pages, run = [], await stage.running()
    for files in (50, 20_000):
        await stage.database.execute(
            "insert into training_data (custom_model_id, organization_id, name, stem, kind, bytes, sha256, address) "
            "select $1, $2, n || '-' || $3 || '.wav', n || '-' || $3, 'audio', 1, repeat('a', 64), 'x' "
            "from generate_series(1, $3::int) n",
            run.custom_model_id, run.organization_id, files,
        )  # fmt: skip
        async with stage.database.transaction() as connection:
            explained = await connection.fetch(
                "explain (analyze, buffers, costs off, timing off) " + queries("data")["set_verdicts"],
                run.id, run.attempt, list(range(1, 41)), ["accepted"] * 40, [None] * 40, [None] * 40, [1.0] * 40,
                [None] * 40,
            )  # fmt: skip
        first = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", "\n".join(row[0] for row in explained))
        assert first is not None
        pages.append(sum(int(part or 0) for part in first.groups()))
    assert pages[1] < 4 * pages[0], pages  # deeper indexes; all of the model would be over 20,000


def _silent(*data_ids: int) -> Verdict:
    return Verdict(
        data_ids=list(data_ids), file="f", verdict="rejected", reason_code="silent", reason="No.", duration_s=2.0
    )


async def _verdicts(stage: Stage) -> dict[str, str]:
    rows = await stage.database.fetch("select name, verdict from training_data order by name")
    return {row["name"]: row["verdict"] for row in rows}


async def _somebody_waits(stage: Stage) -> None:
    while not await stage.database.fetch(
        "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    ):
        await asyncio.sleep(0.01)


async def test_a_file_that_was_replaced_while_it_was_judged_keeps_its_own_verdict(stage: Stage) -> None:
    data, run = DataStore(stage.database), await stage.running()
    names = [f"{stem}{suffix}" for stem in "abc" for suffix in (".wav", ".txt")]
    ids = {name: await _file(data, run, name) for name in names}
    alone, lonely = await _file(data, run, "d.wav"), await _file(data, run, "e.wav")
    digests = dict.fromkeys((*ids.values(), alone, lonely), "a" * 64)
    await _file(data, run, "a.wav", "b" * 64)
    await _file(data, run, "b.txt", "b" * 64)
    await _file(data, run, "d.txt")
    verdicts = [_silent(ids[f"{stem}.wav"], ids[f"{stem}.txt"]) for stem in "abc"]
    waiting = [
        Verdict(data_ids=[one], file="x", verdict="waiting_for_pair", reason_code="waiting_for_pair")
        for one in (alone, lonely)
    ]
    await data.set_verdicts(run.fence, run.custom_model_id, [*verdicts, *waiting], digests)
    judged = await _verdicts(stage)
    assert {name for name, verdict in judged.items() if verdict == "rejected"} == {"c.wav"}
    assert judged["d.wav"] == "accepted"  # its words came meanwhile
    assert judged["e.wav"] == "waiting_for_pair"


async def test_verdicts_and_an_upload_of_half_a_pair_wait_for_each_other_in_one_order(stage: Stage) -> None:
    data, run = DataStore(stage.database), await stage.running()
    audio, words = await _file(data, run, "f.wav"), await _file(data, run, "f.txt")
    async with stage.database.transaction() as upload:
        await api_data.hold(upload, run.custom_model_id)
        await upload.execute("update training_data set bytes = 2 where id = $1", words)
        verdicts = [_silent(audio), _silent(words)]
        judging = asyncio.create_task(data.set_verdicts(run.fence, run.custom_model_id, verdicts, {}))
        await _somebody_waits(stage)
        await api_data.recheck(upload, run.custom_model_id, {"f"}, changed=True)
    await judging
    assert await _verdicts(stage) == {"f.txt": "rejected", "f.wav": "rejected"}


async def test_verdicts_are_written_a_page_at_a_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_PAGE", 1)
    data, run = DataStore(stage.database), await stage.running()
    ids = [await _file(data, run, name) for name in ("f.wav", "g.wav")]
    async with stage.database.transaction() as other:
        await other.fetch("select from training_data where id = $1 for update", ids[1])
        verdicts = [_silent(item) for item in ids]
        judging = asyncio.create_task(data.set_verdicts(run.fence, run.custom_model_id, verdicts, {}))
        await _somebody_waits(stage)
        assert await _verdicts(stage) == {"f.wav": "rejected", "g.wav": "accepted"}
    await judging
    assert await _verdicts(stage) == {"f.wav": "rejected", "g.wav": "rejected"}


async def test_what_a_row_was_in_a_training_is_in_the_next_manifest(
    stage: Stage, storage: FileStorage, tmp_path: Path
) -> None:
    data, run = DataStore(stage.database), await stage.running()
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.vtt").write_text(
        "WEBVTT\n\n00:01.000 --> 00:09.000\nStart the new dose.\n\n00:21.000 --> 00:29.500\nStop the pump now.\n"
    )
    (files / "a.wav").write_bytes(b"RIFF0000WAVE")
    for path in sorted(files.iterdir()):
        await storage.put_file(path, f"data/{path.name}")
        await data.add(
            run.custom_model_id, run.organization_id, name=path.name, stem="a", size=path.stat().st_size,
            kind="audio" if path.suffix == ".wav" else "transcript", sha256=file_digest(path), address=f"data/{path.name}",
        )  # fmt: skip

    async def listed(name: str) -> list[ManifestRow]:
        known = await data.splits_of(run.custom_model_id)
        manifest = await build_manifest(
            data.of_model(run.custom_model_id), storage, tmp_path / name, ManifestLimits(),
            earlier=lambda row: known.get(row_key(row.audio_sha256, row.offset_s)),
        )  # fmt: skip
        return [ManifestRow.model_validate_json(line) for line in manifest.path.read_bytes().splitlines()]

    rows = await listed("first")
    assert [row.earlier for row in rows] == [None, None]
    verdicts = tmp_path / "verdicts.jsonl"
    judged = [
        Verdict(data_ids=row.data_ids, row=row.row, file=row.file, verdict="accepted", split=split)
        for row, split in zip(rows, ("test", "train"), strict=True)
    ]
    verdicts.write_text("".join(one.model_dump_json() + "\n" for one in judged))
    splits = list(splits_in(tmp_path / "first" / "manifest.jsonl", verdicts))
    late = run.fence.__class__(run.id, run.attempt - 1)
    await data.keep_splits(late, splits)
    assert await data.splits_of(run.custom_model_id) == {}, "another attempt owns the run"
    for _ in range(2):  # its answer was lost
        await data.keep_splits(run.fence, splits)
    assert [row.earlier for row in await listed("second")] == ["test", "train"]


async def test_splits_are_read_from_their_files_in_a_thread_and_not_by_who_renews_leases(stage: Stage) -> None:
    data, run = DataStore(stage.database), await stage.running()
    readers = set()

    def splits() -> Iterator[tuple[RowKey, Split]]:
        for number in range(2_500):
            readers.add(threading.get_ident())
            yield (number.to_bytes(32, "big"), 0), "train"

    await data.keep_splits(run.fence, splits())
    assert len(await data.splits_of(run.custom_model_id)) == 2_500
    assert threading.get_ident() not in readers


async def test_a_version_tells_which_files_were_there_when_it_was_made(stage: Stage) -> None:
    data, run = DataStore(stage.database), await stage.running()
    before = await _file(data, run, "before.wav")
    assert await data.last_of_newest_version(run.custom_model_id) is None
    await stage.database.execute(
        "insert into model_versions (custom_model_id, number, run_id, attempt, address, sha256, base_language_id, "
        "figures, created_at) values ($1, 1, $2, 1, 'runs/1', repeat('a', 64), $3, '{}', now())",
        run.custom_model_id, run.id, run.base_language_id,
    )  # fmt: skip
    await _file(data, run, "after.wav")
    assert await data.last_of_newest_version(run.custom_model_id) == before
