"""Checkpoints: complete or absent. Written beside their place, brought to disk, then named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from schemas.digest import file_digest, tree_digest
from schemas.events import Checkpoint
from worker.trainer.step import StepRun

FOLDER: Final = "checkpoints"
_KEPT: Final = 2
"""Of this attempt: the newest, and the one before in case the newest does not arrive whole."""


def identity(run: StepRun) -> dict[str, Any]:
    """What must be equal for a training to go on from a checkpoint."""
    summary = json.loads((run.input("dataset") / "summary.json").read_text(encoding="utf-8"))
    general = run.optional_input("general")
    return {
        "recipe": f"{run.spec.recipe} {run.spec.recipe_version}",
        "seed": run.spec.seed,
        "parameters": run.parameters.model_dump(mode="json", exclude={"checkpoint_every_s"}),
        "dataset": summary["key"],
        "base": file_digest(run.input("base") / "model.safetensors"),
        "general": file_digest(general / "index.jsonl") if general else None,
    }


def save(run: StepRun, steps_done: int, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write one checkpoint and tell its owner.

    Args:
        run: the step.
        steps_done: after which step the state is.
        identity: what must be equal for a training to go on from here; see `load`.
        state: tensors, numbers and nested dicts of them.
    """
    parent = run.output / FOLDER
    name = f"step-{steps_done:08d}"
    if (parent / name).exists():
        return
    partial = parent / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(state, partial / "state.pt")
    (partial / "identity.json").write_text(json.dumps(identity, sort_keys=True), encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        _sync(path)
    digest = tree_digest(partial)
    size = sum(path.stat().st_size for path in partial.iterdir())
    partial.rename(parent / name)
    _sync(parent)
    run.emitter.emit(Checkpoint(path=f"{FOLDER}/{name}", sha256=digest, bytes=size, steps_done=steps_done))
    for old in sorted(parent.glob("step-*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path | None, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of a checkpoint that belongs to this very training; None when it is another one or damaged."""
    if folder is None:
        return None
    try:
        found = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        if found != json.loads(json.dumps(identity)):
            differing = ", ".join(sorted(key for key in identity if found.get(key) != identity[key]))
            print(f"checkpoint {folder.name} is of another training ({differing}): starting over", flush=True)  # noqa: T201
            return None
        state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"checkpoint {folder.name} cannot be read ({error}): starting over", flush=True)  # noqa: T201 - log
        return None
    return state


def newest(run: StepRun) -> Path | None:
    """What to go on from: the checkpoint that the owner names, or a later one of this attempt."""
    own = sorted((run.output / FOLDER).glob("step-*"))
    given = run.optional_input("checkpoint")
    if own and (given is None or own[-1].name >= given.name):
        return own[-1]
    return given


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, with a memory of their own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
