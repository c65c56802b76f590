"""Greedy decoding of batches with kept keys and values; loops are stopped and counted."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from worker.trainer.tokens import LONGEST_TEXT
from worker.trainer.whisper import WINDOW_S, Whisper

_TOKENS_A_SECOND: Final = 30
"""Scripts that the tokenizer spells in bytes take several tokens a letter; English takes about 4 a second."""
_TOKENS_SPARE: Final = 24
_REPEATS: Final = 4
"""A phrase said this often in a row is a loop; single tokens may be said twice as often (1,000,000)."""
_LONGEST_PHRASE: Final = 12
_CANDIDATES: Final = 8


@dataclass(frozen=True)
class Hypothesis:
    """What the model heard."""

    tokens: list[int]
    looped: bool
    """Whether a loop, or an endless text, was cut off."""


def token_limit(seconds: float) -> int:
    """Most tokens that can be spoken in these seconds."""
    return min(LONGEST_TEXT, _TOKENS_SPARE + round(_TOKENS_A_SECOND * min(seconds, WINDOW_S)))


def greedy(model: Whisper, states: Tensor, limits: list[int], language: str) -> list[Hypothesis]:
    """Decode encoder states [batch, frames, width], each to its end or its limit of tokens."""
    with torch.inference_mode():
        return _greedy(model, states, limits, model.prompt(language))


def _greedy(model: Whisper, states: Tensor, limits: list[int], prompt: list[int]) -> list[Hypothesis]:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache  # noqa: PLC0415 - with torch loaded

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    tokens = torch.tensor([prompt] * len(states), device=states.device)
    never, not_first = _suppressed(model, states)
    states = states.to(model.token_embedding.dtype)
    texts: list[list[int]] = [[] for _ in limits]
    looped = [False] * len(limits)
    open_rows = set(range(len(limits)))
    for step in range(max(limits)):
        hidden = model.decoder(
            input_ids=tokens, encoder_hidden_states=states, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        best = _best(hidden, model.token_embedding, not_first if step == 0 else never)
        for row, token in enumerate(best.tolist()):
            if row not in open_rows:
                continue
            if token == model.end:
                open_rows.discard(row)
                continue
            texts[row].append(token)
            if repeat := _loop(texts[row]):
                del texts[row][-repeat:]
                looped[row] = True
            elif len(texts[row]) >= limits[row]:
                looped[row] = True
            if looped[row]:
                open_rows.discard(row)
        if not open_rows:
            break
        tokens = best[:, None]
    return [Hypothesis(text, loop) for text, loop in zip(texts, looped, strict=True)]


def _best(hidden: Tensor, embedding: Tensor, penalty: Tensor) -> Tensor:
    """The most likely token of each row [batch]; half precision only chooses candidates, as it makes ties."""
    scores = functional.linear(hidden, embedding).float() + penalty
    if embedding.dtype == torch.float32:
        return scores.argmax(dim=-1)
    candidates = scores.topk(_CANDIDATES, dim=-1).indices
    exact = (hidden.float()[:, None] * embedding[candidates].float()).sum(dim=-1) + penalty[candidates]
    return candidates.gather(1, exact.argmax(dim=-1, keepdim=True))[:, 0]


def _suppressed(model: Whisper, states: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows of penalties: tokens never written (time stamps, sound effects), and those not written first."""
    never = torch.zeros(model.config.vocab_size, device=states.device)
    never[list(model.generation.suppress_tokens or [])] = -torch.inf
    never[model.generation.no_timestamps_token_id :] = -torch.inf
    not_first = never.clone()
    not_first[list(model.generation.begin_suppress_tokens or [])] = -torch.inf
    return never, not_first


def _loop(tokens: list[int]) -> int:
    """How many tokens at the end only repeat a phrase; 0 when none do."""
    for length in range(1, _LONGEST_PHRASE + 1):
        repeats = _REPEATS if length > 1 else 2 * _REPEATS
        span = length * repeats
        if len(tokens) >= span and tokens[-span:] == tokens[-length:] * repeats:
            return span - length
    return 0
