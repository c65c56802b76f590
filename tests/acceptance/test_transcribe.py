"""An operator tries a model: its version in use, another one, its base; with the real recipe's program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from schemas.digest import tree_digest

pytest.importorskip("torch", reason="needs the trainer's environment")

from tests.acceptance.world import ROOT
from tests.unit.trainer import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.world import World

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]
RECORDING = "deploy/demo/data/tn0000.opus"


def typed(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *words],
        env=world.environment(WORKER_TRAINER_PYTHON=sys.executable),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


async def publish(world: World, model: str, files: Path) -> None:
    """Version 1, by a run of the fake recipe whose export is then put in place."""
    row = await world.pool.fetchrow("select id, organization_id from custom_models where key = $1", model)
    for name, content in (("a.wav", b"sound"), ("a.txt", b"hello there")):
        await world.add_file(row["id"], row["organization_id"], name, content)
    await world.started()
    run = await world.ask((row["id"], row["organization_id"]))
    assert (await world.over(run))["gate"] == "published"
    shutil.copytree(files, world.folder / "storage/tried/export/model")
    digest = tree_digest(world.folder / "storage/tried/export")
    await world.pool.execute("update model_versions set address = 'tried/export', sha256 = $1", digest)


async def test_a_multilingual_base_is_registered_for_one_language_and_writes_in_it(world: World, tmp_path: Path):
    weights = tiny.tiny_whisper(tmp_path / "weights", "de")
    tiny.recording(tmp_path / "ordinary.wav", 2)
    ordinary = json.dumps({"audio_filepath": "ordinary.wav", "text": "schöne\u2028Bären"}, ensure_ascii=False)
    (tmp_path / "general.jsonl").write_text(ordinary + "\n", encoding="utf-8")
    add = ("base-language-add", "deutsch", "--weights", str(weights), "--general-set", str(tmp_path / "general.jsonl"))
    for words, told in (((), "name one language of de"), (("--language", "xx"), "does not know the language 'xx'")):
        refused = typed(world, *add, *words)
        assert refused.returncode == 1
        assert told in refused.stderr
    assert await world.pool.fetchval("select count(*) from base_languages where key = 'deutsch'") == 0

    added = typed(world, *add, "--language", "de")
    assert added.returncode == 0, added.stderr
    row = await world.pool.fetchrow("select language, general_set from base_languages where key = 'deutsch'")
    assert row["language"] == "de"
    index = (world.folder / "storage" / row["general_set"] / "index.jsonl").read_text(encoding="utf-8")
    assert json.loads(index)["text"] == "schöne\u2028Bären"
    typed(world, "model-add", "m", "--organization", str(world.organization), "--base", "deutsch", "--key", "m")
    written = typed(world, "transcribe", "m", RECORDING)
    assert written.returncode == 0, "English, which this base does not know, would be refused:\n" + written.stderr
    assert "knows no language 'en'" in typed(world, "transcribe", "m", RECORDING, "--language", "en").stderr


async def test_recordings_are_written_down_by_the_version_in_use_by_another_or_by_the_base(
    world: World, tmp_path: Path
):
    base = tiny.tiny_whisper(tmp_path / "weights")
    assert typed(world, "base-language-add", "en-tiny", "--weights", str(base)).returncode == 0
    added = typed(
        world, "model-add", "m", "--organization", str(world.organization), "--base", "en-tiny", "--key", "tried"
    )
    assert added.returncode == 0, added.stderr

    with_base = typed(world, "transcribe", "tried", RECORDING)
    assert with_base.returncode == 0, with_base.stderr
    assert "no published version yet: this is its base, en-tiny" in with_base.stderr

    await publish(world, "tried", base)
    with_version = typed(world, "transcribe", "--json", "tried", RECORDING, "nowhere.wav")
    assert with_version.returncode == 1, "one of them cannot be read"
    told = [json.loads(line) for line in with_version.stdout.splitlines()]
    assert [one["file"] for one in told] == [RECORDING, "nowhere.wav"]
    assert told[0]["end"] == pytest.approx(3.55, abs=0.1)
    assert "nowhere.wav: there is no such file" in with_version.stderr
    assert "base" not in with_version.stderr

    assert typed(world, "transcribe", "tried", RECORDING, "--version", "1").stdout == with_base.stdout, "same weights"
    none = typed(world, "transcribe", "tried", RECORDING, "--version", "2")
    assert none.returncode == 1
    assert "no version 2" in none.stderr
    assert "no custom model 'nobody'" in typed(world, "transcribe", "nobody", RECORDING).stderr

    (world.folder / "storage/tried/export/model/config.json").write_text("{}")
    spoiled = typed(world, "transcribe", "tried", RECORDING)
    assert spoiled.returncode == 1
    assert "not as they should be" in spoiled.stderr
    assert typed(world, "transcribe", "tried", RECORDING, "--base").returncode == 0
