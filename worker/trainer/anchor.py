"""Back towards the base where ordinary speech would notice, and only there.

A linear layer writes y = W x, where x ends in a 1 for the bias. Changed by D [outputs, inputs], the decoder moves away
from the base by about ½ tr(G D C Dᵀ) nats a token on speech whose inputs have the second moments C = E[x xᵀ] and whose
words' log-likelihoods have gradients by y of the second moments G = E[g gᵀ]: the Kronecker-factored Fisher matrix of
Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015, section 3; as an
anchor against forgetting, Ritter, Botev and Barber, "Online structured Laplace approximations for overcoming
catastrophic forgetting", 2018, section 2. With C and G scaled to a mean eigenvalue of 1, what is published is the
change D' that minimizes |D' - D|² + strength · tr(G D' C D'ᵀ): in the eigenvectors of G and C every entry of the
change is divided by 1 + strength · (its eigenvalue of G) · (its eigenvalue of C).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.trainer.corpus import Batch, Corpus
from worker.trainer.dataset import Dataset
from worker.trainer.plan import Plan
from worker.trainer.step import StepRun
from worker.trainer.voices import voices
from worker.trainer.whisper import Whisper

_PADDING_S: Final = 8.0
"""Silence after an utterance, at least: with less the base itself mishears ordinary speech."""
GROUPS: Final = 32
"""At most so many groups of utterances of a hearing are listened to."""
_SEED: Final = 0
_OF_STATES: Final = "v_proj"
"""Cross-attention's trained layer that hears the encoder's states; all others hear what became of the tokens."""


@dataclass(frozen=True)
class Moments:
    """What speech shows one layer: sums over all places, for a common factor does not matter."""

    inputs: Tensor
    """Of x xᵀ [inputs, inputs], float32; x ends in a 1 where the layer has a bias."""
    outputs: Tensor
    """Of g gᵀ [outputs, outputs], float32."""

    def worth(self, change: Tensor, strength: float) -> Tensor:
        """The part of a change of the layer [outputs, inputs] that is worth what ordinary speech pays for it."""
        by_input, across = _axes(self.inputs)
        by_output, down = _axes(self.outputs)
        kept = 1 / (1 + strength * by_output[:, None] * by_input)
        return down @ (kept * (down.T @ change @ across)) @ across.T


def anchored(
    base: Mapping[str, Tensor], trained: Mapping[str, Tensor], shown: Iterable[tuple[str, Moments]], strength: float
) -> dict[str, Tensor]:
    """What is published: of each layer's change what is worth its cost. Other weights, the norms', stay as trained."""
    published = {name: weight.detach().to(base[name].device) for name, weight in trained.items()}
    for layer, moments in shown:
        names = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in base]
        change = torch.cat([(published[name] - base[name]).view(len(moments.outputs), -1) for name in names], dim=1)
        kept = moments.worth(change, strength).split([base[name][0].numel() for name in names], dim=1)
        published |= {name: base[name] + part.view_as(base[name]) for name, part in zip(names, kept, strict=True)}
    return published


def moments(
    model: Whisper, decoder: Any, trained: Iterable[str], speech: Iterable[Batch], precision: torch.dtype
) -> dict[str, Moments]:
    """What speech shows the linear layers among the trained ones, in a decoder that nothing has changed yet.

    It reads the transcripts; the words whose gradients count are drawn from what it expects itself.
    """
    prefix = "model.decoder."
    layers = {prefix + name: layer for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)}
    wanted = {name.rpartition(".")[0] for name in trained}
    watch = _Watch()
    hooks = [layer.register_forward_hook(watch.on(name)) for name, layer in layers.items() if name in wanted]
    source = torch.Generator(model.filters.device).manual_seed(_SEED)
    for batch in speech:
        watch.asked = batch.asked
        scores = batch.scores(decoder, precision)
        drawn = torch.multinomial(scores.detach().softmax(dim=-1), 1, generator=source).squeeze(1)
        functional.cross_entropy(scores, drawn, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return watch.shown


def ordinary_speech(run: StepRun, model: Whisper, precision: torch.dtype) -> Iterator[Batch] | None:
    """The operator's general set, without the part that measures forgetting; None where there is none."""
    folder = run.optional_input("general")
    dataset = Dataset(folder) if folder else None
    utterances = dataset.of("train", "dev") if dataset else []
    if not dataset or not utterances:
        return None
    groups = Plan(tuple(one.seconds for one in utterances), 1, 1, 0, 0.0).groups
    corpora = [
        Corpus(
            model,
            dataset,
            utterances,
            groups,
            padding_s=max(_PADDING_S, run.parameters.padding_s),
            precision=precision,
            file=run.output / f".states-general-{hearing}",
            language=run.spec.language,
            voices=voices(run.parameters, f"general/{run.spec.seed}/{hearing}", utterances),
        )
        for hearing in range(run.parameters.anchor_hearings)
    ]
    return (corpus.batch([group]) for corpus in corpora for group in some(len(groups)))


def some(groups: int) -> range:
    """So many of the groups, which are sorted by length, as are worth listening to."""
    return range(0, groups, max(1, math.ceil(groups / GROUPS)))


class _Watch:
    """Adds up what linear layers are shown while a decoder hears speech."""

    def __init__(self) -> None:
        self.asked = torch.empty(0)
        """Which of the batch's tokens count, bool [utterances, length]."""
        self.shown: dict[str, Moments] = {}

    def on(self, name: str) -> Callable[[nn.Linear, tuple[Tensor], Tensor], None]:
        """A hook for one layer's forward pass."""

        def rows(places: Tensor) -> Tensor:
            return (places.flatten(0, 1) if name.endswith(_OF_STATES) else places[self.asked]).float()

        def said(gradient: Tensor) -> None:
            self.shown[name].outputs.add_(rows(gradient).T @ rows(gradient))

        def heard(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
            places = rows(inputs[0].detach())
            places = places if layer.bias is None else functional.pad(places, (0, 1), value=1.0)
            if name not in self.shown:
                sizes = (places.shape[1], layer.out_features)
                self.shown[name] = Moments(*(places.new_zeros(size, size) for size in sizes))
            self.shown[name].inputs.add_(places.T @ places)
            output.requires_grad_().register_hook(said)

        return heard


def _axes(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, scaled to a mean of 1, and eigenvectors, one a column."""
    values, vectors = torch.linalg.eigh(moments)
    return values.clamp(min=0) / values.mean().clamp(min=torch.finfo(values.dtype).tiny), vectors
