"""The errors of this host's own disk, in our words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
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
