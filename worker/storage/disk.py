"""This host's own disk: its errors in our words, and what is left over on it."""

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from worker.errors import NotStored, StorageAway, StorageFull, StorageRefused

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def local_errors() -> Iterator[None]:
    """Where an object is looked for: what is absent is ``NotStored``."""
    try:
        with writing_errors():
            yield
    except StorageAway as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _ABSENT:
            raise NotStored(str(cause)) from cause
        raise


@contextmanager
def writing_errors() -> Iterator[None]:
    """Where something is written: a folder that is absent is the storage's fault."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"no room left: {error}") from error
        if error.errno in _REFUSED:
            raise StorageRefused(str(error)) from error
        raise StorageAway(str(error)) from error


def remove_older(folder: Path, age_s: float) -> int:
    """Remove what in a folder has not been touched for `age_s`; bytes removed."""
    removed, before = 0, time.time() - age_s
    for path in folder.iterdir():
        with suppress(OSError):  # somebody else was faster
            if path.stat().st_mtime < before:
                inside = [path, *path.rglob("*")] if path.is_dir() else [path]
                removed += sum(found.stat().st_size for found in inside if found.is_file())
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    return removed
