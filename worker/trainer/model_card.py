"""The model card: what a person must know of a model before using it, and what made it."""

import json
from pathlib import Path
from typing import Any

from worker.trainer.step import StepRun


def model_card(run: StepRun, build: dict[str, Any], smoke: dict[str, str]) -> str:
    """Markdown for the model folder's README.md, from the figures that the earlier steps left."""
    evaluation = _read(run.optional_input("evaluation"), "evaluation.json")
    training = _read(run.optional_input("train"), "train.json")
    data = _read(run.optional_input("dataset"), "summary.json")
    context = run.spec.context
    name = context.get("model_name") or context.get("model_key") or "Custom speech model"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: automatic-speech-recognition",
            "---",
            f"# {name}",
            "",
            f"Made from `{context.get('base_source') or context.get('base_language_key') or 'the base model'}` by the "
            f"recipe `{run.spec.recipe}` {run.spec.recipe_version}, run `{run.spec.run_id}`, seed {run.spec.seed}.",
            "",
            "## What it does better",
            *_errors(evaluation),
            "",
            "## Data",
            f"{data.get('accepted', '?')} recordings used, {_minutes(data.get('usable_s'))}; by split: "
            f"{_listed(data.get('seconds', {}), ' s')}. Refused: {_listed(data.get('rejected', {})) or 'none'}.",
            "",
            "## Training",
            f"{training.get('steps', '?')} steps in {training.get('seconds', '?')} s, "
            f"{training.get('trained_parameters', '?')} weights trained (the decoder's layers; the encoder is the base's).",
            "",
            "```json",
            json.dumps(training.get("parameters", run.parameters.model_dump(mode="json")), indent=1),
            "```",
            "",
            "## Build",
            "The same data, seed and settings give the same bytes with this build, processor and number of threads:",
            "",
            *(f"- {key}: {value}" for key, value in (training.get("build") or build).items() if value is not None),
            "",
            "## Use",
            "`WhisperForConditionalGeneration.from_pretrained` loads this folder; the folder `ctranslate2` beside it is "
            "for faster-whisper. Both transcribed a test recording before they were published: "
            + "; ".join(f"{key}: “{text}”" for key, text in smoke.items())
            + ".",
            "",
        ]
    )


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    path = folder / name if folder else None
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path and path.is_file() else {}


def _errors(evaluation: dict[str, Any]) -> list[str]:
    rows = ["", "| test set | words | base | custom | change, 95 % interval |", "|---|---|---|---|---|"]
    for key in ("test", "known_voices", "unseen_voices", "general"):
        found = evaluation.get(key)
        if found:
            low, high = found["intervals"]["wer_change"]
            rows.append(
                f"| {key.replace('_', ' ')} | {found['base']['words']} | {found['base']['wer']:.1%} | "
                f"{found['custom']['wer']:.1%} | {100 * low:+.1f} to {100 * high:+.1f} points |"
            )
    if len(rows) == 3:  # noqa: PLR2004 - nothing but the heading
        return ["Not measured."]
    rare = evaluation["rare_terms"]
    return [
        f"Word error rate ({evaluation['decoding']}; both sides normalized alike):",
        *rows,
        "",
        f"Rare terms heard: base {rare['base_heard']} of {rare['said']}, custom {rare['custom_heard']}.",
    ]


def _minutes(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 60:.1f} min"


def _listed(counts: dict[str, Any], unit: str = "") -> str:
    return ", ".join(f"{key} {value:g}{unit}" for key, value in counts.items())
