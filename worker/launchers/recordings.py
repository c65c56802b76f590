"""The recordings that a run's manifest names: from storage keys to places on a machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Recording(NamedTuple):
    """One audio file of a manifest."""

    key: str
    sha256: str
    bytes: int


def recordings_of(manifest: Path) -> list[Recording]:
    """Each recording once, in order; read line by line, for there may be hundreds of thousands.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no manifest.
    """
    with manifest.open(encoding="utf-8") as lines:
        try:
            rows = (json.loads(line) for line in lines)
            return sorted({Recording(row["audio"], row["audio_sha256"], row["audio_bytes"]) for row in rows})
        except (KeyError, TypeError) as error:
            raise ValueError(f"a row of the manifest lacks {error}") from error


def write_with_places(source: Path, target: Path, places: Mapping[str, str]) -> None:
    """The same manifest with every recording's place instead of its key."""
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            row["audio"] = places[row["audio"]]
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def nowhere(key: str) -> str:
    """The place of a recording that is lost: the step's verdict on it is ``missing_file``."""
    return f"/nowhere/{key}"
