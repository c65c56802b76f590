"""This host's own disk: its errors in our words, and what is left over on it."""

import errno
import os
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


Owner = tuple[int, int]
"""Numbers of a user and a group."""


def make_folder(folder: Path, mask: int, owner: Owner | None = None) -> None:
    """Make a folder and those above it that are missing, each with the rights that a mask leaves, whatever the umask.

    Args:
        folder: it may be there already; then it stays as it is.
        mask: permission bits that are taken away.
        owner: whose it shall be; None: this process's user's.
    """
    try:
        folder.mkdir(mode=0o777 & ~mask)
        if owner is not None:
            with suppress(PermissionError):  # root of a container or an NFS client may not
                os.chown(folder, *owner, follow_symlinks=False)
    except FileExistsError:
        if not folder.is_dir():
            raise
    except FileNotFoundError:
        make_folder(folder.parent, mask, owner)
        make_folder(folder, mask, owner)


def owner_for_root(folder: Path) -> Owner | None:
    """Whose a folder is, where root works in another user's: what root puts there is for that user's programs.

    A command that is typed as root would otherwise leave files that no worker can read.
    """
    if os.geteuid() != 0 or not folder.is_dir():
        return None
    state = folder.stat()
    return (state.st_uid, state.st_gid) if state.st_uid != 0 else None


def own_folder(folder: Path, name: str, mask: int) -> None:
    """Make a folder for this process, and refuse one that somebody else has made in its place.

    Folders below the system's folder for temporary files can be made by every user of the host: whoever is first owns
    what is put there later. One that the administrator (root) made counts as given to us.

    Args:
        folder: where.
        name: of the setting that says so.
        mask: permission bits that are taken away where it is made.

    Raises:
        StorageRefused: it belongs to somebody else, or is a link of somebody else's.
        StorageAway: it cannot be made.
    """
    with writing_errors():
        make_folder(folder, mask)
        for state in (folder.lstat(), folder.stat()):
            if state.st_uid not in {0, os.geteuid()}:
                raise StorageRefused(
                    f"{name}={folder} belongs to user {state.st_uid}, not to the user of this process "
                    f"({os.geteuid()}): somebody may have made it in advance. Remove it, or set {name} to a folder of "
                    "your own"
                )


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
