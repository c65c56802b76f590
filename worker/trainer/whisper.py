"""The Whisper model as this recipe uses it: loading, features, encoder windows of any length."""

import copy
import os
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from worker.trainer.audio import SAMPLE_RATE

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a step reads its inputs and nothing else
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.audio_utils import mel_filter_bank

WINDOW_S: Final = 30.0
"""Seconds that Whisper was trained on; 30 s are 480,000 samples, 3,000 mel frames, 1,500 encoder states."""
FRAME: Final = 320
"""Samples an encoder state: two hops of 160, the second convolution halves them."""
_FFT: Final = 400
_HOP: Final = 160
WEIGHTS: Final = "model.safetensors"


class UnknownLanguageError(ValueError):
    """The base has no token for a language."""


class Whisper(nn.Module):
    """transformers' Whisper with the pieces this recipe needs beside it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
        self.network = model
        self.tokenizer: Any = WhisperTokenizer.from_pretrained(folder, local_files_only=True)
        self.generation: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        self.config: Any = model.config
        filters = mel_filter_bank(
            num_frequency_bins=1 + _FFT // 2,
            num_mel_filters=self.config.num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float().T.contiguous(), persistent=False)
        self.register_buffer("hann", torch.hann_window(_FFT), persistent=False)

    def to_processor(self, device: torch.device) -> "Whisper":
        """Move to a device, ready for inference, with the attention that is fastest there."""
        if device.type == "cpu":
            # Measured on 2 cores, bfloat16: for one query at a time plain products take 2.7 ms where the fused
            # kernel takes 16.9; a training step of the decoder 324 ms against 513. The encoder keeps the fused one.
            plain = copy.deepcopy(self.config)
            plain._attn_implementation = "eager"  # noqa: SLF001 - transformers offers no setting by part
            for module in self.decoder.modules():
                if hasattr(module, "config"):
                    module.config = plain
        self.to(device)
        return self.eval()

    @property
    def encoder(self) -> Any:
        """The half that hears."""
        return self.network.model.encoder

    @property
    def decoder(self) -> Any:
        """The half that writes."""
        return self.network.model.decoder

    @property
    def token_embedding(self) -> Tensor:
        """[vocabulary, width]; also the output projection."""
        return self.decoder.embed_tokens.weight

    def features(self, sound: Tensor, filters: Tensor | None = None) -> Tensor:
        """Log-mel features [batch, mels, samples / 160] of sound [batch, samples], as Whisper was trained on.

        Other mel filters [batch, mels, bins] hear other voices.
        """
        spectrum = torch.stft(sound, _FFT, _HOP, window=self.hann, return_complex=True)[..., :-1].abs().square_()
        log = torch.clamp((self.filters if filters is None else filters) @ spectrum, min=1e-10).log10_()
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return torch.maximum(log, loudest - 8.0).add_(4.0).div_(4.0)

    def encode(self, features: Tensor) -> Tensor:
        """Encoder states [batch, frames / 2, width] of features of any length up to 30 s: positions are sliced.

        The sound must end in silence: 4 s are enough to train on, but to decode what the base knows it needs 8 s or
        the 30 s window's: cut sharply, Whisper falls into loops.
        """
        encoder = self.encoder
        states = functional.gelu(encoder.conv1(features))
        states = functional.gelu(encoder.conv2(states)).transpose(1, 2)
        states = states + encoder.embed_positions.weight[: states.shape[1]]
        states = functional.dropout(states, encoder.dropout, self.training)
        for layer in encoder.layers:
            output = layer(states, None)
            states = output[0] if isinstance(output, tuple) else output
        return encoder.layer_norm(states)

    def prompt(self, language: str) -> list[int]:
        """The tokens before the first word: start, language and task for multilingual bases, no time stamps.

        Raises:
            UnknownLanguageError: this base does not know it.
        """
        start = [self.config.decoder_start_token_id]
        if getattr(self.generation, "is_multilingual", False):
            languages: dict[str, int] = self.generation.lang_to_id
            if f"<|{language}|>" not in languages:
                raise UnknownLanguageError(f"this base knows no language {language!r}")
            start += [languages[f"<|{language}|>"], self.generation.task_to_id["transcribe"]]
        elif language != "en":
            raise UnknownLanguageError(f"this base knows English only, not {language!r}")
        return [*start, self.generation.no_timestamps_token_id]

    @property
    def end(self) -> int:
        """The token after the last word."""
        return int(self.config.eos_token_id)

    def words(self, text: str) -> list[int]:
        """A transcript's tokens, as Whisper writes it: with a blank in front; names of special tokens are letters."""
        written = " " + text.strip()
        return list(self.tokenizer(written, add_special_tokens=False, split_special_tokens=True).input_ids)

    def written(self, text: str) -> int:
        """How many tokens a transcript takes."""
        return len(self.words(text))

    def text(self, tokens: list[int]) -> str:
        """The transcript that tokens spell."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def load_weights(self, file: Path) -> None:
        """Replace the weights by those of a trained model of the same shape.

        Raises:
            ValueError: the file holds another model's weights.
        """
        differing = self.network.load_state_dict(load_file(file), strict=False)
        strange = {*differing.missing_keys, *differing.unexpected_keys} - {"proj_out.weight"}  # tied: in neither file
        if strange:
            raise ValueError(f"{file.name} does not fit the base model: {', '.join(sorted(strange)[:5])}")
        self.network.tie_weights()


def window_s(seconds: float, padding_s: float) -> float:
    """The encoder's window for an utterance: its length and the padding, whole seconds, at most 30."""
    return min(WINDOW_S, float(-(-(seconds + padding_s) // 1)))


def processor() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type for products of matrices: bfloat16 where asked for, or where the hardware multiplies it."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability() and _cpu_bf16() else torch.float32


def _cpu_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
