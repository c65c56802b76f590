"""Reads a Whisper `model.bin` of CTranslate2 (version 6) into the tensors that transformers expects.

The format, little-endian: u32 version; name and revision of the specification; u32 number of variables, each
with name (u16 length, NUL-terminated), u8 rank, u32 dimensions, u8 type, u32 byte count and the bytes; aliases.
"""

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

SUPPORTED_VERSION = 6
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

Array = npt.NDArray[np.generic]


class UnsupportedWeightsError(ValueError):
    """The file is no CTranslate2 Whisper model that we can read back."""


def read_variables(blob: bytes) -> dict[str, Array]:
    """Return every variable of a `model.bin` by its name in CTranslate2's specification.

    Raises:
        UnsupportedWeightsError: another format, version or model family, or a truncated file.
    """
    try:
        return dict(_variables(blob))
    except (struct.error, KeyError, ValueError) as error:
        if isinstance(error, UnsupportedWeightsError):
            raise
        raise UnsupportedWeightsError(f"model.bin cannot be read: {error}") from error


def _variables(blob: bytes) -> Iterator[tuple[str, Array]]:
    offset = 0

    def number(code: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + code, blob, offset)
        offset += struct.calcsize(code)
        return int(value)

    def string() -> str:
        nonlocal offset
        length = number("H")
        text = blob[offset : offset + length - 1].decode()
        offset += length
        return text

    version, family, _revision = number("I"), string(), number("I")
    if version != SUPPORTED_VERSION or family != "WhisperSpec":
        raise UnsupportedWeightsError(f"expected WhisperSpec version 6, found {family} version {version}")
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(_TYPES[number("B")])
        size = number("I")
        yield name, np.frombuffer(blob, dtype, size // dtype.itemsize, offset).reshape(shape)
        offset += size


def to_transformers(variables: dict[str, Array]) -> dict[str, Array]:
    """Rename and split CTranslate2's variables into `WhisperForConditionalGeneration`'s state.

    CTranslate2 stores the projections of self-attention fused (q, k, v in `linear_0`) and those of
    cross-attention as q in `linear_0` and k, v in `linear_1`. Whisper's k has no bias: its third is zero.
    """
    state: dict[str, Array] = {}
    for name, value in variables.items():
        for target, part in _renamed(name, value):
            state[f"model.{target}"] = part
    return state


def _renamed(name: str, value: Array) -> Iterator[tuple[str, Array]]:
    part, _, rest = name.partition("/")
    if rest in {"conv1/bias", "conv1/weight", "conv2/bias", "conv2/weight"}:
        yield f"{part}.{rest.replace('/', '.')}", value
    elif rest == "embeddings/weight":
        yield "decoder.embed_tokens.weight", value
    elif rest == "position_encodings/encodings":
        yield f"{part}.embed_positions.weight", value
    elif rest.startswith("layer_norm/"):
        yield f"{part}.layer_norm.{_norm(rest)}", value
    elif rest.startswith("layer_"):
        layer, _, inner = rest.removeprefix("layer_").partition("/")
        for target, piece in _layer(inner, value):
            yield f"{part}.layers.{layer}.{target}", piece


def _norm(name: str) -> str:
    return "weight" if name.endswith("gamma") else "bias"


def _layer(name: str, value: Array) -> Iterator[tuple[str, Array]]:
    block, _, rest = name.partition("/")
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if attention is None:
        layer = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[rest.split("/")[0]]
        kind = _norm(rest) if layer == "final_layer_norm" else rest.split("/")[1]
        yield f"{layer}.{kind}", value
        return
    if rest.startswith("layer_norm/"):
        yield f"{attention}_layer_norm.{_norm(rest)}", value
        return
    linear, kind = rest.split("/")
    fused = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[attention, linear]
    for projection, piece in zip(fused, np.split(value, len(fused)), strict=True):
        if not (projection == "k_proj" and kind == "bias"):
            yield f"{attention}.{projection}.{kind}", piece
