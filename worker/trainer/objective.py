"""What training minimizes: the transcript's tokens become likely, while the rest stays as the base had it."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from worker.trainer.whisper import Whisper

FREQUENT_TOKENS: Final = 8_192
"""Byte-pair tokens are numbered by frequency: the first ones stand for the language at large."""
IGNORED: Final = -100


class Targets:
    """Token batches for teacher forcing, over the part of the vocabulary that can matter here.

    The softmax over all 51,864 tokens costs more than the whole decoder. Tokens that are in no transcript and
    not frequent keep the base's embedding; leaving them out changes no gradient that helps.
    """

    def __init__(self, model: Whisper, texts: Sequence[str], language: str) -> None:
        self._prompt = model.prompt(language)
        self._end = model.end
        self._tokens = [model.words(text) for text in texts]
        used = {token for tokens in self._tokens for token in tokens}
        kept = sorted(used | set(range(min(FREQUENT_TOKENS, self._end))) | {self._end})
        self._place = {token: place for place, token in enumerate(kept)}
        self.projection = model.token_embedding.detach()[torch.tensor(kept, device=model.filters.device)]
        """[kept tokens, width]"""

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Decoder inputs and the wanted next tokens (places in `projection`, or `IGNORED`), [batch, length]."""
        texts = [self._tokens[index] for index in indices]
        length = len(self._prompt) + max(map(len, texts))
        inputs = torch.full((len(texts), length), self._end)
        wanted = torch.full((len(texts), length), IGNORED)
        first = len(self._prompt) - 1
        for row, text in enumerate(texts):
            inputs[row, : first + 1 + len(text)] = torch.tensor(self._prompt + text)
            places = [self._place[token] for token in (*text, self._end)]
            wanted[row, first : first + len(places)] = torch.tensor(places)
        return inputs.to(device), wanted.to(device)


def loss(student: Tensor, wanted: Tensor, teacher: Tensor | None, distillation: float) -> tuple[Tensor, Tensor]:
    """The loss, and its part that says how well the transcripts are known.

    Where the base already had the right word, the whole distribution can be held to the base's: nothing needs to
    be learned there, so nothing needs to be forgotten.
    """
    known = functional.cross_entropy(student, wanted)
    if teacher is None:
        return known, known
    right = (teacher.argmax(dim=-1) == wanted).float()
    return known + distillation * (_divergence(student, teacher) * right).mean(), known


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = functional.log_softmax(student, dim=-1), functional.log_softmax(teacher, dim=-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
