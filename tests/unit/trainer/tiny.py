"""A Whisper of 0.2 million weights with a tokenizer of its own, and recordings of noise: real shapes, no download."""

# ruff: noqa: PLC0415 - torch is loaded only where a test needs it

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import soundfile

from schemas.recipes import WHISPER, WhisperParameters
from schemas.steps import ManifestRow, Step, StepSpec
from worker.trainer.emitter import Emitter
from worker.trainer.step import StepRun, StopRequest

WORDS = ("start", "stop", "the", "new", "dose", "metolazone", "today", "after", "lunch", "again")
RUN = UUID("00000000-0000-0000-0000-000000000001")


def tiny_whisper(folder: Path, *languages: str) -> Path:
    """A base model folder as the hub would give it; multilingual where languages are named."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    several = [*(f"<|{language}|>" for language in languages), "<|transcribe|>"] if languages else []
    vocabulary = {piece: number for number, piece in enumerate([*letters, *special, *several])}
    end, start, no_times = (vocabulary[name] for name in special)
    tokenizer = Tokenizer(models.BPE(vocab={piece: vocabulary[piece] for piece in letters}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, *several])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": special[0], "eos_token": special[0], "unk_token": special[0], "pad_token": special[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer", **named}))
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(vocabulary), num_mel_bins=80, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        begin_suppress_tokens=None, suppress_tokens=None, **ids,
    )  # fmt: skip
    torch.manual_seed(7)
    model = WhisperForConditionalGeneration(config)
    facts: dict[str, Any] = {"is_multilingual": bool(languages)}
    if languages:
        facts["lang_to_id"] = {name: vocabulary[name] for name in several[:-1]}
        facts["task_to_id"] = {"transcribe": vocabulary["<|transcribe|>"]}
    model.generation_config = GenerationConfig(**ids, no_timestamps_token_id=no_times, **facts)
    model.save_pretrained(folder)
    mels = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80}
    (folder / "preprocessor_config.json").write_text(json.dumps(mels))
    return folder


def recording(path: Path, seconds: float, seed: int = 0, rate: int = 16_000) -> Path:
    """Noise that is neither silent nor clipped."""
    noise = np.random.default_rng(seed).normal(0, 0.05, round(seconds * rate))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path


def row(number: int, audio: Path, text: str, **more: object) -> ManifestRow:
    """One manifest row."""
    facts = {"data_ids": [number], "file": audio.name, "audio": str(audio), "audio_sha256": f"{number:064x}"}
    return ManifestRow.model_validate({"row": number, "audio_bytes": 1, "text": text, **facts, **more})


def spoken(number: int) -> str:
    """A sentence of its own for every number."""
    return " ".join(WORDS[(number // 10**place + place) % 10] for place in range(3)) + f" {number}"


def manifest(path: Path, rows: list[ManifestRow]) -> Path:
    """Write a manifest."""
    path.write_text("".join(one.model_dump_json() + "\n" for one in rows), encoding="utf-8")
    return path


class StopAfter(StopRequest):
    """SIGTERM comes while the given look at it is taken."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        super().__init__()

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        assert value is False


def step_run(
    step: Step,
    output: Path,
    inputs: dict[str, Path],
    stop: StopRequest | None = None,
    *,
    language: str = "en",
    **parameters,
):
    """A step as `python -m worker.trainer` would build it; its events go to the file returned beside it."""
    output.mkdir(parents=True, exist_ok=True)
    spec = StepSpec(
        run_id=RUN, attempt=1, step=step, recipe="whisper", recipe_version=WHISPER.version, seed=3,
        language=language, parameters=parameters, inputs={name: str(path) for name, path in inputs.items()}, output=str(output),
    )  # fmt: skip
    events = output.parent / f"{output.name}.events"
    descriptor = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return StepRun(spec, WhisperParameters(**parameters), Emitter(descriptor), stop or StopRequest()), events


def read_events(path: Path) -> list[dict]:
    """All events so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
