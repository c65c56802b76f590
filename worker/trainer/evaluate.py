"""Step `evaluate`: base and custom model on what neither was trained on, decoded alike: 30 s windows, greedily."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from worker.trainer.dataset import Dataset, Passage, Utterance, json_lines
from worker.trainer.decoding import Hypothesis, greedy, token_limit
from worker.trainer.intervals import Heard, paired_intervals, units_of
from worker.trainer.memory import peak_memory_bytes
from worker.trainer.passages import joined
from worker.trainer.scoring import (
    UNSPACED,
    Errors,
    character_errors,
    dropped,
    normalizer,
    rare_terms,
    rate,
    rate_figures,
    recall,
    word_errors,
)
from worker.trainer.step import StepRun, write_atomically, write_json
from worker.trainer.whisper import WEIGHTS, WINDOW_S, Whisper, half_precision, processor

BATCH: Final = 16
ROWS: Final = "rows.jsonl"
FIGURES: Final = "evaluation.json"
DECODING: Final = "greedy, 30 s windows, no time stamps"
PASSAGES: Final = 16
"""Windows of several test utterances, at most: who understands each sentence may still drop those that follow it."""
_EXAMPLES: Final = 3


@dataclass(frozen=True)
class Row:
    """One test utterance, heard by both models. Texts are normalized."""

    set: str
    row: int
    file: str
    speaker: str | None
    unseen_voice: bool
    offset_s: float | None
    seconds: float
    text: str
    reference: str
    base: str
    custom: str
    base_words: Errors
    custom_words: Errors
    base_characters: Errors
    custom_characters: Errors
    base_looped: bool
    custom_looped: bool


def run(run: StepRun) -> None:
    """Decode the test split once with each model, and that of the operator's general set if there is one."""
    device = processor()
    precision = half_precision(run.parameters.precision, device)
    base = Whisper(run.input("base")).to_processor(device)
    custom = Whisper(run.input("base"))
    custom.load_weights(run.input("custom") / WEIGHTS)
    pair = _Pair(base, custom.to_processor(device), precision, run.spec.language)
    dataset = Dataset(run.input("dataset"))
    voices = {one.speaker for one in dataset.of("train", "dev")}
    general_folder = run.optional_input("general")
    general = Dataset(general_folder) if general_folder else None
    sets = [("test", dataset, dataset.of("test"))]
    if general:
        sets.append(("general", general, general.of("test")))  # the anchor was fitted to the others
    total = max(1, sum(len(utterances) for _, _, utterances in sets))
    rows: list[Row] = []
    for name, data, utterances in sets:
        for batch in pair.batches(name, data, utterances, voices):
            rows += batch
            run.stop.check()
            run.progress(100 * len(rows) / total, steps_done=len(rows), steps=total, note="measuring both models")
    rows.sort(key=lambda row: (row.set, row.row))
    figures = {
        **_figures(rows, base, run.spec.seed),
        "general_set": {"utterances": len(general.utterances), "test": len(general.of("test"))} if general else None,
        "passages": pair.passages(dataset, run.spec.seed),
        "decoding": DECODING,
        "encoder_precision": str(precision).removeprefix("torch."),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(run.output / ROWS, lambda place: place.write_text(lines, encoding="utf-8"))
    write_json(run.output / FIGURES, figures)
    print(json.dumps(figures), flush=True)  # noqa: T201 - the run's log
    run.result(figures, [ROWS, FIGURES])


class _Pair:
    """Both models; what they share is computed once."""

    def __init__(self, base: Whisper, custom: Whisper, precision: torch.dtype, language: str) -> None:
        self._base, self._custom, self._precision, self._language = base, custom, precision, language
        self._normalize = normalizer(language)
        self._character_errors = word_errors if language in UNSPACED else character_errors
        ours, theirs = base.encoder.state_dict(), custom.encoder.state_dict()
        self._one_encoder = all(torch.equal(ours[name], theirs[name]) for name in ours)
        for model in (base, custom):
            model.decoder.to(precision)

    def batches(
        self, name: str, dataset: Dataset, utterances: Sequence[Utterance], voices: set[str | None]
    ) -> Iterator[list[Row]]:
        """Decode everything, utterances of similar length together."""
        order = sorted(utterances, key=lambda one: one.samples)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            found = zip(batch, *self._decode(dataset, batch), strict=True)
            yield [self._row(name, voices, *one) for one in found]

    def passages(self, dataset: Dataset, seed: int) -> dict[str, Any] | None:
        """How both models bear several test utterances in one window; None when there are none to join."""
        passages = joined(dataset.of("test"), "evaluate", self._base.written)
        several = [one for one in passages if len(one.utterances) > 1][:PASSAGES]
        if not several:
            return None
        references = [[self._normalize(part.text) for part in one.utterances] for one in several]
        words: list[list[Errors]] = []
        missing: list[int] = []
        for model, found in zip((self._base, self._custom), self._decode(dataset, several), strict=True):
            texts = [self._normalize(model.text(one.tokens)) for one in found]
            words.append([word_errors(" ".join(said), text) for said, text in zip(references, texts, strict=True)])
            missing.append(sum(dropped(said, text) for said, text in zip(references, texts, strict=True)))
        return {
            "windows": len(several),
            "utterances": sum(map(len, references)),
            "base": {"wer": round(rate(words[0]), 5), "dropped": missing[0]},
            "custom": {"wer": round(rate(words[1]), 5), "dropped": missing[1]},
            "intervals": paired_intervals(words[0], words[1], seed),
        }

    def _decode(
        self, dataset: Dataset, batch: Sequence[Utterance | Passage]
    ) -> tuple[list[Hypothesis], list[Hypothesis]]:
        device = self._base.filters.device
        features = self._base.features(dataset.sound(batch, WINDOW_S).to(device))
        limits = [token_limit(one.seconds) for one in batch]
        states = self._encode(self._base, features)
        base = greedy(self._base, states, limits, self._language)
        states = states if self._one_encoder else self._encode(self._custom, features)
        return base, greedy(self._custom, states, limits, self._language)

    def _encode(self, model: Whisper, features: torch.Tensor) -> torch.Tensor:
        half = torch.autocast(features.device.type, self._precision, enabled=self._precision != torch.float32)
        with torch.inference_mode(), half:
            return model.encode(features).float()

    def _row(
        self, name: str, voices: set[str | None], utterance: Utterance, base: Hypothesis, custom: Hypothesis
    ) -> Row:
        reference = self._normalize(utterance.text)
        by_base = self._normalize(self._base.text(base.tokens))
        by_custom = self._normalize(self._custom.text(custom.tokens))
        return Row(
            set=name,
            row=utterance.row,
            file=utterance.file,
            speaker=utterance.speaker,
            unseen_voice=utterance.speaker is not None and utterance.speaker not in voices,
            offset_s=utterance.offset_s,
            seconds=round(utterance.seconds, 3),
            text=utterance.text,
            reference=reference,
            base=by_base,
            custom=by_custom,
            base_words=word_errors(reference, by_base),
            custom_words=word_errors(reference, by_custom),
            base_characters=self._character_errors(reference, by_base),
            custom_characters=self._character_errors(reference, by_custom),
            base_looped=base.looped,
            custom_looped=custom.looped,
        )


def _figures(rows: list[Row], base: Whisper, seed: int) -> dict[str, Any]:
    test = [row for row in rows if row.set == "test"]
    general = [row for row in rows if row.set == "general"]
    unseen = [row for row in test if row.unseen_voice]
    references = [row.reference for row in test]
    terms = rare_terms(references, lambda word: len(base.words(word)))
    base_heard, said = recall(terms, references, [row.base for row in test])
    custom_heard, _ = recall(terms, references, [row.custom for row in test])
    both = _compared(test, seed)
    return {
        "wer_base": both["base"]["wer"] if both else None,
        "wer_custom": both["custom"]["wer"] if both else None,
        "test": both,
        "known_voices": _compared([row for row in test if not row.unseen_voice], seed) if unseen else None,
        "unseen_voices": _compared(unseen, seed),
        "general": _compared(general, seed),
        "rare_terms": {"words": len(terms), "said": said, "base_heard": base_heard, "custom_heard": custom_heard},
        "examples": [
            {"text": row.text, "base": row.base, "custom": row.custom, "file": row.file}
            for row in sorted(test, key=lambda row: row.custom_words.total - row.base_words.total)[:_EXAMPLES]
        ],
    }


def _compared(rows: list[Row], seed: int) -> dict[str, Any] | None:
    """Both models on the same rows; None when there are none."""
    if not rows:
        return None
    base, custom = [row.base_words for row in rows], [row.custom_words for row in rows]
    units = units_of([Heard(row.file, row.offset_s or 0.0, row.seconds, row.speaker) for row in rows])
    return {
        "utterances": len(rows),
        "seconds": round(sum(row.seconds for row in rows), 1),
        "base": rate_figures(base, [row.base_characters for row in rows], sum(row.base_looped for row in rows)),
        "custom": rate_figures(custom, [row.custom_characters for row in rows], sum(row.custom_looped for row in rows)),
        "intervals": paired_intervals(base, custom, seed, units.of_row),
        "intervals_over": {"unit": units.kind, "count": units.count},
    }


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that this step left in its output."""
    return json_lines(folder / ROWS)
