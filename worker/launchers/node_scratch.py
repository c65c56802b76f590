"""A private folder on a node for one step, and the removal of those whose steps were killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "speech-step-"
_YOUNG_S: Final = 60.0
"""A folder so new may belong to a step that is just about to lock it."""


@contextmanager
def node_scratch() -> Iterator[Path]:
    """A folder below the node's ``TMPDIR`` while the block lasts.

    It is held by a lock that the kernel lets go of however this process ends: the next step on the node that finds
    one unheld removes it, for customers' recordings may lie in it.
    """
    root = Path(tempfile.gettempdir())
    _remove_unheld(root)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=root) as made:
        descriptor = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(made)
        finally:
            os.close(descriptor)


def _remove_unheld(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # held, another user's, or just gone
            state = folder.lstat()
            if state.st_uid != os.getuid() or time.time() - state.st_mtime < _YOUNG_S:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
