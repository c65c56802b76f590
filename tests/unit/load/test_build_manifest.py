"""From a model's files to the run's manifest and its verdicts."""

import hashlib
import json
import random
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.steps import ManifestRow
from schemas.verdicts import REASONS
from worker.clock import Clock
from worker.data.text_reader import ReadingLimits
from worker.domain.data import DataItem, kind_of, stem_of
from worker.errors import StepFailed
from worker.pipeline import phases
from worker.pipeline.load import ManifestLimits, build_manifest
from worker.pipeline.manifest_writer import SPELLED_OUT
from worker.pipeline.report import merge_verdicts
from worker.storage import FileStorage


class Model:
    """A model's files in a storage, without a database."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage
        self.items: list[DataItem] = []

    async def add(self, name: str, data: bytes | str | None = None, **fields) -> DataItem:
        content = f"sound of {name}" if data is None else data
        content = content.encode() if isinstance(content, str) else content
        sha256 = hashlib.sha256(content).hexdigest()
        kind = kind_of(name)
        assert kind
        address = f"organizations/1/models/2/data/{sha256}"
        await self.storage.put_bytes(address, content)
        item = DataItem(len(self.items) + 1, name, stem_of(name), kind, len(content), sha256, address, **fields)
        self.items.append(item)
        return item

    async def every(self, *_, items: list[DataItem] | None = None):
        for item in self.items if items is None else items:
            yield item

    async def load(self, folder, limits: ManifestLimits | None = None, items: list[DataItem] | None = None):
        manifest = await build_manifest(self.every(items=items), self.storage, folder, limits or ManifestLimits())
        rows = [ManifestRow.model_validate_json(line) for line in manifest.path.read_bytes().splitlines()]
        assert [row.row for row in rows] == list(range(manifest.rows))
        assert hashlib.sha256(manifest.path.read_bytes()).hexdigest() == manifest.sha256
        verdicts = list(manifest.verdicts)
        assert all(verdict.reason_code in REASONS and verdict.reason.endswith(".") for verdict in verdicts)
        return manifest, rows, {verdict.file: verdict.reason_code for verdict in verdicts}


def answer(value):
    async def told(*_):
        return value

    return told


@pytest.fixture
async def model(tmp_path):
    storage = FileStorage(tmp_path / "storage")
    yield Model(storage)
    await storage.aclose()


async def test_audio_and_transcript_pair_by_stem_in_any_order(model, tmp_path):
    text = await model.add("calls/one.txt", "Hello  there.")
    audio = await model.add("calls/one.flac", speaker="Ada", split="dev")
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert verdicts == {}
    assert rows == [
        ManifestRow(
            row=0,
            data_ids=[audio.id, text.id],
            file="calls/one.flac",
            audio=audio.address,
            audio_sha256=audio.sha256,
            audio_bytes=audio.bytes,
            text="Hello there.",
            speaker="Ada",
            split="dev",
        )
    ]


async def test_a_long_recording_becomes_segments_at_its_cues(model, tmp_path):
    await model.add("talk.mp3")
    await model.add(
        "talk.vtt",
        "WEBVTT\n\n00:01.250 --> 00:04.000\nOne.\n\n01:00.000 --> 01:05.000\nTwo.\n\n"
        "02:00.000 --> 02:45.000\nToo long.\n",
    )
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [(row.offset_s, row.duration_s, row.text, row.source) for row in rows] == [
        (1.25, 2.75, "One.", "cue"),
        (60.0, 5.0, "Two.", "cue"),
    ]
    assert verdicts == {"talk.vtt, line 9": "too_long"}


async def test_a_manifest_names_its_recordings_and_bad_lines_cost_themselves(model, tmp_path):
    await model.add("a.opus")
    await model.add("b.opus")
    lines = [
        json.dumps({"audio_filepath": "a.opus", "text": "First", "duration": 4.2, "speaker": "s", "split": "test"}),
        "{broken",
        json.dumps({"audio_filepath": "nowhere.opus", "text": "x"}),
        "",
        json.dumps({"audio_filepath": "b.opus", "text": ""}),
        json.dumps({"audio_filepath": "b.opus", "text": "Second", "offset": 1.5}),
    ]
    manifest = await model.add("train.jsonl", "\n".join(lines))
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [(row.file, row.text, row.offset_s, row.duration_s, row.speaker, row.split) for row in rows] == [
        ("a.opus", "First", None, 4.2, "s", "test"),
        ("b.opus", "Second", 1.5, None, None, None),
    ]
    assert rows[0].data_ids == [1, manifest.id]
    assert verdicts == {
        "train.jsonl, line 2": "bad_manifest_line",
        "train.jsonl, line 3": "missing_file",
        "train.jsonl, line 5": "empty_transcript",
    }


async def test_what_has_no_partner_waits(model, tmp_path):
    await model.add("lonely.wav")
    await model.add("silent.txt", "words")
    manifest, rows, verdicts = await model.load(tmp_path / "m")
    assert rows == []
    assert verdicts == {"lonely.wav": "waiting_for_pair", "silent.txt": "waiting_for_pair"}
    assert {verdict.verdict for verdict in manifest.verdicts} == {"waiting_for_pair"}
    assert manifest.counts == {"waiting_for_pair": 2}


async def test_times_beat_none_and_a_manifest_beats_both(model, tmp_path):
    await model.add("talk.wav")
    await model.add("talk.txt", "Everything.")
    await model.add("talk.srt", "1\n00:00:01,000 --> 00:00:02,000\nTimed.\n")
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [row.text for row in rows] == ["Timed."]
    assert verdicts == {"talk.txt": "superseded"}
    await model.add("all.jsonl", json.dumps({"audio_filepath": "talk.wav", "text": "Listed."}))
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [row.text for row in rows] == ["Listed."]
    assert verdicts == {"talk.txt": "superseded", "talk.srt": "superseded"}


async def test_a_broken_better_transcript_leaves_the_plain_one(model, tmp_path):
    await model.add("talk.wav")
    await model.add("talk.txt", "Everything.")
    await model.add("talk.vtt", b"\x89PNG\x00")
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [row.text for row in rows] == ["Everything."]
    assert verdicts == {"talk.vtt": "unreadable_transcript"}


async def test_of_two_recordings_of_one_name_the_lossless_one_is_used(model, tmp_path):
    await model.add("talk.mp3")
    await model.add("talk.wav", "lossless")
    await model.add("talk.flac", "lossless")
    await model.add("talk.txt", "Words.")
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [row.file for row in rows] == ["talk.wav"]
    assert verdicts == {"talk.flac": "duplicate", "talk.mp3": "same_stem"}


async def test_the_same_recording_with_the_same_words_is_used_once(model, tmp_path):
    for name in ("one", "two"):
        await model.add(f"{name}.wav", "same sound")
        await model.add(f"{name}.txt", "Same words." if name == "one" else "same WORDS")
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [row.file for row in rows] == ["one.wav"]
    assert verdicts == {"two.wav": "duplicate"}


async def test_every_kind_of_broken_file_gets_its_own_verdict(model, tmp_path):
    await model.add("zero.wav", b"")
    await model.add("zero.txt", "words")
    await model.add("blank.wav")
    await model.add("blank.txt", "  \n")
    await model.add("latin.wav")
    await model.add("latin.txt", "Müller".encode("latin-1"))
    lost = await model.add("lost.wav")
    await model.add("lost.txt", "words")
    await model.storage.delete([lost.address])
    await model.add("big.wav")
    await model.add("big.txt", "long " * 300)
    gone = await model.add("gone.txt", "these words are gone")
    await model.add("gone.wav")
    await model.storage.delete([gone.address])
    await model.add("nothing.jsonl", "\n\n")
    _, rows, verdicts = await model.load(tmp_path / "m", ManifestLimits(transcript_bytes=1000))
    assert rows == []
    assert verdicts == {
        "zero.wav": "unreadable_audio",
        "zero.txt": "waiting_for_pair",
        "blank.txt": "empty_transcript",
        "blank.wav": "empty_transcript",
        "latin.txt": "unreadable_transcript",
        "latin.wav": "unreadable_transcript",
        "lost.wav": "missing_file",
        "lost.txt": "waiting_for_pair",
        "big.txt": "transcript_too_large",
        "big.wav": "transcript_too_large",
        "gone.txt": "missing_file",
        "gone.wav": "missing_file",
        "nothing.jsonl": "empty_transcript",
    }


CUE = "WEBVTT\n\n00:01.000 --> 00:02.000\n"
MARKS = "\u0316\u0301"
HOSTILE = {
    "marks in a text": (lambda size: ("a.txt", "a" + MARKS * (size // 4)), 32),
    "voices in a cue": (lambda size: ("a.vtt", CUE + "<v." * (size // 3)), 16),
    "marks in a manifest's text": (
        lambda size: ("m.jsonl", json.dumps({"audio_filepath": "a.wav", "text": "a" + MARKS * (size // 4)})),
        32,
    ),
    "marks in a manifest's path": (
        lambda size: ("m.jsonl", json.dumps({"audio_filepath": MARKS * (size // 4), "text": "hello"})),
        32,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_text_costs_the_process_that_renews_leases_no_more_than_its_length(model, tmp_path, name):
    """Quadratic, four times the bytes are sixteen times the processor time."""
    make, kib = HOSTILE[name]
    seconds = []
    for size in (kib << 10, kib << 12):
        model.items.clear()
        await model.add("a.wav")
        await model.add(*make(size))
        began = time.process_time()
        _, rows, verdicts = await model.load(tmp_path / str(size))
        seconds.append(time.process_time() - began)
    assert seconds[1] < 8 * max(seconds[0], 0.05)
    assert rows == []
    assert set(verdicts.values()) & {"transcript_too_long", "bad_manifest_line"}


async def test_one_bad_cue_costs_one_cue_and_no_other_file(model, tmp_path):
    await model.add("a.wav")
    await model.add(
        "a.srt", f"1\n00:00:01,000 --> 00:00:02,000\n&#{'9' * 5000};\n\n2\n00:00:03,000 --> 00:00:04,000\nwords\n"
    )
    await model.add("b.wav")
    await model.add("b.vtt", f"{CUE}{'x' * 20_001}\n\n00:05.000 --> 00:06.000\nmore words\n")
    await model.add("c.wav")
    await model.add("c.txt", "good words")
    _, rows, verdicts = await model.load(tmp_path / "m")
    assert [row.text for row in rows] == ["words", "more words", "good words"]
    assert verdicts == {"b.vtt, line 3": "transcript_too_long"}


async def test_a_text_that_ends_its_reader_costs_itself_and_not_the_run(model, tmp_path):
    await model.add("a.wav")
    await model.add("a.txt", "good words")
    await model.add("b.wav")
    line = json.dumps({"audio_filepath": "b.wav", "text": "hello"})
    await model.add("m.jsonl", line)
    await model.add("n.jsonl", '{"a":[' + "[]," * 300_000 + "1]}")
    await model.add("o.jsonl", line)
    limits = ManifestLimits(reading=ReadingLimits(memory_bytes=36 << 20))
    _, rows, verdicts = await model.load(tmp_path / "m", limits)
    assert [row.text for row in rows] == ["hello", "good words"]
    assert verdicts == {"n.jsonl": "bad_manifest_line", "o.jsonl, line 1": "duplicate"}


async def test_the_same_data_gives_the_same_bytes(model, tmp_path):
    for n in range(40):
        await model.add(f"f{n}.wav")
        await model.add(f"f{n}.txt", f"Sentence number {n}.")
    await model.add(
        "m.jsonl", "\n".join(json.dumps({"audio_filepath": f"f{n}.wav", "text": f"T{n}"}) for n in range(9))
    )
    first, *_ = await model.load(tmp_path / "one")
    shuffled = random.Random(7).sample(model.items, len(model.items))
    second, *_ = await model.load(tmp_path / "two", ManifestLimits(at_once=2), shuffled)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.verdicts_path.read_bytes() == second.verdicts_path.read_bytes()


async def test_too_many_files_fail_the_run_with_a_sentence(model, tmp_path):
    for n in range(4):
        await model.add(f"f{n}.wav")
    with pytest.raises(StepFailed, match="more than 3 files") as failed:
        await model.load(tmp_path / "m", ManifestLimits(files=3))
    assert failed.value.code == "too_many_files"


async def test_of_a_broken_manifest_the_first_lines_are_spelled_out_and_all_are_counted(model, tmp_path):
    audio = await model.add("a.wav")
    broken = await model.add(
        "broken.jsonl", "x\n" * (SPELLED_OUT + 500) + '{"audio_filepath": "a.wav", "text": "?"}\n' * 3
    )
    good = await model.add("good.jsonl", '{"audio_filepath": "a.wav", "text": "Hello."}')
    manifest, rows, _ = await model.load(tmp_path / "m")
    assert [row.data_ids for row in rows] == [[audio.id, good.id]]
    assert len(manifest.verdicts_path.read_bytes().splitlines()) == SPELLED_OUT + 1 + 3
    report = merge_verdicts(manifest.verdicts, [])
    assert report.counts == manifest.counts == {"bad_manifest_line": SPELLED_OUT + 500, "empty_transcript": 3}
    assert [item.data_ids for item in report.items] == [[broken.id]]
    assert f"{SPELLED_OUT + 500} manifest lines not understood" in report.items[0].reason
    assert "broken.jsonl, line 1:" in report.items[0].reason


async def test_cues_are_cut_to_the_longest_segment_that_the_run_wants(model, tmp_path):
    await model.add("talk.wav")
    times = [f"00:00:{start:02}.000 --> 00:00:{start + 3:02}.000" for start in range(0, 57, 3)]
    await model.add("talk.vtt", "WEBVTT\n\n" + "\n\n".join(f"{time}\nwords {n}" for n, time in enumerate(times)))
    base = SimpleNamespace(
        id=1, key="en", recipe="whisper", hyper_parameters={}, weights="/base", version="1", general_set=None,
        language="en",
    )  # fmt: skip
    lengths = {}
    for wanted_s in (10, 30):
        run = SimpleNamespace(
            id="r", attempt=wanted_s, inputs=None, base_language_id=1, custom_model_id=2,
            wanted_parameters={"longest_segment_s": wanted_s},
        )  # fmt: skip
        attempt: Any = SimpleNamespace(run=run, folder=tmp_path, sign_of_progress=lambda: None, fence=None)
        parts: Any = SimpleNamespace(
            storage=model.storage, clock=Clock(), data=SimpleNamespace(of_model=model.every, splits_of=answer({}), last_of_newest_version=answer(None)),
            models=SimpleNamespace(base_language=answer(base)),
            runs=SimpleNamespace(fix_inputs=lambda _, inputs: answer(inputs)()),
        )  # fmt: skip
        inputs = await phases.load(attempt, parts)
        lines = (await model.storage.get_bytes(inputs.manifest, 1 << 20)).splitlines()
        lengths[wanted_s] = max(ManifestRow.model_validate_json(line).duration_s for line in lines)
    assert lengths == {10: 9.0, 30: 21.0}


async def test_a_large_manifest_is_read_without_holding_it(model, tmp_path):
    await model.add("a.wav")
    count = 10_000
    lines = (
        json.dumps({"audio_filepath": "a.wav", "text": f"Sentence {n} " + "x" * 1000, "offset": n, "duration": 1})
        for n in range(count)
    )
    data = "\n".join(lines).encode()
    await model.add("big.jsonl", data)
    size = len(data)
    assert size > 10_000_000
    del data

    tracemalloc.start()
    try:
        manifest = await build_manifest(model.every(), model.storage, tmp_path / "m", ManifestLimits())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert manifest.rows == count
    assert peak < 7_000_000  # a piece of 1 MB, its lines, and 16 bytes (about 100 with Python's set) a row
