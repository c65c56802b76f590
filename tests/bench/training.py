"""How long until our weights are as good as the public recipe's after one epoch: same data, base and evaluation.

    bash tests/bench.sh training [--seeds 1,2,3] [--limit 0] [--folder FOLDER]

Both clocks start with the process that trains and stop with the weights: imports, loading, features and caches
count, decoding for the measurement does not. Ours leaves a checkpoint every few seconds; the first one whose WER on
the test split is at or below the reference's counts. Against two references, each trained once: as published (1e-5),
and with our learning rate. Ours trains with every seed. Everything is cold but the base weights.

Parts: two references (6 to 10 minutes each on 2 cores), each seed's training (2), then decoding, which nothing times
(5 to 10 a seed). `RESULT {…}` follows each part; what lies in FOLDER from an earlier call is not measured again, so a
run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from deploy.local.cache import cache_root
from schemas.recipes import WHISPER, WhisperParameters, validated
from tests.unit.trainer.tiny import RUN, manifest, row
from worker.trainer.base_weights import OFFLINE_ID, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "deploy/demo/data"
MANIFESTS = ("train.jsonl", "test.jsonl", "test_unseen_voices.jsonl")
PUBLISHED_RATE = 1e-5
PACKAGES = ("accelerate==1.15.0", "psutil")
CHECKPOINT_EVERY_S = 3.0


def step(name: str, output: Path, inputs: dict[str, Path], seed: int, **parameters: Any) -> tuple[float, list[Any]]:
    """One recipe step as the worker starts it: its wall seconds, and its events with the second each came."""
    output.mkdir(parents=True, exist_ok=True)
    spec = {
        "run_id": str(RUN), "attempt": 1, "step": name, "recipe": WHISPER.name, "recipe_version": WHISPER.version,
        "seed": seed, "parameters": validated(WHISPER.name, parameters | {"seed": seed}), "output": str(output),
        "inputs": {key: str(path) for key, path in inputs.items()},
    }  # fmt: skip
    reading, writing = os.pipe()
    began = time.perf_counter()
    with (output.parent / f"{output.name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" -m worker.trainer 3>&{writing}', sys.executable],
            stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(writing,), cwd=ROOT,
        )  # fmt: skip
        os.close(writing)
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec).encode())
        process.stdin.close()
        events = []
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                events.append((time.perf_counter() - began, event))
                if event["event"] == "checkpoint":  # the step prunes its own: keep each one
                    shutil.copytree(output / event["path"], output.parent / "kept" / Path(event["path"]).name)
        process.wait()
    assert events[-1][1]["event"] == "result", events[-1]
    return events[-1][0], events


def wer(folder: Path, base: Path, data: Path, output: Path) -> float:
    """The word error rate of a folder of weights on the test split, by our own evaluation."""
    _, events = step("evaluate", output, {"base": base, "custom": folder, "dataset": data}, 1)
    return float(events[-1][1]["figures"]["wer_custom"])


def reference(data: Path, base: Path, output: Path, rate: float, limit: int) -> dict[str, float]:
    """Train by the public recipe: wall seconds, and the word error rate after its epoch."""
    command = [sys.executable, "-m", "tests.bench.reference_recipe", str(data), str(base), str(output), str(rate)]
    packages = os.pathsep.join([str(ROOT), str(reference_packages())])
    environment = os.environ | {"PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "1", "16", str(limit)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"the reference recipe failed:\n{done.stderr[-2000:]}")
    seconds = float(json.loads(done.stdout.splitlines()[-1])["seconds"])
    return {"seconds": seconds, "wer": wer(output, base, data, output.parent / f"{output.name}-evaluate")}


def reference_packages() -> Path:
    """What only the reference needs, in a folder of its own."""
    folder = cache_root() / f"bench-training-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:12]}"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(partial), *PACKAGES], check=True
        )
        partial.rename(folder)
    return folder


def as_model(checkpoint: Path, base: Path, output: Path) -> Path:
    """A checkpoint's weights as a model's folder."""
    weights = load_file(base / "model.safetensors")
    for name, weight in torch.load(checkpoint / "state.pt", weights_only=True)["trained"].items():
        weights[name] = weight.to(weights[name].dtype)
    output.mkdir(parents=True)
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    return output


def seconds_to(target: float, reached: list[tuple[float, Path]], base: Path, data: Path, scratch: Path) -> float | None:
    """The second of the first weights at or below a word error rate; None when none are."""
    for number, (second, checkpoint) in enumerate(reached):
        folder = scratch / f"candidate-{number}"
        rate = folder / "wer"
        if not rate.exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of it, from a call that was cut short
            model = as_model(checkpoint, base, folder / "model")
            rate.write_text(str(wer(model, base, data, folder / "evaluate")), encoding="utf-8")
            print(f"    ours after {second:.1f} s: WER {float(rate.read_text()):.3f}", flush=True)
        if float(rate.read_text(encoding="utf-8")) <= target:
            return second
    return None


def prepared(base: Path, folder: Path) -> tuple[float, Path]:
    """The dataset that both train on, and the seconds it took to make: they count for both."""
    rows = []
    for name in MANIFESTS:
        for line in (RECORDINGS / name).read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            audio = RECORDINGS / told["audio_filepath"]
            rows.append(
                row(len(rows), audio, told["text"], speaker=told["speaker"], split=told["split"], source="jsonl")
            )
    listed = manifest(folder / "manifest.jsonl", rows)
    seconds, _ = step("prepare", folder / "prepare", {"base": base, "manifest": listed}, 1)
    return seconds, folder / "prepare" / "dataset"


def trained(seed: int, base: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Train with a seed: the whole training's seconds, and when each of its checkpoints was there."""
    seconds, events = step(
        "train", folder / "train", {"base": base, "dataset": data}, seed, checkpoint_every_s=CHECKPOINT_EVERY_S
    )
    reached = [(s, str(folder / "kept" / Path(e["path"]).name)) for s, e in events if e["event"] == "checkpoint"]
    return {"whole_s": round(seconds, 1), "load": os.getloadavg()[0], "reached": reached}


