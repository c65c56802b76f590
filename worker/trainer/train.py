"""Step `train`: the decoder learns the customer's words from the states of an encoder that stays as it is."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors.torch import load_file, save_file

from worker.trainer import checkpoint
from worker.trainer.anchor import anchored, moments, ordinary_speech
from worker.trainer.batches import Batches
from worker.trainer.build import build_facts
from worker.trainer.curves import Curves
from worker.trainer.dataset import Dataset
from worker.trainer.failures import StepStoppedError, bad_data
from worker.trainer.memory import peak_memory_bytes
from worker.trainer.objective import loss
from worker.trainer.plan import Plan
from worker.trainer.ranks import Ranks, in_ranks
from worker.trainer.states import forget_kept
from worker.trainer.step import StepRun, write_atomically, write_json
from worker.trainer.whisper import WEIGHTS, Whisper, half_precision, processor

Piece = TypeVar("Piece")
_SEED_STRIDE: Final = 1_000_003
_TRAINED: Final = tuple(
    f".{part}."
    for part in (
        "encoder_attn.q_proj",
        "encoder_attn.v_proj",
        "encoder_attn.out_proj",
        "encoder_attn_layer_norm",
        "fc1",
        "fc2",
    )
)
"""Cross-attention with its norm but without its keys, and the feed-forward layers, as transformers names them."""


def run(run: StepRun) -> None:
    """Train, in as many processes as the step may have."""
    in_ranks(run, train)


def train(run: StepRun, ranks: Ranks) -> None:  # noqa: PLR0915 - the whole training, top to bottom
    """Train from the base, or go on from a checkpoint of this very training; bit-equal either way."""
    settings, began = run.parameters, time.monotonic()
    device = processor()
    precision = half_precision(settings.precision, device)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    dataset = Dataset(run.input("dataset"))
    utterances = dataset.of("train")
    if not utterances:
        raise bad_data("no_training_data", "None of the usable recordings is in the training split.")

    if ranks.first:
        forget_kept(run.output)
    model = Whisper(run.input("base")).to_processor(device)
    teacher = copy.deepcopy(model.decoder).requires_grad_(requires_grad=False)
    trained = trained_weights(model, settings.dropout)
    base = {name: weight.detach().clone() for name, weight in trained.items()}
    lengths = tuple(one.seconds for one in utterances)
    plan = Plan(lengths, settings.batch_size, settings.epochs, run.spec.seed, settings.warmup_fraction)
    batches = Batches(run, ranks, model, dataset, utterances, plan, precision)
    optimizer = torch.optim.AdamW(
        trained.values(), settings.learning_rate, (0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    curves = Curves(run, ranks, model, dataset, precision)
    identity = checkpoint.identity(run)
    first, before_s = resumed(run, identity, trained, optimizer, curves)
    began -= before_s
    ranks.agreed(first)
    last_checkpoint = time.monotonic()

    def keep(done: int) -> None:
        state = {"steps_done": done, "trained": checkpoint.copied(trained), "optimizer": optimizer.state_dict()}
        seconds = time.monotonic() - began
        checkpoint.save(run, done, identity, {**state, "curves": curves.state(), "seconds": seconds})

    curves.catch_up(first, plan, trained)
    for step in range(first, plan.steps):
        # dropout: a function of the step and the process, nothing to save
        torch.manual_seed(run.spec.seed * _SEED_STRIDE + step + (ranks.number << 52))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * plan.rate(step)
        model.decoder.train()
        batch = batches.share(step)
        part = ranks.part(batch.tokens)
        original = None
        if settings.distillation:
            with torch.no_grad():
                original = batch.scores(teacher, precision)
        total, known = loss(batch.scores(model.decoder, precision), batch.wanted, original, settings.distillation)
        (part * total).backward()
        ranks.sum_gradients(trained.values())
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), settings.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

        done = step + 1
        known = known.detach() + 0 * norm  # a gradient that is no number spoils the weights as such a loss would
        mean, stop = ranks.sums(part * float(known), run.stop.requested)  # they stop after the same step
        curves.took_step(done, plan, finite(mean, done, plan.steps, settings.learning_rate))
        stop = stop or not curves.looked(done, plan, trained)
        due = time.monotonic() - last_checkpoint >= settings.checkpoint_every_s
        if ranks.first and ((due and done < plan.steps) or stop):
            keep(done)
            last_checkpoint = time.monotonic()
        if stop:
            raise StepStoppedError(done)
    if not ranks.first:
        return

    general = ordinary_speech(run, model, precision)
    strength = settings.own_anchor if general is None else settings.anchor
    told = partial(piece_by_piece, run, plan.steps, keep)
    shown = moments(model, teacher, trained, told(batches.once() if general is None else general), precision)
    publish_weights(run, anchored(base, curves.best_or(trained), told(shown.items()), strength))
    figures = {
        "steps": plan.steps,
        "epochs": settings.epochs,
        "train_audio_s": round(sum(lengths), 3),
        "train_utterances": len(utterances),
        "trained_parameters": sum(weight.numel() for weight in trained.values()),
        "anchor": "own" if general is None else "general",
        "processes": ranks.count,
        "seconds": round(time.monotonic() - began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "resumed_from_step": first,
        "build": build_facts(device),
        **curves.figures(),
    }
    write_json(run.output / "train.json", {**figures, "parameters": settings.model_dump(mode="json")})
    curves.write(run.output / "curves.jsonl")
    forget_kept(run.output)
    run.result(figures, [WEIGHTS, "train.json", "curves.jsonl"])


def finite(loss: float, done: int, steps: int, learning_rate: float) -> float:
    """The loss of a step.

    Raises:
        StepFailureError: it is no number: the weights are lost for good, and the same settings would lose them again.
    """
    if math.isfinite(loss):
        return loss
    raise bad_data(
        "training_diverged",
        "The training ran away instead of learning the recordings. Start it again with a lower learning rate.",
        f"loss or gradient of step {done} of {steps} is no finite number, at a learning rate of {learning_rate:g}",
    )


def resumed(
    run: StepRun,
    identity: dict[str, Any],
    trained: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    curves: Curves,
) -> tuple[int, float]:
    """Put everything back as a checkpoint of this very training left it; how many steps and seconds are done."""
    state = checkpoint.load(checkpoint.newest(run), identity)
    if state is None:
        return 0, 0.0
    optimizer.load_state_dict(state["optimizer"])
    curves.load(state["curves"])
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(state["trained"][name])
    return int(state["steps_done"]), float(state.get("seconds", 0.0))  # 0.1.0 kept none


def piece_by_piece(run: StepRun, steps: int, keep: Callable[[int], None], pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Work after the last step: each piece of it is a sign of progress, and after each it can be stopped.

    Raises:
        StepStoppedError: SIGTERM came; the training itself is kept in a checkpoint.
    """
    for piece in pieces:
        yield piece
        run.progress(100, steps_done=steps, steps=steps, note="keeping ordinary speech")
        if run.stop.requested:
            keep(steps)
            raise StepStoppedError(steps)


