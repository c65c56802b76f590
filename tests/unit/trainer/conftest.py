"""One tiny base model and one tiny dataset for all tests of the trainer."""

# ruff: noqa: PLC0415 - torch is loaded only where a test needs it

from pathlib import Path

import pytest

from schemas.steps import Step
from tests.unit.trainer import tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    pytest.importorskip("torch")
    return tiny.tiny_whisper(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """24 utterances to train on, 16 for development, 6 to test with, 2 of them in a voice of its own."""
    from worker.trainer import prepare

    folder = tmp_path_factory.mktemp("data")
    splits = ["train"] * 24 + ["dev"] * 16 + ["test"] * 6
    rows = [
        tiny.row(
            number,
            tiny.recording(folder / f"{number}.wav", 1.0 + 0.05 * number, seed=number),
            tiny.spoken(number),
            split=split,
            speaker="other" if number > 43 else "own",
            source="jsonl",
        )
        for number, split in enumerate(splits)
    ]
    listed = tiny.manifest(folder / "manifest.jsonl", rows)
    run, _ = tiny.step_run(Step.PREPARE, folder / "prepare", {"manifest": listed})
    prepare.run(run)
    return run.output / "dataset"
