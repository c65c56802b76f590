"""Hours of audio a minute from files to 16 kHz samples: ours, its floor, and three libraries as their guides use them.

    bash tests/bench.sh loading [--rounds 3]

Short clips: the demo's Opus files and the same as FLAC at 22.05 kHz. Long: one recording with a cue every four
seconds. Ours is the whole step `prepare`: decoding, resampling, verdicts, digests and the dataset written to disk.
The floor is libsndfile and soxr in as many threads as cores, writing nothing. Every contestant is a process of its
own, timed after its imports and one file, rounds interleaved. Ends in `RESULT {…}`; a library that cannot be loaded is named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr

from deploy.local.cache import cache_root
from worker.trainer.memory import keep_freed_memory, peak_memory_bytes

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "deploy/demo/data"
RATE = 16_000
CUE_S = 4.0
PEERS = ("lhotse", "librosa", "datasets")
PACKAGES = (
    *("lhotse==1.33.0", "librosa==0.11.0", "datasets==5.2.0", "torchcodec", "audioread", "intervaltree", "cytoolz"),
    *("toolz", "tabulate", "lazy_loader", "numba", "llvmlite", "pooch", "decorator", "msgpack", "joblib", "scipy"),
    *(
        "scikit-learn",
        "threadpoolctl",
        "dill<0.4.1",
        "multiprocess<0.70.19",
        "xxhash",
        "pandas",
        "pyarrow<22",
        "python-dateutil",
    ),
    *("six", "pytz", "tzdata", "lilcom", "cloudpickle", "urllib3"),
)
MEGABYTES = 250

Piece = tuple[str, float | None, float | None]
"""Audio file, offset and duration in seconds; None: the whole file."""


def floor(pieces: list[Piece]) -> float:
    def read(piece: Piece) -> int:
        with soundfile.SoundFile(piece[0]) as file:
            if piece[1] is not None:
                file.seek(round(piece[1] * file.samplerate))
            frames = -1 if piece[2] is None else round(piece[2] * file.samplerate)
            sound = file.read(frames, dtype="float32", always_2d=True)[:, 0]
            return len(sound if file.samplerate == RATE else soxr.resample(sound, file.samplerate, RATE))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(pool.map(read, pieces)) / RATE


def librosa(pieces: list[Piece]) -> float:
    import librosa as library  # noqa: PLC0415

    return (
        sum(len(library.load(file, sr=RATE, offset=at or 0.0, duration=length)[0]) for file, at, length in pieces)
        / RATE
    )


def lhotse(pieces: list[Piece]) -> float:
    from lhotse import Recording  # noqa: PLC0415

    seconds = 0.0
    recordings: dict[str, Recording] = {}
    for file, at, length in pieces:
        recording = recordings.setdefault(
            file, Recording.from_file(file) if file not in recordings else recordings[file]
        )
        seconds += recording.resample(RATE).load_audio(offset=at or 0.0, duration=length).shape[1] / RATE
    return seconds


def datasets(pieces: list[Piece]) -> float:
    from datasets import Audio, Dataset  # noqa: PLC0415

    whole = Dataset.from_dict({"audio": [file for file, *_ in pieces]}).cast_column("audio", Audio(sampling_rate=RATE))
    seconds = 0.0
    for row, (_, at, length) in zip(whole, pieces, strict=True):
        decoder = row["audio"]
        part = decoder.get_samples_played_in_range(at, at + length) if at is not None else decoder.get_all_samples()
        seconds += part.data.shape[1] / RATE
    return seconds


def ours(pieces: list[Piece], folder: Path) -> float:
    from tests.unit.trainer.tiny import manifest, row, step_run  # noqa: PLC0415
    from worker.trainer import prepare  # noqa: PLC0415

    rows = [
        row(
            number,
            Path(file),
            f"sentence {number}",
            offset_s=at,
            duration_s=length,
            source="txt" if at is None else "cue",
        )
        for number, (file, at, length) in enumerate(pieces)
    ]
    run, events = step_run("prepare", folder / "out", {"manifest": manifest(folder / "manifest.jsonl", rows)})
    prepare.run(run)
    result = json.loads(events.read_text(encoding="utf-8").splitlines()[-1])
    assert result["figures"]["accepted"] == len(pieces), result["figures"]["rejected"]
    return float(result["figures"]["usable_s"])


def contestant(name: str, listed: Path, folder: Path) -> None:
    """One measurement: prints seconds of audio, wall seconds, peak bytes; ours also its repeat."""
    pieces = [tuple(piece) for piece in json.loads(listed.read_text(encoding="utf-8"))]
    # Libraries load parts of themselves with the first file; that is no part of a file's time.
    if name == "ours":
        keep_freed_memory()  # as a step's process does
        (folder / "warm").mkdir()
        ours(pieces[:1], folder / "warm")
        first, repeat = _timed(lambda: ours(pieces, folder)), _timed(lambda: ours(pieces, folder))
    else:
        globals()[name](pieces[:1])
        first, repeat = _timed(lambda: globals()[name](pieces)), (0.0, 0.0)
    print(
        json.dumps({"audio_s": first[0], "wall_s": first[1], "repeat_s": repeat[1], "peak_bytes": peak_memory_bytes()})
    )


def _timed(work: object) -> tuple[float, float]:
    began = time.perf_counter()
    seconds = work()  # type: ignore[operator]
    return seconds, time.perf_counter() - began


def measured(name: str, listed: Path, packages: Path) -> dict[str, float] | str:
    """One contestant in a process of its own; a sentence when it cannot take part."""
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.loading", "--contestant", name, str(listed), folder],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)]), "HF_HUB_OFFLINE": "1"},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:200]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peer_packages() -> Path:
    """The libraries in a folder of their own, never in the project's environment; kept for the next time."""
    folder = cache_root() / f"loading-peers-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:12]}"
    if not folder.exists():
        print(f"fetching {', '.join(PEERS)} (about {MEGABYTES} MB)", flush=True)
        partial = folder.with_name(folder.name + ".partial")
        target = partial / "site-packages"  # where dill, which hashes for datasets, expects modules to lie
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), *PACKAGES]
        subprocess.run(command, check=True)
        partial.rename(folder)
    return folder / "site-packages"