def judged(training: dict[str, Any], base: Path, data: Path, folder: Path, targets: dict[str, float]) -> dict[str, Any]:
    """The seconds until each target was reached."""
    reached = [(second, Path(checkpoint)) for second, checkpoint in training["reached"]]
    found = {name: value for name, value in training.items() if name != "reached"}
    for name, target in sorted(targets.items(), key=lambda known: -known[1]):
        found[name] = seconds_to(target, reached, base, data, folder)
    return found


def kept(place: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's figures: from an earlier call, or measured now."""
    if not place.exists():
        shutil.rmtree(place.with_suffix(""), ignore_errors=True)  # half of a part that was cut short
        place.with_suffix("").mkdir(parents=True)
        figures = measure()
        place.write_text(json.dumps(figures), encoding="utf-8")
    known: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return known


def result(prepare_s: float, references: dict[str, Any], seeds: dict[str, Any]) -> dict[str, Any]:
    """Ratios of wall seconds, medians over the seeds measured so far; null where some seed never got there."""
    found: dict[str, Any] = {}
    for name, known in references.items():
        ratios = [one[name] and (prepare_s + known["seconds"]) / (prepare_s + one[name]) for one in seeds.values()]
        reached = ratios and all(ratios)
        found[f"speedup_to_{name}_wer"] = round(statistics.median(ratios), 2) if reached else None
    return {**found, "prepare_s": round(prepare_s, 1), "references": references, "seeds": seeds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.sh training", description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--limit", type=int, default=0, help="utterances of the references' epoch; 0: all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "speech-training-bench")
    options = parser.parse_args()
    base = fetch(OFFLINE_ID, cache_root() / "base-weights" / "whisper-tiny.en")
    place = options.folder / f"limit-{options.limit}"
    place.mkdir(parents=True, exist_ok=True)

    def prepare() -> dict[str, Any]:
        seconds, data = prepared(base, place / "data")
        return {"seconds": seconds, "folder": str(data)}

    loading = kept(place / "data.json", prepare)
    data = Path(loading["folder"])
    references: dict[str, Any] = {}
    for name, rate in (("reference", PUBLISHED_RATE), ("tuned_reference", WhisperParameters().learning_rate)):
        measure = functools.partial(reference, data, base, place / f"{name}-{rate}" / "model", rate, options.limit)
        references[name] = kept(place / f"{name}-{rate}.json", measure)
        print(f"{name} (rate {rate}): WER {references[name]['wer']:.3f} after {references[name]['seconds']:.0f} s")
        print(f"RESULT {json.dumps(result(loading['seconds'], references, {}))}", flush=True)
    targets = {name: known["wer"] for name, known in references.items()}
    folders = {seed: place / f"ours-{WHISPER.version}-{seed}" for seed in options.seeds.split(",")}
    trainings = {}
    for seed, folder in folders.items():  # what is timed comes first: afterwards the machine may have company
        training = functools.partial(trained, int(seed), base, data, folder)
        trainings[seed] = kept(folder.with_suffix(".json"), training)
        print(f"seed {seed}: trained in {trainings[seed]['whole_s']} s; nothing below is timed", flush=True)
    seeds: dict[str, Any] = {}
    for seed, folder in folders.items():
        verdict = functools.partial(judged, trainings[seed], base, data, folder, targets)
        seeds[seed] = kept(folder.with_name(f"{folder.name}-judged.json"), verdict)
        print(f"RESULT {json.dumps(result(loading['seconds'], references, seeds))}", flush=True)


if __name__ == "__main__":
    main()
