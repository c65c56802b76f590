"""The program that decodes strangers' recordings for an operator sees none of the operator's secrets."""

from __future__ import annotations

import argparse
import json
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from worker.cli.transcribe import written_down
from worker.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

SECRETS = (
    "WORKER_DATABASE_URL", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY",
    "PGPASSWORD", "A_NAME_THAT_NOBODY_THOUGHT_OF",
)  # fmt: skip


@pytest.mark.asyncio
async def test_the_decoder_of_strangers_recordings_sees_no_secret_and_a_home_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen.json"
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport json, os\njson.dump(dict(os.environ), open({str(seen)!r}, 'w'))\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HOME", "/home/operator")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    settings = Settings.model_construct(trainer_python=str(program))
    options = argparse.Namespace(json=False, language=None, audio=["a.wav"])
    assert await written_down(settings, tmp_path, "en", options) == 0
    environment = json.loads(seen.read_text())
    assert "secret" not in environment.values()
    assert environment["HOME"] == environment["TMPDIR"] != "/home/operator"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1", "the device is the operator's to choose"
