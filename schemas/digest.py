"""Content digests, the same on both sides of the trainer's fence."""

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    r"""SHA-256 over the lines ``<file digest>  <relative path>\n`` of all files below, sorted by path.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{file_digest(folder / name)}  {name}\n" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()
