"""Other voices from the same recordings: what each hearing of an utterance changes before the encoder has it.

A customer brings few speakers, and a decoder learns them by heart. The encoder's pass is what costs; which voice it
hears costs nothing.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from schemas.recipes import WhisperParameters
from worker.trainer.dataset import Utterance
from worker.trainer.whisper import WINDOW_S

_FORMANTS_BELOW: Final = 0.6
"""Of the highest frequency (4,800 Hz of 8,000): the warp is linear below, and bends back to the end above."""
_BANDS: Final = 5
"""Points of the equalizer, evenly spaced on the mel scale."""


@dataclass(frozen=True)
class Voice:
    """How an utterance is heard; by default as it was recorded."""

    speed: float = 1.0
    """Speed perturbation: tempo, pitch and formants together, as with a tape."""
    warp: float = 1.0
    """Vocal tract length perturbation: the factor on the frequencies that each mel filter hears."""
    gains_db: tuple[float, ...] = ()
    """An equalizer's points, from the lowest mel filter to the highest."""


def voice(parameters: WhisperParameters, seed: str, seconds: float) -> Voice:
    """The voice of one hearing: the same again for the same seed.

    Args:
        parameters: how far voices may go.
        seed: of the training, the utterance and the hearing.
        seconds: the utterance's length; it never becomes longer than a window.
    """
    source = random.Random(seed)  # noqa: S311 - the same voice again is the point
    speed = _factor(source, parameters.speed_perturbation)
    return Voice(
        speed=max(speed, seconds / WINDOW_S),
        warp=_factor(source, parameters.vocal_tract_perturbation),
        gains_db=tuple(source.uniform(-1, 1) * parameters.equalizer_db for _ in range(_BANDS)),
    )


def voices(parameters: WhisperParameters, seed: str, utterances: Sequence[Utterance]) -> list[Voice]:
    """The voice of each of these utterances in one hearing, whose seed it is."""
    return [voice(parameters, f"{seed}/{one.start_sample}", one.seconds) for one in utterances]


def _factor(source: random.Random, widest: float) -> float:
    """As often below one as above, evenly on a logarithmic scale."""
    return math.exp(source.uniform(-1, 1) * math.log1p(widest))


def heard_by(filters: Tensor, voices: Sequence[Voice]) -> Tensor:
    """The mel filters [mels, bins] as they hear each voice, float32 [voices, mels, bins]."""
    return torch.stack([_gains(filters, one.gains_db) * (filters @ _warp(filters, one.warp)) for one in voices])


def _warp(filters: Tensor, factor: float) -> Tensor:
    """What takes a power spectrum [bins] to that of another vocal tract, linear between bins, [bins, bins].

    Jaitly and Hinton, "Vocal tract length perturbation improves speech recognition", 2013, section 3.
    """
    bins = torch.arange(filters.shape[1], dtype=torch.float32, device=filters.device)
    highest = float(filters.shape[1] - 1)
    bend = _FORMANTS_BELOW * highest * min(factor, 1.0)
    above = highest - (highest - bend) / (highest - bend / factor) * (highest - bins)
    places = torch.where(bins <= bend / factor, bins * factor, above)
    return (1 - (places[:, None] - bins[None, :]).abs()).clamp_(min=0)


def _gains(filters: Tensor, points_db: Sequence[float]) -> Tensor:
    """The factor on each mel filter's power, linear in decibels between the points, [mels, 1]."""
    points = torch.tensor([[points_db or (0.0,)]], dtype=torch.float32, device=filters.device)
    decibels = functional.interpolate(points, len(filters), mode="linear", align_corners=True)
    return (10 ** (decibels / 10)).view(-1, 1)
