"""Step `export`: the custom model in the two shapes people use, each tried before it may be published."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from worker.trainer.build import build_facts
from worker.trainer.dataset import Dataset, Utterance
from worker.trainer.evaluate import read_rows
from worker.trainer.failures import StepFailureError
from worker.trainer.memory import peak_memory_bytes
from worker.trainer.model_card import model_card
from worker.trainer.report import write_report
from worker.trainer.step import StepRun, files_below, write_json
from worker.trainer.whisper import WEIGHTS, WINDOW_S, processor

MODEL: Final = "model"
CONVERTED: Final = "ctranslate2"
_NOT_COPIED: Final = (".safetensors", ".bin", ".h5", ".msgpack", ".md", ".index.json")


def run(run: StepRun) -> None:
    """Lay out the model for transformers, convert it for faster-whisper, load both, write the model card."""
    folder = run.output / MODEL
    shutil.rmtree(folder, ignore_errors=True)
    _lay_out(run.input("base"), run.input("custom") / WEIGHTS, folder)
    _set_language(folder / "generation_config.json", run.spec.language)
    run.progress(20, note="converting")
    run.stop.check()
    converted = run.output / CONVERTED
    _convert(folder, converted)
    run.progress(60, note="trying both models")
    run.stop.check()
    dataset = Dataset(run.input("dataset"))
    one, wordless = _try_on(run, dataset)
    smoke = {
        "transformers": _spoken("transformers", _with_transformers(folder, dataset, one), wordless=wordless),
        "ctranslate2": _spoken("ctranslate2", _with_ctranslate2(run, dataset, one), wordless=wordless),
    }
    (folder / "README.md").write_text(model_card(run, build_facts(processor()), smoke), encoding="utf-8")
    figures = {"smoke": smoke, "smoke_text": one.text, "peak_memory_bytes": peak_memory_bytes()}
    report = write_report(run, dataset)
    run.result(figures, [*report, *files_below(folder, run.output), *files_below(converted, run.output)])


def _lay_out(base: Path, weights: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_NOT_COPIED):
            shutil.copyfile(path, folder / path.name)
    try:
        os.link(weights, folder / WEIGHTS)
    except OSError:  # another file system
        shutil.copyfile(weights, folder / WEIGHTS)


def _set_language(file: Path, language: str) -> None:
    """A multilingual model hears the language it was trained in unless it is told another: it guesses none."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("is_multilingual"):
        settings.pop("forced_decoder_ids", None)  # the older way to say the same, with no language in it
        write_json(file, settings | {"language": language, "task": "transcribe"})


def _convert(folder: Path, converted: Path) -> None:
    from ctranslate2.converters import TransformersConverter  # noqa: PLC0415 - heavy, and only here

    beside = [name for name in ("tokenizer.json", "preprocessor_config.json") if (folder / name).is_file()]
    converter = TransformersConverter(str(folder), copy_files=beside, load_as_float16=True)
    converter.convert(str(converted), quantization="float16", force=True)


def _with_transformers(folder: Path, dataset: Dataset, one: Utterance) -> str:
    """Transcribe with nothing but transformers, as a customer would."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer  # noqa: PLC0415

    model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    extractor: Any = WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer: Any = WhisperTokenizer.from_pretrained(folder)
    sound = dataset.sound([one], one.seconds)[0].numpy()
    features = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        tokens = model.generate(features, max_new_tokens=128)
    return str(tokenizer.batch_decode(tokens, skip_special_tokens=True)[0])


def _with_ctranslate2(run: StepRun, dataset: Dataset, one: Utterance) -> str:
    """Transcribe with the converted model, the way faster-whisper does."""
    import ctranslate2  # noqa: PLC0415 - heavy, and only here

    from worker.trainer.whisper import Whisper  # noqa: PLC0415 - after transformers' own try

    ours = Whisper(run.output / MODEL)
    model = ctranslate2.models.Whisper(str(run.output / CONVERTED), device="cpu", compute_type="float32")
    features = np.ascontiguousarray(ours.features(dataset.sound([one], WINDOW_S)).numpy())
    prompt = ours.prompt(run.spec.language)
    found = model.generate(ctranslate2.StorageView.from_array(features), [prompt], beam_size=1)
    return ours.text(list(found[0].sequences_ids[0]))


def _try_on(run: StepRun, dataset: Dataset) -> tuple[Utterance, bool]:
    """The test utterance that the evaluation heard best, and whether not even there a word was heard."""
    rows = [row for row in read_rows(run.input("evaluation")) if row["set"] == "test" and row["custom"]]
    if not rows:
        return (dataset.of("test") or dataset.utterances)[0], True
    best = min(rows, key=lambda row: row["custom_words"]["substitutions"] + row["custom_words"]["deletions"])
    return next(one for one in dataset.of("test") if one.row == best["row"]), False


def _spoken(name: str, text: str, *, wordless: bool) -> str:
    """What the exported model wrote, which must be something where the evaluated model wrote something."""
    if not text.strip() and not wordless:
        from schemas.failures import FailureClass  # noqa: PLC0415 - only on this road

        raise StepFailureError(
            FailureClass.BUG,
            "export_unusable",
            "The trained model could not be brought into a usable form.",
            f"the model exported for {name} writes nothing",
        )
    return text.strip()
