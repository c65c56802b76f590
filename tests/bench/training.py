"""How long until our weights are as good as the public recipe's after one epoch: same data, base and evaluation.

    bash tests/bench.sh training [--seeds 1,2,3] [--limit 0]

Both clocks start with the process that trains and stop with the weights: imports, loading, features and caches
count, decoding for the measurement does not. Ours leaves a checkpoint every few seconds; the first one whose WER on
the test split is at or below the reference's counts. Twice: the reference as published (1e-5), and with our learning
rate. Everything is cold but the base weights. Ends in `RESULT {…}`. On 2 cores: about 10 minutes a reference.
"""

from __future__ import annotations

import argparse
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
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deploy.local.cache import cache_root
from schemas.recipes import WHISPER, WhisperParameters, validated
from tests.unit.trainer.tiny import RUN, manifest, row
from worker.trainer.base_weights import OFFLINE_ID, fetch

ROOT = Path(__file__).resolve().parents[2]
CLINIC = ROOT / "deploy/demo/data/clinic"
MANIFESTS = ("train.jsonl", "test.jsonl", "test_unseen_voices.jsonl")
PUBLISHED_RATE = 1e-5
PACKAGES = ("accelerate==1.15.0", "psutil")
CHECKPOINT_EVERY_S = 3.0


def step(name: str, output: Path, inputs: dict[str, Path], seed: int, **parameters: Any) -> tuple[float, list[Any]]:
    """One recipe step as the worker starts it: its wall seconds, and its events with the second each came."""
    output.mkdir(parents=True, exist_ok=True)
    spec = {
        "run_id": str(RUN), "attempt": 1, "step": name, "recipe": WHISPER.name, "recipe_version": WHISPER.version,
        "seed": seed, "parameters": validated(WHISPER.name, parameters), "output": str(output),
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


def reference(data: Path, base: Path, output: Path, rate: float, seed: int, limit: int) -> float:
    """Train by the public recipe; wall seconds."""
    command = [sys.executable, "-m", "tests.bench.reference_recipe", str(data), str(base), str(output), str(rate)]
    packages = os.pathsep.join([str(ROOT), str(reference_packages())])
    environment = os.environ | {"PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(seed), "16", str(limit)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"the reference recipe failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


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
            model = as_model(checkpoint, base, folder / "model")
            rate.write_text(str(wer(model, base, data, folder / "evaluate")), encoding="utf-8")
            print(f"    ours after {second:.1f} s: WER {float(rate.read_text()):.3f}", flush=True)
        if float(rate.read_text(encoding="utf-8")) <= target:
            return second
    return None


def one_seed(seed: int, base: Path, scratch: Path, limit: int) -> dict[str, Any]:
    """Both recipes on the same data with one seed."""
    scratch.mkdir()
    rows = []
    for name in MANIFESTS:
        for line in (CLINIC / name).read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            audio = CLINIC / told["audio_filepath"]
            rows.append(
                row(len(rows), audio, told["text"], speaker=told["speaker"], split=told["split"], source="jsonl")
            )
    listed = manifest(scratch / "manifest.jsonl", rows)
    loading_s, _ = step("prepare", scratch / "prepare", {"manifest": listed}, seed)
    data = scratch / "prepare" / "dataset"
    inputs = {"base": base, "dataset": data}
    trained_s, events = step("train", scratch / "train", inputs, seed, checkpoint_every_s=CHECKPOINT_EVERY_S)
    reached = [
        (loading_s + s, scratch / "kept" / Path(e["path"]).name) for s, e in events if e["event"] == "checkpoint"
    ]
    found: dict[str, Any] = {"ours_whole_s": round(loading_s + trained_s, 1), "load": os.getloadavg()[0]}
    tuned = WhisperParameters().settled(replayed=False).learning_rate
    for name, rate in (("reference", PUBLISHED_RATE), ("tuned_reference", tuned)):
        seconds = loading_s + reference(data, base, scratch / name, rate, seed, limit)
        target = wer(scratch / name, base, data, scratch / f"{name}-evaluate")
        print(f"  seed {seed}: {name} WER {target:.3f} after {seconds:.0f} s", flush=True)
        ours = seconds_to(target, reached, base, data, scratch)
        found[name] = {"wer": target, "seconds": round(seconds, 1), "ours_s": ours and round(ours, 1)}
        found[f"speedup_to_{name}_wer"] = ours and round(seconds / ours, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.sh training", description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--limit", type=int, default=0, help="utterances of the reference's epoch; 0: all")
    options = parser.parse_args()
    base = fetch(OFFLINE_ID, cache_root() / "base-weights" / "whisper-tiny.en")
    with tempfile.TemporaryDirectory(prefix="training-bench-") as folder:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        runs = {seed: one_seed(seed, base, Path(folder) / str(seed), options.limit) for seed in seeds}
    result: dict[str, Any] = {"limited_to": options.limit or None}
    for name in ("speedup_to_reference_wer", "speedup_to_tuned_reference_wer"):
        reached = [one[name] for one in runs.values() if one[name]]
        result[name] = round(statistics.median(reached), 2) if len(reached) == len(runs) else None
    print(f"RESULT {json.dumps({**result, 'seeds': runs})}")


if __name__ == "__main__":
    main()
