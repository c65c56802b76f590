"""Everything a report says, gathered from what the steps left: one JSON object, and the page shows nothing else."""

import json
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from schemas.digest import file_digest
from schemas.verdicts import REASONS
from worker.trainer.dataset import Dataset, json_lines
from worker.trainer.memory import peak_memory_bytes
from worker.trainer.report.compared import SENTENCES_SHOWN, TERMS_SHOWN, change, sentences, terms, words
from worker.trainer.scoring import UNSPACED
from worker.trainer.step import StepRun

FORMAT: Final = 1
SPEAKERS_SHOWN: Final = 30
CURVE_POINTS: Final = 400
SPLITS: Final = ("train", "dev", "test")


def gather(run: StepRun, dataset: Dataset) -> dict[str, Any]:
    """The whole report; parts that were not measured are None or empty."""
    context = run.spec.context
    training = _json(run.optional_input("train"), "train.json")
    evaluation = _json(run.optional_input("evaluation"), "evaluation.json")
    rows = _lines(run.optional_input("evaluation"), "rows.jsonl")
    laid_out = sentences(rows)
    shown = sorted(laid_out, key=lambda one: (-change(one), one["row"]))[:SENTENCES_SHOWN]
    kept = {(one["set"], one["row"]) for one in shown}
    inputs = context.get("inputs") or {}
    rare = terms(rows, _pieces(run.input("base"))) if rows else []
    return {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": str(run.spec.run_id),
        "attempt": run.spec.attempt,
        "model": context.get("model_name") or context.get("model_key") or _model(context),
        "base": inputs.get("base_key"),
        "by_character": run.spec.language in UNSPACED,
        "gate": context.get("gate"),
        "gate_sentence": context.get("gate_sentence"),
        "evaluation": evaluation,
        "data": _data(context.get("data_report"), _json(run.optional_input("dataset"), "summary.json")),
        "speakers": _speakers(dataset),
        "curves": _curves(_lines(run.optional_input("train"), "curves.jsonl")),
        "chosen_step": training.get("chosen_step"),
        "training": {name: value for name, value in training.items() if name not in {"build", "parameters"}},
        "terms": rare[:TERMS_SHOWN],
        "terms_total": len(rare),
        "words": words(laid_out),
        "sentences": [one for one in laid_out if (one["set"], one["row"]) in kept],
        "sentences_total": len(laid_out),
        "phases": _phases(context.get("phase_seconds") or {}, training, evaluation),
        "settings": training.get("parameters") or run.parameters.model_dump(mode="json"),
        "made_with": {
            "worker": context.get("worker_version"),
            "recipe": f"{run.spec.recipe} {run.spec.recipe_version}",
            "seed": run.spec.seed,
            "decoding": evaluation.get("decoding"),
            **{name: value for name, value in (training.get("build") or {}).items() if value is not None},
        },
        "digests": {
            "manifest (sha256)": inputs.get("manifest_sha256"),
            "base version": inputs.get("base_version"),
            "trained weights (sha256)": _digest(run.optional_input("custom")),
        },
    }


def _model(context: dict[str, Any]) -> str:
    return f"Model {context['model_id']}" if context.get("model_id") is not None else "Custom speech model"


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    path = folder / name if folder else None
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path and path.is_file() else {}


def _lines(folder: Path | None, name: str) -> list[dict[str, Any]]:
    path = folder / name if folder else None
    return json_lines(path) if path and path.is_file() else []


def _digest(folder: Path | None) -> str | None:
    weights = folder / "model.safetensors" if folder else None
    return file_digest(weights) if weights and weights.is_file() else None


def _pieces(base: Path) -> Any:
    tokenizer: Any = Tokenizer.from_file(str(base / "tokenizer.json"))
    return lambda word: len(tokenizer.encode(" " + word, add_special_tokens=False).ids)


def _data(report: dict[str, Any] | None, summary: dict[str, Any]) -> dict[str, Any]:
    """What was used and what was not, as the run knows it, else as the prepare step counted it."""
    if report:
        return report
    counts = summary.get("rejected", {})
    told = {code: REASONS[code] for code in counts if code in REASONS}
    return {
        "usable_s": summary.get("usable_s", 0.0),
        "seconds": summary.get("seconds", {}),
        "segments": summary.get("segments", {}),
        "files": {},
        "counts": counts,
        "reasons": {code: {"sentence": one.sentence, "remedy": one.remedy} for code, one in told.items()},
        "rejections": [],
        "rejections_total": sum(counts.values()),
    }


def _speakers(dataset: Dataset) -> dict[str, Any]:
    """Seconds by speaker and split, the most heard first; speakers without a name together under None."""
    seconds: dict[str | None, Counter[str]] = defaultdict(Counter)
    for one in dataset.utterances:
        seconds[one.speaker or None][one.split] += one.seconds  # type: ignore[assignment] # a Counter adds floats too
    listed: list[dict[str, Any]] = [
        {"speaker": name, **{split: round(float(found[split]), 1) for split in SPLITS}}
        for name, found in sorted(seconds.items(), key=lambda entry: (-sum(entry[1].values()), entry[0] or ""))
    ]
    left_out = listed[SPEAKERS_SHOWN:]
    return {
        "named": sum(1 for one in listed if one["speaker"] is not None),
        "listed": listed[:SPEAKERS_SHOWN],
        "left_out": len(left_out),
        "left_out_s": round(sum(one[split] for one in left_out for split in SPLITS), 1),
    }


def _curves(points: list[dict[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Each curve by name, [step, value]; finite points only; long ones as means of equal stretches."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        for name, value in point.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                found[name].append((point["step"], value))
    return {name: _thinned(curve) for name, curve in found.items()}


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stretch = -(-len(curve) // CURVE_POINTS)
    pieces = [curve[start : start + stretch] for start in range(0, len(curve), stretch)]
    return [(piece[-1][0], round(sum(value for _, value in piece) / len(piece), 5)) for piece in pieces]


def _phases(
    seconds: dict[str, float], training: dict[str, Any], evaluation: dict[str, Any]
) -> list[dict[str, float | str | None]]:
    peaks = {
        "train": training.get("peak_memory_bytes"),
        "evaluate": evaluation.get("peak_memory_bytes"),
        "publish": peak_memory_bytes(),
    }
    names = [*seconds, *(name for name in ("train", "evaluate", "publish") if name not in seconds)]
    own = {"train": training.get("seconds")}
    return [
        {"phase": name, "seconds": seconds.get(name, own.get(name)), "peak_memory_bytes": peaks.get(name)}
        for name in names
    ]