def make_sets(folder: Path) -> dict[str, list[Piece]]:
    """The recordings to load."""
    lines = (RECORDINGS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    opus = [str(RECORDINGS / json.loads(line)["audio_filepath"]) for line in lines]
    flac, long = [], []
    for file in opus:
        sound, rate = soundfile.read(file, dtype="float32")
        long.append(sound := soxr.resample(sound, rate, 22_050))
        flac.append(str(folder / Path(file).with_suffix(".flac").name))
        soundfile.write(flac[-1], sound, 22_050)
    joined = np.concatenate(long)
    soundfile.write(folder / "long.wav", joined, 22_050, subtype="PCM_16")
    cues = [(str(folder / "long.wav"), CUE_S * n, CUE_S) for n in range(int(len(joined) / 22_050 / CUE_S))]
    soundfile.write(folder / "longer.wav", np.tile(joined, 4), 22_050, subtype="PCM_16")
    # Noise a few bits loud makes the repeats different sound: the same sound twice is refused as a duplicate.
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(folder / "longer.wav", "r+") as file:
        for start in range(0, file.frames, 1 << 20):
            file.seek(start)
            block = file.read(1 << 20, dtype="int16")
            file.seek(start)
            file.write(np.clip(block + rng.integers(-2, 3, len(block)), -32_000, 32_000).astype(np.int16))
    longer = [(str(folder / "longer.wav"), CUE_S * n, CUE_S) for n in range(4 * len(cues))]
    clips: dict[str, list[Piece]] = {"opus": [(f, None, None) for f in opus], "flac": [(f, None, None) for f in flac]}
    return {**clips, "long": cues, "longer": longer}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.sh loading", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", nargs=3, metavar=("NAME", "LIST", "FOLDER"))
    options = parser.parse_args()
    if options.contestant:
        name, listed, folder = options.contestant
        contestant(name, Path(listed), Path(folder))
        return
    packages = peer_packages()
    with tempfile.TemporaryDirectory(prefix="loading-sets-") as folder:
        sets = make_sets(Path(folder))
        report({name: _rounds(name, pieces, Path(folder), packages, options.rounds) for name, pieces in sets.items()})


def _rounds(name: str, pieces: list[Piece], folder: Path, packages: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every contestant on one set; on the longest only ours, for its memory."""
    listed = folder / f"{name}.json"
    listed.write_text(json.dumps(pieces), encoding="utf-8")
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for who in ("ours",) if name == "longer" else ("ours", "floor", *PEERS):
            one = measured(who, listed, packages)
            if isinstance(one, str):
                print(f"{name}: {who} did not take part: {one}", flush=True)
                continue
            found.setdefault(who, []).append(one)
    medians = {}
    for who, all_ in found.items():
        medians[who] = {key: statistics.median(one[key] for one in all_) for key in all_[0]}
        pace = medians[who]["audio_s"] / 60 / medians[who]["wall_s"]
        medians[who]["hours_a_minute"] = pace
        memory = medians[who]["peak_bytes"] / 2**20
        print(f"{name:7} {who:9} {pace:7.1f} h/min  {memory:6.0f} MiB  load {os.getloadavg()[0]:.1f}", flush=True)
    return medians


def report(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """The last line."""
    compared = [found[name] for name in ("opus", "flac", "long")]

    def pace(one: dict[str, dict[str, float]], *names: str) -> float:
        return max(one[name]["hours_a_minute"] for name in names if name in one)

    longest, long = found["longer"]["ours"], found["long"]["ours"]
    paces = {name: {who: round(m["hours_a_minute"], 2) for who, m in one.items()} for name, one in found.items()}
    result = {
        "ratio_to_best_peer": round(min(pace(one, "ours") / pace(one, *PEERS) for one in compared), 3),
        "ratio_to_floor": round(min(pace(one, "ours") / pace(one, "floor") for one in compared), 3),
        "repeat_speedup": round(min(one["ours"]["wall_s"] / one["ours"]["repeat_s"] for one in compared), 1),
        "memory_growth": round(longest["peak_bytes"] / long["peak_bytes"], 3),
        "hours_a_minute": paces,
    }
    print(f"RESULT {json.dumps(result)}")


if __name__ == "__main__":
    main()
