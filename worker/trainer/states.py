"""The frozen encoder's states, computed once for every utterance and kept in half precision on disk."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from worker.trainer.audio import SAMPLE_RATE
from worker.trainer.dataset import Dataset, Passage, Utterance
from worker.trainer.ranks import ALONE, Ranks
from worker.trainer.voices import Voice, heard_by
from worker.trainer.whisper import FRAME, Whisper, window_s

TAIL_S: Final = 1.0
"""Seconds of silence whose states are kept after an utterance: where the decoder sees that it is over."""
KEPT_BYTES_LIMIT: Final = 64 * 2**30
"""At most so much is kept by a step, all sets of utterances together; what has no room is encoded when asked for."""
_SHARE_OF_DISK: Final = 0.5
"""Nor more than this part of what was free before: the rest is for checkpoints, weights and other runs."""
_KEPT: Final = ".states-*"
"""The files of all sets of utterances, in their step's folder."""
_FRAMES_A_SECOND: Final = SAMPLE_RATE // FRAME


class EncoderStates:
    """Encoder states of groups of utterances: computed when first asked for."""

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
        voices: Sequence[Voice] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self._model, self._dataset = model, dataset
        voices = voices or [Voice()] * len(utterances)
        self._groups = [[utterances[index] for index in group] for group in groups]
        self._voices = [[voices[index] for index in group] for group in groups]
        self._padding_s, self._precision = padding_s, precision
        self._frames = [_frames(self._longest(group)) for group in range(len(groups))]
        sizes = [len(group) * frames for group, frames in zip(self._groups, self._frames, strict=True)]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        width = model.config.d_model
        self._kept: Tensor | None = None
        size = 2 * width * self._starts[-1] + len(groups)
        if ranks.sums(ranks.first and _has_room(file.parent, size))[0]:  # the first decides for all
            # whichever process first has a group in its share computes it, for all of them
            kept = ranks.shared_array(file, np.int16, (self._starts[-1], width))
            self._kept = torch.from_numpy(kept).view(torch.bfloat16)
            self._done = ranks.shared_array(file.with_name(f"{file.name}-done"), np.bool_, (len(groups),))

    def of(self, groups: Sequence[int], whole: Sequence[int] = ()) -> Tensor:
        """States [utterances, frames, width] of these groups; shorter groups end in repeated silence.

        Where they are a share of a batch they are as long as the whole batch would be: silence is heard, too.
        """
        parts = [self._group(group) for group in groups]
        frames = max(self._frames[group] for group in whole or groups)
        return torch.cat([_lengthened(part, frames) for part in parts])

    def _longest(self, group: int) -> float:
        """Seconds of the longest of them, as it is heard."""
        heard = zip(self._groups[group], self._voices[group], strict=True)
        return max(one.seconds / voice.speed for one, voice in heard)

    def _group(self, group: int) -> Tensor:
        rows, frames = len(self._groups[group]), self._frames[group]
        device = self._model.filters.device
        if self._kept is None:
            return self._encode(group)
        place = self._kept[self._starts[group] : self._starts[group + 1]].view(rows, frames, -1)
        if not self._done[group]:
            place.copy_(self._encode(group))
            self._done[group] = True
        return place.to(device, non_blocking=True)

    def _encode(self, group: int) -> Tensor:
        voices, frames = self._voices[group], self._frames[group]
        window = window_s(self._longest(group), self._padding_s)
        filters = self._model.filters
        device = filters.device
        sound = self._dataset.sound(self._groups[group], window, [voice.speed for voice in voices])
        features = self._model.features(sound.to(device), heard_by(filters, voices))
        half = torch.autocast(device.type, self._precision, enabled=self._precision != torch.float32)
        with torch.no_grad(), half:
            return self._model.encode(features)[:, :frames].to(torch.bfloat16)


def forget_kept(folder: Path) -> None:
    """Remove what a step that works in this folder has kept, or one that was killed there."""
    for file in folder.glob(_KEPT):
        file.unlink()


def _has_room(folder: Path, size: int) -> bool:
    """Whether so many bytes more may be kept there."""
    kept = sum(file.stat().st_size for file in folder.glob(_KEPT))
    free = shutil.disk_usage(folder).free + kept  # files are given their whole room at once
    return kept + size <= min(KEPT_BYTES_LIMIT, _SHARE_OF_DISK * free)


def _frames(seconds: float) -> int:
    return min(math.ceil((seconds + TAIL_S) * _FRAMES_A_SECOND), 30 * _FRAMES_A_SECOND)


def _lengthened(states: Tensor, frames: int) -> Tensor:
    missing = frames - states.shape[1]
    return torch.cat([states, states[:, -1:].expand(-1, missing, -1)], dim=1) if missing else states
