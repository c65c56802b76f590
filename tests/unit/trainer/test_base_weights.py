"""Base weights of a hub are those of one commit, which is written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import MODEL, NEW, OLD, hub

pytestmark = pytest.mark.trainer
ROOT = Path(__file__).resolve().parents[3]


def fetched(address: str, folder: Path, *words: str, source: str = MODEL) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",  # which a step that this process once imported has set to 1
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder.parent / "hub-cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", "worker.trainer.base_weights", *words, source, str(folder)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def record(folder: Path) -> dict[str, str]:
    return json.loads(folder.with_name(f"{folder.name}.source.json").read_text())


def test_name_on_the_hub_becomes_a_commit_that_is_written_down_and_fetched(tmp_path: Path) -> None:
    with hub(main=NEW) as (address, asked):
        done = fetched(address, tmp_path / "weights")
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "weights") == {"source": MODEL, "revision": NEW}
    assert all(f"/resolve/{NEW}/" in line for line in asked if "/resolve/" in line), asked
    assert json.loads((tmp_path / "weights/config.json").read_text())["commit"] == NEW


def test_named_commit_is_fetched_whatever_the_name_means_today(tmp_path: Path) -> None:
    with hub(main=NEW) as (address, _):
        done = fetched(address, tmp_path / "weights", f"--revision={OLD}")
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "weights")["revision"] == OLD
    assert json.loads((tmp_path / "weights/config.json").read_text())["commit"] == OLD


def test_folder_that_holds_another_commit_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    with hub(main=NEW) as (address, _):
        assert fetched(address, tmp_path / "weights", f"--revision={OLD}").returncode == 0
        assert fetched(address, tmp_path / "weights", f"--revision={OLD}").returncode == 0
        done = fetched(address, tmp_path / "weights", f"--revision={NEW}")
    assert done.returncode == 1
    assert f"holds {OLD}, not {NEW}" in done.stderr


def test_revision_of_what_is_not_on_a_hub_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = fetched("http://127.0.0.1:9", tmp_path / "weights", "--revision=main", source=str(tmp_path / "mine"))
    assert done.returncode == 1
    assert "has no revisions" in done.stderr
