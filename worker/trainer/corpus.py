"""Utterances ready for the decoder: what was heard, what has been written, what should come next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.trainer.dataset import Dataset, Passage, Utterance
from worker.trainer.objective import Targets
from worker.trainer.ranks import ALONE, Ranks
from worker.trainer.states import EncoderStates
from worker.trainer.voices import Voice
from worker.trainer.whisper import Whisper


@dataclass(frozen=True)
class Batch:
    """Some utterances, for teacher forcing."""

    states: Tensor
    """Encoder states [utterances, frames, width]."""
    inputs: Tensor
    """Tokens so far [utterances, length]."""
    asked: Tensor
    """Where a next token is wanted, bool [utterances, length]."""
    wanted: Tensor
    """The next tokens at those places, as places in the projection [asked]."""
    projection: Tensor
    """Embeddings of the tokens that can be chosen [kept tokens, width]."""
    counted: bool = True
    """Not so where it only keeps a process busy that has no part in this batch."""

    @property
    def tokens(self) -> int:
        """How many wanted tokens it counts for."""
        return len(self.wanted) * self.counted

    def scores(self, decoder: Any, precision: torch.dtype) -> Tensor:
        """What a decoder thinks of each possible next token, float32 [asked, kept tokens]."""
        with torch.autocast(self.states.device.type, precision, enabled=precision != torch.float32):
            hidden = decoder(
                input_ids=self.inputs, encoder_hidden_states=self.states, use_cache=False
            ).last_hidden_state
            return (hidden[self.asked] @ self.projection.T).float()


class Corpus:
    """A set of utterances in fixed groups, each of which goes through the frozen encoder once."""

    def __init__(  # noqa: PLR0913 - what it works on, and how
        self,
        model: Whisper,
        dataset: Dataset,
        utterances: Sequence[Utterance | Passage],
        groups: Sequence[Sequence[int]],
        *,
        padding_s: float,
        precision: torch.dtype,
        file: Path,
        language: str,
        voices: Sequence[Voice] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self._groups, self._ranks = groups, ranks
        self._device = model.filters.device
        self._targets = Targets(model, [one.text for one in utterances], language)
        self._states = EncoderStates(
            model,
            dataset,
            utterances,
            groups,
            padding_s=padding_s,
            precision=precision,
            file=file,
            voices=voices,
            ranks=ranks,
        )

    def share(self, groups: Sequence[int]) -> Batch:
        """This process's part of these groups, of which the others have the rest."""
        mine, counted = self._ranks.share(groups)
        return replace(self.batch(mine, groups), counted=counted)

    def batch(self, groups: Sequence[int], whole: Sequence[int] = ()) -> Batch:
        """The utterances of these groups, as they are among those of the whole batch."""
        indices = [index for group in groups for index in self._groups[group]]
        inputs, wanted = self._targets.batch(indices, self._device)
        asked = wanted >= 0
        return Batch(self._states.of(groups, whole).float(), inputs, asked, wanted[asked], self._targets.projection)
