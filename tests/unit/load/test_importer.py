"""Import of local files."""

import hashlib
import json
import os

import pytest

from worker.pipeline.importer import import_data
from worker.storage import FileStorage


class Rows:
    """Keeps what a data store would be told."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}
        self.order: list[str] = []

    async def add(self, model_id, organization_id, **row) -> int:
        assert (model_id, organization_id) == (2, 1)
        self.rows[row["name"]] = row
        self.order.append(row["name"])
        return len(self.order)


@pytest.fixture
async def storage(tmp_path):
    files = FileStorage(tmp_path / "storage")
    yield files
    await files.aclose()


def write(folder, files: dict[str, str | bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)


async def run(path, storage, rows, **more):
    return await import_data(path, 2, 1, storage, rows, **more)


async def test_a_manifest_brings_its_recordings_and_names_every_bad_line(tmp_path, storage):
    source = tmp_path / "set"
    lines = [
        json.dumps({"audio_filepath": "a.opus", "text": "One", "duration": 4.2, "speaker": "s1", "split": "train"}),
        "{broken",
        json.dumps({"audio_filepath": "deep/a.opus", "text": "Two", "offset": 1, "duration": 2}),
        json.dumps({"audio_filepath": "deep/a.opus", "text": "Three", "offset": 3, "duration": 2.5}),
        json.dumps({"audio_filepath": "gone.opus", "text": "x"}),
        json.dumps({"audio_filepath": "a.opus", "text": "  "}),
        json.dumps({"audio_filepath": "notes.pdf", "text": "x"}),
    ]
    write(source, {"train.jsonl": "\n".join(lines), "a.opus": "sound a", "deep/a.opus": "sound b", "notes.pdf": "p"})
    rows, seen = Rows(), []
    report = await run(source / "train.jsonl", storage, rows, progress=lambda done, total: seen.append((done, total)))
    assert report.added == 3
    assert [str(fault) for fault in report.faults] == [
        "train.jsonl, line 2: The line cannot be understood: it is not JSON.",
        "train.jsonl, line 5: gone.opus is not there",
        "train.jsonl, line 6: The text has no words.",
        "train.jsonl, line 7: notes.pdf is neither audio, transcript nor manifest by its ending",
    ]
    assert rows.order[-1] == "train.jsonl"
    one, two = rows.rows["a.opus"], rows.rows["deep/a.opus"]
    assert (one["duration_s"], one["speaker"], one["split"], one["verdict"]) == (4.2, "s1", "train", "waiting_for_run")
    assert (two["duration_s"], two["speaker"], two["stem"]) == (5.5, None, "deep/a")
    sha256 = hashlib.sha256(b"sound b").hexdigest()
    assert two["address"] == f"organizations/1/models/2/data/{sha256}"
    assert await storage.get_bytes(two["address"], 100) == b"sound b"
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


async def test_a_folder_brings_everything_it_can(tmp_path, storage):
    source = tmp_path / "set"
    write(source, {
        "x/talk.wav": "1", "x/talk.vtt": "WEBVTT", "lonely.mp3": "2", "lonely2.txt": "words", "readme.pdf": "",
        ".DS_Store": "", ".hidden/a.wav": "3", "m/list.jsonl": json.dumps({"audio_filepath": "b.wav", "text": "B"}),
        "m/b.wav": "4",
    })  # fmt: skip
    rows = Rows()
    report = await run(source, storage, rows)
    assert {name: row["verdict"] for name, row in rows.rows.items()} == {
        "x/talk.wav": "waiting_for_run", "x/talk.vtt": "waiting_for_run", "lonely.mp3": "waiting_for_pair",
        "lonely2.txt": "waiting_for_pair", "m/list.jsonl": "waiting_for_run", "m/b.wav": "waiting_for_run",
    }  # fmt: skip
    assert [str(fault) for fault in report.faults] == [
        "readme.pdf: readme.pdf is neither audio, transcript nor manifest by its ending"
    ]


@pytest.mark.parametrize("written", ["../secret.wav", "/etc/hostname", "link.wav", "sub/../../secret.wav"])
async def test_a_manifest_of_a_stranger_cannot_reach_outside_its_folder(tmp_path, storage, written):
    source = tmp_path / "set"
    write(tmp_path, {"secret.wav": "secret"})
    write(source, {"train.jsonl": json.dumps({"audio_filepath": written, "text": "x"})})
    (source / "link.wav").symlink_to(tmp_path / "secret.wav")
    rows = Rows()
    report = await run(source / "train.jsonl", storage, rows)
    assert list(rows.rows) == ["train.jsonl"]
    assert len(report.faults) == 1
    assert "below the folder" in report.faults[0].why or "out of the folder" in report.faults[0].why


async def test_a_path_written_in_full_is_fine_below_the_folder(tmp_path, storage):
    write(tmp_path, {"a.wav": "1", "t.jsonl": json.dumps({"audio_filepath": str(tmp_path / "a.wav"), "text": "x"})})
    rows = Rows()
    report = await run(tmp_path / "t.jsonl", storage, rows)
    assert (report.faults, sorted(rows.rows)) == ([], ["a.wav", "t.jsonl"])


async def test_what_is_no_manifest_and_no_folder_is_said_so(tmp_path, storage):
    report = await run(tmp_path / "nothing.jsonl", storage, Rows())
    assert (report.added, [fault.why for fault in report.faults]) == (0, ["nothing.jsonl is not there"])
    report = await run(tmp_path / "a.wav", storage, Rows())
    assert "neither a .jsonl manifest nor a folder" in report.faults[0].why


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_an_unreadable_file_costs_itself_only(tmp_path, storage):
    write(tmp_path / "set", {"a.wav": "1", "b.wav": "2"})
    (tmp_path / "set/a.wav").chmod(0)
    rows = Rows()
    report = await run(tmp_path / "set", storage, rows)
    assert (list(rows.rows), [fault.file for fault in report.faults]) == (["b.wav"], ["a.wav"])


async def test_lengths_come_from_headers_where_they_can_be_read(tmp_path, storage):
    def length_of(path):
        if path.name == "bad.wav":
            raise ValueError("no header")
        return 1.23456

    write(tmp_path / "set", {"a.wav": "1", "bad.wav": "2", "a.txt": "words"})
    rows = Rows()
    await run(tmp_path / "set", storage, rows, length_of=length_of)
    assert {name: row["duration_s"] for name, row in rows.rows.items()} == {
        "a.wav": 1.235, "bad.wav": None, "a.txt": None,
    }  # fmt: skip
