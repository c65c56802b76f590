"""Whole runs with the real recipe on real audio: what becomes of every kind of broken file."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import uuid
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import soundfile

from tests.acceptance.world import until
from worker.storage import open_storage

if TYPE_CHECKING:
    from tests.acceptance.world import World

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]
CLINIC = Path(__file__).parent.parent.parent / "deploy/demo/data"
GOOD, TEST = 20, 14
QUICK = ("--set", "epochs=1", "--set", "batch_size=8")
LONG_S = 2 * 3600
RUN_S = 600.0


def manifest_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CLINIC / name).read_text().splitlines()]


def use_real_recipe(world: World) -> None:
    """The real trainer, and the lease times of production."""
    world.settings |= {
        "WORKER_TRAINER_PYTHON": sys.executable,
        "WORKER_LEASE_S": "60",
        "WORKER_PAUSE_S": "45",
        "WORKER_RENEW_S": "5",
    }


def command(world: World, *words: str) -> dict[str, Any]:
    done = world.command(words[0], "--json", *words[1:])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def make_model(world: World) -> str:
    use_real_recipe(world)
    command(world, "base-language-add", "en-real", "--weights", "offline:whisper-tiny.en")
    return str(
        command(world, "model-add", "clinic", "--organization", str(world.organization), "--base", "en-real")["key"]
    )


def write_audio(samples: np.ndarray, path: Path) -> None:
    soundfile.write(path, samples, 16_000)


def write_m4a(samples: np.ndarray, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def broken_folder(folder: Path) -> dict[str, str | None]:
    """Good recordings and every kind of broken one; the reason code expected of each, None where it is good."""
    folder.mkdir()
    expected: dict[str, str | None] = {}
    good = manifest_of("train.jsonl")
    for row in [*good[:GOOD], *manifest_of("test_unseen_voices.jsonl")[:TEST]]:
        shutil.copy(CLINIC / row["audio_filepath"], folder / row["audio_filepath"])
        expected[row["audio_filepath"]] = None
    rows = good[:GOOD] + manifest_of("test_unseen_voices.jsonl")[:TEST]
    rows.append({"audio_filepath": "never_uploaded.wav", "text": "where is it"})
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    sound, _ = soundfile.read(CLINIC / good[GOOD]["audio_filepath"], dtype="float32")
    sound = sound[: 16_000 * 4] if len(sound) else sound

    def pair(stem: str, suffix: str, text: str, code: str | None) -> Path:
        (folder / f"{stem}.txt").write_text(text)
        expected[f"{stem}{suffix}"] = code
        return folder / f"{stem}{suffix}"

    write_audio(sound, pair("no_words", ".wav", "  \n", None))
    del expected["no_words.wav"]  # refused is the transcript; the recording waits for a better one
    expected["no_words.txt"] = "empty_transcript"
    whole = folder / "whole.mp3"
    soundfile.write(whole, sound, 16_000)
    pair("cut", ".mp3", "half of it is gone", "unreadable_audio").write_bytes(whole.read_bytes()[:60])
    whole.unlink()
    pair("nothing", ".wav", "nothing at all", "unreadable_audio").write_bytes(b"")
    write_audio(
        sound, pair("too_many_words", ".wav", "far more than anybody says " * 60, "transcript_too_long_for_audio")
    )
    first = good[0]
    shutil.copy(CLINIC / first["audio_filepath"], pair("again", ".opus", first["text"], "duplicate"))
    write_m4a(sound, pair("phone", ".m4a", good[GOOD]["text"], None))
    write_audio(np.zeros(32_000, np.float32), pair("still", ".wav", "is anybody there", "silent"))
    expected["long.wav"] = None
    long_recording(folder, sound, good[GOOD]["text"])
    return expected


def long_recording(folder: Path, sound: np.ndarray, text: str) -> None:
    """Two hours at 8 kHz, silent but for three sentences, with a .vtt that says where they are."""
    spoken = (sound[::2] * 32_767).astype("<i2")
    seconds = len(spoken) / 8_000
    with wave.open(str(folder / "long.wav"), "wb") as out:
        out.setparams((1, 2, 8_000, 0, "NONE", ""))
        block = np.zeros(8_000 * 60, "<i2").tobytes()
        for minute in range(LONG_S // 60):
            out.writeframes(spoken.tobytes() + block[spoken.nbytes :] if minute in (0, 60, 119) else block)
    cues = "".join(
        f"{at // 60:02d}:{at % 60:02d}:00.000 --> {at // 60:02d}:{at % 60:02d}:{seconds:06.3f}\n{text} {at}\n\n"
        for at in (0, 60, 119)
    )
    (folder / "long.vtt").write_text(f"WEBVTT\n\n{cues}")


async def test_a_run_on_half_broken_data_succeeds_with_a_verdict_for_every_file(world: World, tmp_path: Path):
    model = make_model(world)
    expected = broken_folder(tmp_path / "upload")
    imported = command(world, "import", str(tmp_path / "upload"), "--model", model)
    assert imported["added"] >= len(expected)
    worker = await world.started()
    run = command(world, "request-run", model, *QUICK)["run_id"]
    row = await world.over(run, RUN_S)
    assert row["status"] == 4, (row["failure_reason"], row["failure_detail"], worker.tail())

    rows = await world.pool.fetch(
        "select d.name, d.verdict, d.reason_code, d.reason from training_data d"
        " join custom_models m on m.id = d.custom_model_id where m.key = $1",
        model,
    )
    found = {row["name"]: row for row in rows}
    # the transcript of a recording that cannot be read waits for a better recording
    assert [row["name"] for row in rows if row["verdict"] == "waiting_for_pair"] == ["nothing.txt"]
    for name, code in expected.items():
        assert found[name]["reason_code"] == code, (name, dict(found[name]))
        assert found[name]["verdict"] == ("accepted" if code is None else "rejected"), name
        if code is not None:
            assert found[name]["reason"].endswith("."), name
    report = json.loads(row["data_report"])
    assert report["counts"]["missing_file"] >= 1, "the manifest's line without a recording"
    figures = json.loads(row["figures"])
    assert figures["test"]["utterances"] >= TEST, "the rule adds to marked rows that are too few to measure by"
    assert {"substitutions", "deletions", "insertions", "cer", "wer"} <= set(figures["test"]["custom"])
    storage = open_storage((world.folder / "storage").as_uri())
    prefix = f"runs/{run}/1/export"
    exported = {stored.key.removeprefix(f"{prefix}/") async for stored in storage.listing(prefix)}
    assert {"model/model.safetensors", "model/tokenizer.json", "model/README.md", "ctranslate2/model.bin"} <= exported
    card = (world.folder / "storage" / prefix / "model/README.md").read_text()
    assert 'language: "en"\nbase_model: "en-real"\n' in card


async def test_a_run_on_data_that_is_all_broken_fails_with_the_counts_by_reason(world: World, tmp_path: Path):
    model = make_model(world)
    folder = tmp_path / "upload"
    folder.mkdir()
    for number in range(3):
        (folder / f"cut{number}.wav").write_bytes(b"RIFF" + bytes([number]))
        (folder / f"cut{number}.txt").write_text(f"words {number}")
    (folder / "alone.txt").write_text("nobody speaks")
    write_audio(np.zeros(32_000, np.float32), folder / "still.wav")
    (folder / "still.txt").write_text("is anybody there")
    command(world, "import", str(folder), "--model", model)
    await world.started()
    run = command(world, "request-run", model)["run_id"]
    row = await world.over(run, RUN_S)
    assert row["status"] == 5
    assert row["failure_class"] == "data"
    assert row["attempt"] == 1, "bad data is not tried again"
    counts = json.loads(row["data_report"])["counts"]
    assert counts["unreadable_audio"] == 3
    assert counts["silent"] == 1
    assert "3" in row["failure_reason"]


async def test_a_training_that_sigterm_interrupted_ends_with_the_very_weights_of_an_undisturbed_one(
    world: World, tmp_path: Path
):
    model = make_model(world)
    rows = [*manifest_of("train.jsonl")[:GOOD], *manifest_of("test_unseen_voices.jsonl")[:TEST]]
    (tmp_path / "upload").mkdir()
    for row in rows:
        shutil.copy(CLINIC / row["audio_filepath"], tmp_path / "upload" / row["audio_filepath"])
    (tmp_path / "upload" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command(world, "import", str(tmp_path / "upload"), "--model", model)
    settings = ("--set", "epochs=4", "--set", "batch_size=2", "--set", "hearings=1")

    worker = await world.started()
    undisturbed = uuid.UUID(command(world, "request-run", model, *settings)["run_id"])
    assert (await world.over(undisturbed, RUN_S))["status"] == 4, worker.tail()

    interrupted = uuid.UUID(command(world, "request-run", model, *settings)["run_id"])

    async def under_way() -> bool:
        row = await world.row(interrupted)
        return row is not None and row["phase"] == "train" and row["percent"] >= 20

    await until(under_way, "a training under way", RUN_S)
    worker.terminate()
    assert await worker.exit_code(RUN_S) == 0, worker.tail()
    row = await world.row(interrupted)
    assert row is not None
    assert (row["status"], row["hand_overs"], row["failures"]) == (2, 1, 0), worker.tail()
    worker = await world.started()
    row = await world.over(interrupted, RUN_S)
    assert (row["status"], row["attempt"]) == (4, 2), (row["failure_reason"], worker.tail())

    assert trained(world, interrupted, 2)["resumed_from_step"] > 0
    assert weights(world, interrupted, 2) == weights(world, undisturbed, 1)


def trained(world: World, run: uuid.UUID, attempt: int) -> dict[str, Any]:
    [found] = (world.folder / "storage/runs" / str(run) / str(attempt)).rglob("train.json")
    return json.loads(found.read_text())


def weights(world: World, run: uuid.UUID, attempt: int) -> str:
    """SHA-256 of the weights that a run's attempt exported."""
    file = world.folder / "storage/runs" / str(run) / str(attempt) / "export/model/model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()
