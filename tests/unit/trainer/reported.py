"""What the earlier steps leave, small and by hand: enough for a report, as hostile as customers' texts can be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from schemas.recipes import WhisperParameters
from schemas.steps import Step, StepSpec
from worker.trainer.dataset import Dataset
from worker.trainer.emitter import Emitter
from worker.trainer.intervals import paired_intervals
from worker.trainer.report import write_report
from worker.trainer.scoring import character_errors, rate_figures, word_errors
from worker.trainer.step import StepRun, StopRequest

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "</script></style><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028\u202e {0} %s"
SENTENCES = (
    # said, base heard, custom heard, speaker, set
    ("start metolazone today", "start metal zone today", "start metolazone today", "anna", "test"),
    ("stop the pump", "stop the pump", "stop a pump", "anna", "test"),
    ("metolazone again", "metal is on a gain", "metolazone again", "otto", "test"),
    ("after lunch", "after lunch", "", "anna", "test"),
    ("ordinary words", "ordinary words", "ordinary words", "reader", "general"),
)


def rows(sentences=SENTENCES, seen=("anna",), **more: Any) -> list[dict[str, Any]]:
    """Rows as `evaluate` leaves them."""
    return [
        {
            "set": of, "row": number, "file": f"{number}.wav", "speaker": speaker, "unseen_voice": speaker not in seen,
            "seconds": 1.0, "text": said.capitalize() + ".", "reference": said, "base": base, "custom": custom,
            "base_words": vars(word_errors(said, base)), "custom_words": vars(word_errors(said, custom)),
            "base_looped": False, "custom_looped": number == 1, **more,
        }
        for number, (said, base, custom, speaker, of) in enumerate(sentences)
    ]  # fmt: skip


def compared(chosen: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Figures as `evaluate` gives them."""
    if not chosen:
        return None
    errors = {model: [word_errors(row["reference"], row[model]) for row in chosen] for model in ("base", "custom")}
    letters = {model: [character_errors(row["reference"], row[model]) for row in chosen] for model in errors}
    return {
        "utterances": len(chosen),
        "seconds": 1.0 * len(chosen),
        **{model: rate_figures(errors[model], letters[model], 1) for model in errors},
        "intervals": paired_intervals(errors["base"], errors["custom"], 1),
    }


def left_by_steps(folder: Path, found: list[dict[str, Any]], *, seconds: float = 1.0) -> dict[str, Path]:
    """Folders of every step; the inputs of `export`."""
    places = {name: folder / name for name in ("base", "custom", "evaluation", "dataset", "train")}
    for place in places.values():
        place.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(map(chr, range(32, 127)))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(places["base"] / "tokenizer.json"))
    (places["custom"] / "model.safetensors").write_bytes(b"weights")
    test = [row for row in found if row["set"] == "test"]
    evaluation = {
        "test": compared(test),
        "known_voices": compared([row for row in test if not row["unseen_voice"]]),
        "unseen_voices": compared([row for row in test if row["unseen_voice"]]),
        "general": compared([row for row in found if row["set"] == "general"]),
        "rare_terms": {"words": 2, "said": 2, "base_heard": 0, "custom_heard": 2},
        "decoding": "greedy", "peak_memory_bytes": 1_200_000_000,
    }  # fmt: skip
    (places["evaluation"] / "evaluation.json").write_text(json.dumps(evaluation))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    (places["evaluation"] / "rows.jsonl").write_text(lines, encoding="utf-8")
    points = [
        {"step": step, "loss": 4 / step, **({"dev_loss": 3 / step} if step % 10 == 0 else {})} for step in range(1, 31)
    ]
    (places["train"] / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    training = {
        "chosen_step": 20, "train_audio_s": 754.0, "train_utterances": 150, "seconds": 61.0,
        "peak_memory_bytes": 1_500_000_000, "build": {"torch": "2.13", "cuda": None}, "parameters": {"epochs": 3},
    }  # fmt: skip
    (places["train"] / "train.json").write_text(json.dumps(training))
    _dataset(places["dataset"], test, seconds)
    return places


def _dataset(folder: Path, test: list[dict[str, Any]], seconds: float) -> None:
    samples = round(16_000 * seconds)
    entries = [
        {"row": 900 + number, "text": "x", "speaker": "anna", "split": split, "file": "t.wav"}
        for number, split in enumerate(("train", "dev"))
    ]
    entries += [{name: row[name] for name in ("row", "text", "speaker", "file")} | {"split": "test"} for row in test]
    with (folder / "index.jsonl").open("w", encoding="utf-8") as index:
        for number, entry in enumerate(entries):
            place = {"start_sample": number * samples, "samples": samples, "offset_s": None}
            index.write(json.dumps(entry | place) + "\n")
    noise = np.random.default_rng(1).normal(0, 2_000, samples * len(entries))
    (folder / "audio.i16").write_bytes(noise.astype("<i2").tobytes())
    (folder / "summary.json").write_text(
        json.dumps({"rejected": {"silent": 2}, "usable_s": 6.0, "seconds": {"train": 6.0}})
    )


def context(**more: Any) -> dict[str, Any]:
    """What `publish` tells `export`."""
    return {
        "worker_version": "0.1.0", "model_id": 7, "gate": "published", "gate_sentence": "It is better.",
        "inputs": {"base_key": "en", "manifest_sha256": "a" * 64, "base_version": "b" * 64},
        "phase_seconds": {"load": 0.5, "prepare": 2.0, "train": 61.0, "evaluate": 30.0},
        "data_report": {
            "usable_s": 800.0, "seconds": {"train": 754.0, "dev": 20.0, "test": 26.0},
            "segments": {"train": 150, "dev": 5, "test": 8},
            "files": {"accepted": 163, "rejected": 2, "waiting_for_pair": 1}, "counts": {"silent": 2},
            "reasons": {"silent": {"sentence": "Nothing can be heard.", "remedy": "Record it again."}},
            "rejections": [{"file": "quiet.wav", "reason_code": "silent", "reason": "Nothing.", "duration_s": 2.0}],
            "rejections_total": 2,
        },
        **more,
    }  # fmt: skip


def report_of(
    folder: Path, places: dict[str, Path], told: dict[str, Any], language: str = "en"
) -> tuple[str, dict[str, Any]]:
    """The page and its figures."""
    run = export_run(folder / "export", places, told, language)
    assert write_report(run, Dataset(places["dataset"])) == ["report.html", "report.json"]
    html, figures = (run.output / name for name in ("report.html", "report.json"))
    return html.read_text(encoding="utf-8"), json.loads(figures.read_text())


def export_run(output: Path, places: dict[str, Path], told: dict[str, Any], language: str = "en") -> StepRun:
    """The step `export` after those that left these folders."""
    output.mkdir()
    spec = StepSpec(
        run_id=UUID(int=5), attempt=2, step=Step.EXPORT, recipe="whisper", recipe_version="1", seed=3, context=told,
        language=language, parameters={}, inputs={name: str(place) for name, place in places.items()}, output=str(output),
    )  # fmt: skip
    return StepRun(spec, WhisperParameters(), Emitter(1), StopRequest())
