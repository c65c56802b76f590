"""The curves of a training: loss by step, loss on the development split by epoch, and the best weights by it."""

import json
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from worker.trainer import checkpoint
from worker.trainer.corpus import Corpus
from worker.trainer.dataset import Dataset
from worker.trainer.failures import StepStoppedError
from worker.trainer.plan import Plan
from worker.trainer.ranks import Ranks
from worker.trainer.step import StepRun
from worker.trainer.whisper import WINDOW_S, Whisper

DEV_UTTERANCES: Final = 256
"""At most so many of the development split are looked at after every epoch."""
FEWEST_DEV_UTTERANCES: Final = 16
"""With fewer their loss is noise: the last weights are taken."""
_PRINT_EVERY: Final = 10


class Curves:
    """Watches a training, and picks its weights by the development split when there is one."""

    def __init__(self, run: StepRun, ranks: Ranks, model: Whisper, dataset: Dataset, precision: torch.dtype) -> None:
        self._run, self._ranks, self._model, self._precision = run, ranks, model, precision
        dev = dataset.of("dev")[:DEV_UTTERANCES]
        self._dev = dev if len(dev) >= FEWEST_DEV_UTTERANCES else []
        self._seconds = [0.0]
        for one in dataset.of("train"):
            self._seconds.append(self._seconds[-1] + one.seconds)
        self._points: list[dict[str, float]] = []
        self._best_loss, self._best_step = float("inf"), 0
        self._best: dict[str, Tensor] = {}
        self._began, self._first = time.monotonic(), 0
        if self._dev:
            plan = Plan(tuple(one.seconds for one in self._dev), 16, 1, 0, 0.0)
            self._groups = plan.groups
            self._corpus = Corpus(
                model,
                dataset,
                self._dev,
                plan.groups,
                padding_s=WINDOW_S,
                precision=precision,
                file=run.output / ".states-dev",
                language=run.spec.language,
                ranks=ranks,
            )

    def took_step(self, done: int, plan: Plan, loss: float) -> None:
        """Note a step."""
        if not self._points:
            self._began, self._first = time.monotonic(), done
        self._points.append({"step": done, "loss": round(loss, 5)})
        self._run.metric("loss", loss, done)
        pace = (time.monotonic() - self._began) / max(1, done - self._first)
        left = pace * (plan.steps - done) if done > self._first else None
        audio = self._seconds[-1] * done / plan.steps_an_epoch
        self._run.progress(
            100 * done / plan.steps, steps_done=done, steps=plan.steps, epoch=round(done / plan.steps_an_epoch, 3),
            eta_s=left, audio_s=round(audio, 1), note="training",
        )  # fmt: skip
        if done % _PRINT_EVERY == 0 or done == plan.steps:
            print(f"step {done} of {plan.steps}, loss {loss:.4f}", flush=True)  # noqa: T201 - the run's log

    def looked(self, done: int, plan: Plan, trained: dict[str, Tensor]) -> bool:
        """At the end of an epoch look at the development split, unless that was done before a checkpoint.

        Returns:
            Whether it was looked through. Not if a stop was asked for: whoever goes on from here looks again.
        """
        if not self._dev or done == 0 or done % plan.steps_an_epoch or "dev_loss" in self._points[-1]:
            return True
        dev = self._dev_loss(done, plan)
        if dev is None:
            return False
        self._points[-1]["dev_loss"] = round(dev, 5)
        self._run.metric("dev_loss", dev, done)
        if dev < self._best_loss:
            self._best_loss, self._best_step, self._best = dev, done, checkpoint.copied(trained)
        return True

    def catch_up(self, done: int, plan: Plan, trained: dict[str, Tensor]) -> None:
        """Take the look that a stop had put off.

        Raises:
            StepStoppedError: a stop was asked for again; the checkpoint that led here still stands.
        """
        if not self.looked(done, plan, trained):
            raise StepStoppedError(done)

    def _dev_loss(self, done: int, plan: Plan) -> float | None:
        """None: a stop was asked for, and all processes stopped here after the same number of groups."""
        decoder, total, count = self._model.decoder.eval(), 0.0, 0.0
        for first in range(0, len(self._groups), self._ranks.count):
            [group], counted = self._ranks.share(range(first, min(first + self._ranks.count, len(self._groups))))
            if counted:
                batch = self._corpus.batch([group])
                with torch.no_grad():
                    found = batch.scores(decoder, self._precision)
                total += float(functional.cross_entropy(found, batch.wanted, reduction="sum"))
                count += len(batch.wanted)
            self._run.progress(100 * done / plan.steps, steps_done=done, steps=plan.steps, note="measuring progress")
            if self._ranks.sums(self._run.stop.requested)[0]:
                return None
        total, count = self._ranks.sums(total, count)
        return total / count

    def best_or(self, last: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights that the development split liked best, else the last ones."""
        return self._best or last

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        best = {"best_loss": self._best_loss, "best_step": self._best_step, "best": self._best}
        return {"points": self._points, **best}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._points = state["points"]
        self._best_loss, self._best_step, self._best = state["best_loss"], state["best_step"], state["best"]
        self._began, self._first = time.monotonic(), int(self._points[-1]["step"]) if self._points else 0

    def figures(self) -> dict[str, Any]:
        """What the step's result says of them."""
        chosen = {"dev_loss": round(self._best_loss, 5), "chosen_step": self._best_step} if self._best else {}
        return {"loss_first": self._points[0]["loss"], "loss_last": self._points[-1]["loss"], **chosen}

    def write(self, path: Path) -> None:
        """One JSON object a step."""
        path.write_text("".join(json.dumps(point) + "\n" for point in self._points), encoding="utf-8")