def trained_weights(model: Whisper, dropout: float) -> dict[str, torch.Tensor]:
    """Freeze all but the decoder's cross-attention and feed-forward layers, and return what is trained by name.

    Its self-attention stays the base's: trained as well it forgot more and knew the customer's words no better. So do
    the keys of its cross-attention: a tenth of the time for nothing that was noticed.
    """
    model.requires_grad_(requires_grad=False)
    for module in model.decoder.modules():
        if hasattr(module, "activation_dropout"):
            module.dropout = dropout
    return {
        name: weight.requires_grad_()
        for name, weight in model.network.named_parameters()
        if name.startswith("model.decoder.layers.") and any(part in name for part in _TRAINED)
    }


def publish_weights(run: StepRun, trained: dict[str, torch.Tensor]) -> None:
    """Write the whole model's weights, in the base's own types, with the trained ones in their places."""
    weights = load_file(run.input("base") / WEIGHTS)
    for name, weight in trained.items():
        weights[name] = weight.to("cpu", weights[name].dtype).contiguous()
    write_atomically(run.output / WEIGHTS, lambda place: _save(weights, place))


def _save(weights: dict[str, torch.Tensor], place: Path) -> None:
    save_file(weights, place, metadata={"format": "pt"})
    os.chmod(place, 0o644)  # noqa: PTH101 - safetensors writes 0600, and others read it
