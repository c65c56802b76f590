"""The model card: what a person must know of a model before using it, and what made it."""

import json
from pathlib import Path
from typing import Any

from worker.trainer.scoring import UNSPACED
from worker.trainer.step import StepRun

_HEAD = """---
library_name: transformers
pipeline_tag: automatic-speech-recognition
language: {language}
{base_model}---
# {name}

Made from {source} by the recipe `{recipe}` {recipe_version}, run `{run_id}`, seed {seed}.

## What it does better
{errors}

## Data
{accepted} recordings used, {minutes}; by split: {splits}. Refused: {refused}.

## Training
{steps} steps in {seconds} s; {trained_parameters} weights trained (the decoder's layers; the encoder is the base's).

```json
{parameters}
```

## Build
The same data, seed and settings give the same bytes with this build, processor and number of threads:

{build}

## Use
`WhisperForConditionalGeneration.from_pretrained` loads this folder; the folder `ctranslate2` beside it is for
faster-whisper. Both transcribed a test recording before they were published:

{smoke}
"""


def model_card(run: StepRun, build: dict[str, Any], smoke: dict[str, str]) -> str:
    """Markdown for the model folder's README.md, from the figures that the earlier steps left."""
    training = _read(run.optional_input("train"), "train.json")
    data = _read(run.optional_input("dataset"), "summary.json")
    context = run.spec.context
    inputs = context.get("inputs") or {}
    base = inputs.get("base_key")
    made_with = training.get("build") or build
    return _HEAD.format(
        name=context.get("model_name") or context.get("model_key") or "Custom speech model",
        language=json.dumps(run.spec.language),  # in quotes: to YAML a bare `no` is false
        base_model=f"base_model: {json.dumps(base)}\n" if base else "",
        source=f"`{base}` (weights {inputs.get('base_version', '?')[:16]})" if base else "the base model",
        recipe=run.spec.recipe,
        recipe_version=run.spec.recipe_version,
        run_id=run.spec.run_id,
        seed=run.spec.seed,
        errors="\n".join(_errors(_read(run.optional_input("evaluation"), "evaluation.json"), run.spec.language)),
        accepted=data.get("accepted", "?"),
        minutes=f"{data['usable_s'] / 60:.1f} min" if "usable_s" in data else "?",
        splits=_listed(data.get("seconds", {}), " s"),
        refused=_listed(data.get("rejected", {})) or "none",
        steps=training.get("steps", "?"),
        seconds=training.get("seconds", "?"),
        trained_parameters=training.get("trained_parameters", "?"),
        parameters=json.dumps(training.get("parameters", run.parameters.model_dump(mode="json")), indent=1),
        build="\n".join(f"- {key}: {value}" for key, value in made_with.items() if value is not None),
        smoke="\n".join(f"- {key}: {text}" for key, text in smoke.items()),
    )


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    path = folder / name if folder else None
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path and path.is_file() else {}


def _errors(evaluation: dict[str, Any], language: str) -> list[str]:
    rows = []
    for key in ("test", "known_voices", "unseen_voices", "general"):
        if found := evaluation.get(key):
            low, high = found["intervals"]["wer_change"]
            rows.append(
                f"| {key.replace('_', ' ')} | {found['base']['words']} | {found['base']['wer']:.1%} | "
                f"{found['custom']['wer']:.1%} | {100 * low:+.1f} to {100 * high:+.1f} points |"
            )
    if not rows:
        return ["Not measured."]
    rare = evaluation["rare_terms"]
    unit = "character" if language in UNSPACED else "word"
    return [
        f"{unit.capitalize()} error rate ({evaluation['decoding']}; both sides normalized alike):",
        "",
        f"| test set | {unit}s | base | custom | change, 95 % interval |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Rare terms heard: base {rare['base_heard']} of {rare['said']}, custom {rare['custom_heard']}.",
        *_dropped(evaluation.get("passages")),
    ]


def _dropped(passages: dict[str, Any] | None) -> list[str]:
    if passages is None:
        return []
    base, custom, windows = passages["base"], passages["custom"], passages["windows"]
    rates = f"Several sentences in one window ({windows} windows): base {base['wer']:.1%}, custom {custom['wer']:.1%}."
    left_out = (
        f"Sentences left out there: base {base['dropped']}, custom {custom['dropped']} of {passages['utterances']}."
    )
    return ["", rates, left_out]


def _listed(counts: dict[str, Any], unit: str = "") -> str:
    return ", ".join(f"{key} {value:g}{unit}" for key, value in counts.items())
