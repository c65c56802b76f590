"""Writes down what is said in recordings: `python -m worker.trainer.transcribe MODEL_FOLDER RECORDING…`.

Recordings of any length, in windows of at most 30 s that are cut at pauses. Text on standard output, or with `--json`
one object a window: file, start and end in seconds, text. A recording that cannot be read is named on standard error
(with `--json` as an object as well), the others go on, and the exit code is 1.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from worker.trainer.audio import FULL_SCALE, SAMPLE_RATE, Recording, Samples, UnreadableAudioError
from worker.trainer.decoders import DECODERS
from worker.trainer.decoding import greedy, token_limit
from worker.trainer.verdicts import SILENT_RMS
from worker.trainer.whisper import WEIGHTS, WINDOW_S, UnknownLanguageError, Whisper, half_precision, processor

BATCH: Final = 8
"""Windows decoded together."""
_EARLIEST_CUT_S: Final = 3.0
"""A window is cut at the first pause after so many seconds. A model that was trained on single sentences may end after
the first one: of 16 dictated sentences it left out 3 in windows of 30 s, 6 in windows of 10 s, none in these."""
_PAUSE_S: Final = 0.3
"""Quiet for this long is a pause between words."""
_QUIET: Final = 10 ** (-30 / 10)
"""Share of the loud parts' energy below which a pause is one: 30 dB less."""
_LOUD_PERCENTILE: Final = 90
_NO_PAUSE_S: Final = 15.0
"""Where nobody pauses, the quietest place of a full window after so many seconds is taken."""
_STEP_S: Final = 0.02
_READ_S: Final = 10.0
"""Seconds read at once."""


@dataclass(frozen=True)
class Window:
    """A piece of a recording that the model hears at once."""

    file: str
    start_s: float
    samples: Samples

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Spoken:
    """What was said in a window."""

    file: str
    start_s: float
    end_s: float
    text: str
    loop_cut: bool
    """Whether the model fell into repeating itself and was stopped."""


@dataclass(frozen=True)
class Problem:
    """A recording that cannot be written down, or not to its end."""

    file: str
    sentence: str


def windows(recording: Recording, file: str) -> Iterator[Window]:
    """A recording in pieces of at most 30 s, cut at pauses; silent pieces are left out.

    Only one piece is in memory, however long the recording.

    Raises:
        UnreadableAudioError: it breaks off; after everything before that.
    """
    pending, start = np.zeros(0, np.int16), 0
    ended, broken = False, None
    longest = round(WINDOW_S * SAMPLE_RATE)
    while not ended or len(pending):
        while not ended and len(pending) < longest:
            try:
                more = recording.read((start + len(pending)) / SAMPLE_RATE, _READ_S)
            except (UnreadableAudioError, RuntimeError) as error:
                more, broken = pending[:0], error
            ended = len(more) == 0
            pending = np.concatenate([pending, more])
        cut = _cut(pending[:longest], last=ended and len(pending) <= longest)
        piece, pending = pending[:cut], pending[cut:]
        if _loudest(piece) >= SILENT_RMS:
            yield Window(file, start / SAMPLE_RATE, piece)
        start += cut
    if broken is not None:
        raise UnreadableAudioError(str(broken)) from broken


