"""What a phase tells the observers of what its step found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from schemas.splits import split_of
from schemas.steps import ManifestRow
from worker.clock import Clock
from worker.metrics import Metrics
from worker.pipeline import phases

pytestmark = pytest.mark.asyncio
COMPARED = {
    "utterances": 40,
    "base": {"words": 500, "wer": 0.4},
    "custom": {"words": 500, "wer": 0.2},
    "intervals": {"wer_change": [-0.25, -0.15]},
}


@pytest.mark.parametrize(("test", "runs"), [(COMPARED, 1), (None, 0)])
async def test_a_run_without_test_speech_has_no_error_rate(
    monkeypatch: pytest.MonkeyPatch, test: dict[str, Any] | None, runs: int
) -> None:
    async def measured(*_: Any) -> Any:
        return SimpleNamespace(figures={"test": test, "general": None})

    async def weights(*_: Any) -> str:
        return "weights"

    monkeypatch.setattr(phases, "run_step", measured)
    monkeypatch.setattr(phases, "base_weights", weights)
    monkeypatch.setattr(phases, "content_key", lambda *_: "key")
    made: Any = SimpleNamespace(place="place", sha256="digest", dataset=SimpleNamespace(sha256="digest"))
    attempt: Any = SimpleNamespace(run=SimpleNamespace(id=1))
    parts: Any = SimpleNamespace(metrics=Metrics())
    inputs: Any = SimpleNamespace(general_set=None, language="en")
    await phases.evaluate(attempt, parts, inputs, made, made)
    for model in ("base", "custom"):
        assert parts.metrics.registry.get_sample_value("training_word_error_rate_count", {"model": model}) == runs


async def test_what_0_1_0_kept_on_one_side_is_on_that_side_still() -> None:
    """It took a recording in pieces as a whole, whatever listed the pieces, and whole recordings by their words."""

    async def nothing(_: int) -> dict[Any, Any]:
        return {}

    async def last(_: int) -> int:
        return 7

    parts: Any = SimpleNamespace(clock=Clock(), data=SimpleNamespace(splits_of=nothing, last_of_newest_version=last))
    attempt: Any = SimpleNamespace(run=SimpleNamespace(custom_model_id=1))
    earlier = await phases._earlier_splits(attempt, parts)
    sides: dict[str, set[Any]] = {"cue": set(), "jsonl": set(), "txt": set()}
    for number in range(60):
        for source, offset_s in (("cue", float(number)), ("jsonl", float(number)), ("txt", None)):
            row = ManifestRow(
                row=0, data_ids=[7, 9], file="a.wav", audio="a", audio_sha256="ab" * 32, audio_bytes=1,
                text=f"sentence {number}", offset_s=offset_s, source=source,
            )  # fmt: skip
            sides[source].add(earlier(row))
            assert earlier(row.model_copy(update={"data_ids": [8, 9]})) is None, "it came after the version"
    whole = {split_of("ab" * 32)}
    assert sides == {"cue": whole, "jsonl": whole, "txt": {"train", "dev", "test"}}
