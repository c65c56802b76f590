"""Content digests, the same on both sides of the trainer's fence."""

import hashlib
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return open_digest(file)


def open_digest(file: BufferedReader) -> str:
    """SHA-256 of what is left to read of an open file, hexadecimal, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    r"""SHA-256 over the lines ``<file digest>  <relative path>\n`` of all files below, sorted by path.

    Raises:
        OSError: a file cannot be read.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    return digest_of((path.relative_to(folder).as_posix(), file_digest(path)) for path in files)


def digest_of(files: Iterable[tuple[str, str]]) -> str:
    """``tree_digest`` of files whose (relative path, digest) are known already."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