def _cut(samples: Samples, *, last: bool) -> int:
    """Where a window ends: in the first pause that is late enough, else at its end, or where it is quietest."""
    step, pause = round(_STEP_S * SAMPLE_RATE), round(_PAUSE_S / _STEP_S)
    energy = _energy(samples, step)
    if len(energy) < pause:
        return len(samples)
    around = np.convolve(energy, np.full(pause, 1 / pause), mode="valid")
    quiet = around <= max(SILENT_RMS**2, _QUIET * float(np.percentile(energy, _LOUD_PERCENTILE)))
    quiet[: round(_EARLIEST_CUT_S / _STEP_S)] = False
    if quiet.any():
        first = int(np.argmax(quiet))
        after = int(np.argmax(~quiet[first:])) or len(quiet) - first
        if not (last and first + after == len(quiet)):  # else it is the silence at the end
            return (first + (after + pause) // 2) * step
    if last:
        return len(samples)
    late = round(_NO_PAUSE_S / _STEP_S)
    return (late + int(np.argmin(around[late:])) + pause // 2) * step


def _energy(samples: Samples, step: int) -> Any:
    """Mean square of each `step` samples, float32."""
    whole = samples[: len(samples) // step * step].astype(np.float32)
    return np.square(whole).reshape(-1, step).mean(axis=1)


def _loudest(samples: Samples) -> float:
    """Root mean square of the loudest step, in sample units."""
    step = round(_STEP_S * SAMPLE_RATE)
    if len(samples) < step:
        return 0.0
    return float(np.sqrt(_energy(samples, step).max()))


def heard(files: Iterable[Path]) -> Iterator[Window | Problem]:
    """The windows of all recordings, in order, and what is wrong with those that cannot be read."""
    for path in files:
        found = False
        try:
            with DECODERS.opened(path) as recording:
                for window in windows(recording, str(path)):
                    found = True
                    yield window
        except (UnreadableAudioError, RuntimeError, ValueError, OSError):
            if not path.is_file():
                yield Problem(str(path), "there is no such file")
            else:  # what decoders say of it helps nobody
                told = "to its end: it is cut off or damaged" if found else "it is cut off, damaged, or no audio file"
                yield Problem(str(path), f"cannot be read{'' if found else ':'} {told}")
        else:
            if not found:
                yield Problem(str(path), "nothing can be heard in it")


class Transcriber:
    """A model that writes down windows."""

    def __init__(self, folder: Path, language: str) -> None:
        """Load a model.

        Raises:
            UnknownLanguageError: it does not know the language.
        """
        device = processor()
        self._precision = half_precision("auto", device)
        self._model = Whisper(folder).to_processor(device)
        self._model.decoder.to(self._precision)
        self._model.prompt(language)
        self._device, self._language = device, language

    def write_down(self, pieces: Iterable[Window | Problem]) -> Iterator[Spoken | Problem]:
        """Text for windows, in their order; problems go through."""
        batch: list[Window] = []
        for piece in pieces:
            if isinstance(piece, Window):
                batch.append(piece)
            if batch and (isinstance(piece, Problem) or len(batch) == BATCH):
                yield from self._decode(batch)
                batch = []
            if isinstance(piece, Problem):
                yield piece
        if batch:
            yield from self._decode(batch)

    def _decode(self, batch: list[Window]) -> list[Spoken]:
        sound = np.zeros((len(batch), round(WINDOW_S * SAMPLE_RATE)), np.float32)
        for place, window in zip(sound, batch, strict=True):
            place[: len(window.samples)] = window.samples
        features = self._model.features(torch.from_numpy(sound).div_(FULL_SCALE + 1).to(self._device))
        half = torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32)
        with torch.inference_mode(), half:
            states = self._model.encode(features).float()
        found = greedy(self._model, states, [token_limit(window.seconds) for window in batch], self._language)
        return [
            Spoken(
                window.file,
                round(window.start_s, 2),
                round(window.start_s + window.seconds, 2),
                self._model.text(hypothesis.tokens),
                hypothesis.looped,
            )
            for window, hypothesis in zip(batch, found, strict=True)
        ]


def tell(results: Iterable[Spoken | Problem], *, json_wanted: bool, named: bool) -> int:
    """Print results as they come; how many recordings had a problem.

    Args:
        results: grouped by recording.
        json_wanted: one JSON object a window instead of text.
        named: put the recording's name before its text.
    """
    problems = 0
    for file, found in groupby(results, key=lambda one: one.file):
        texts = []
        for one in found:
            if isinstance(one, Problem):
                problems += 1
                print(f"{file}: {one.sentence}", file=sys.stderr, flush=True)  # noqa: T201 - a program for people
                told: dict[str, Any] = {"file": file, "error": one.sentence}
            else:
                texts.append(one.text)
                told = {"file": file, "start": one.start_s, "end": one.end_s, "text": one.text}
                if one.loop_cut:
                    told["loop_cut"] = True
            if json_wanted:
                print(json.dumps(told, ensure_ascii=False), flush=True)  # noqa: T201 - the answer
        if texts and not json_wanted:
            text = " ".join(filter(None, texts))
            print(f"{file}: {text}" if named else text, flush=True)  # noqa: T201 - the answer
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Do what was typed; 1 when a recording could not be written down."""
    parser = argparse.ArgumentParser(prog="python -m worker.trainer.transcribe", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder in the layout of transformers, or an export of this trainer")
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--language", default="en", help="of a multilingual model; default: en")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    from transformers.utils import logging  # noqa: PLC0415 - only here are its bars in the way

    logging.disable_progress_bar()
    inside = options.model / "model"
    folder = inside if inside.is_dir() else options.model
    if not (folder / WEIGHTS).is_file():
        parser.error(f"{folder} holds no model of this recipe: {WEIGHTS} is missing")
    try:
        transcriber = Transcriber(folder, options.language)
    except UnknownLanguageError as error:
        parser.error(str(error))
    results = transcriber.write_down(heard(options.recordings))
    return 1 if tell(results, json_wanted=options.json, named=len(options.recordings) > 1) else 0


if __name__ == "__main__":
    raise SystemExit(main())
