"""Files below a folder that another program may be changing at this moment, opened without ever leaving the folder.

A look and a later read by name may meet two different things: a step that puts a link in a file's place in between gets
what *we* can read. So each part of a name is opened relative to the folder before it, links are not followed, and
whatever is said about a file is said about what was opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Final

from schemas.digest import digest_of, open_digest

_CLOSED: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | _CLOSED
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | _CLOSED  # a pipe is not waited for
_ANOTHER_KIND: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
"""What opening says of a link, of a file where a folder should be, and of a socket."""


def open_plain(path: Path) -> BufferedReader:
    """Open a file by its path; what stands there must be a file, and no link.

    Raises:
        ValueError: it is something else.
        OSError: it is not there, or cannot be read.
    """
    return _opened(path.name, str(path), None)


def open_beneath(folder: Path, name: str) -> BufferedReader:
    """Open a file below a folder; neither the folder nor any part of the name may be a link.

    Args:
        folder: made by ourselves.
        name: relative to it, with forward slashes.

    Raises:
        ValueError: something on the way is neither file nor folder, or the name leads out of the folder.
        OSError: it is not there, or cannot be read.
    """
    *folders, last = _parts(name)
    with _folder(folder, folders) as descriptor:
        return _opened(name, last, descriptor)


def files_beneath(folder: Path, inside: str = "") -> list[str]:
    """Names of all files below a folder in a folder, relative to the inner one, sorted.

    Raises:
        ValueError: something there is neither file nor folder; a link may lead anywhere.
        OSError: the folder is not there, or cannot be read.
    """
    with _folder(folder, _parts(inside) if inside else []) as descriptor:
        return sorted(_files(descriptor, ""))


def digest_beneath(folder: Path, inside: str = "") -> str:
    """``tree_digest`` of a folder in a folder.

    Raises:
        ValueError: something there is neither file nor folder.
        OSError: something cannot be read.
    """
    found = []
    for name in files_beneath(folder, inside):
        with open_beneath(folder, f"{inside}/{name}" if inside else name) as file:
            found.append((name, open_digest(file)))
    return digest_of(found)


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"neither file nor folder: {name}")
    return parts


@contextmanager
def _folder(folder: Path, parts: list[str]) -> Iterator[int]:
    """A descriptor of a folder some folders down."""
    descriptor = _open(folder.name, str(folder), _FOLDER, None)
    try:
        for part in parts:
            inner = _open(part, part, _FOLDER, descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _files(descriptor: int, before: str) -> Iterator[str]:
    with os.scandir(descriptor) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for name, mode in found:
        if stat.S_ISDIR(mode):
            inner = _open(before + name, name, _FOLDER, descriptor)
            try:
                yield from _files(inner, f"{before}{name}/")
            finally:
                os.close(inner)
        elif stat.S_ISREG(mode):
            yield before + name
        else:
            raise ValueError(f"neither file nor folder: {before}{name}")


def _opened(name: str, path: str, folder: int | None) -> BufferedReader:
    descriptor = _open(name, path, _FILE, folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"neither file nor folder: {name}")
    return os.fdopen(descriptor, "rb")


def _open(name: str, path: str, flags: int, folder: int | None) -> int:
    try:
        return os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in _ANOTHER_KIND:
            raise ValueError(f"neither file nor folder: {name}") from error
        raise
