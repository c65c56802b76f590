"""Where downloads are kept between runs, each under the name of what it was made from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.report import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def cache_root() -> Path:
    """The folder for everything kept: SPEECH_WORKER_CACHE, else the user's cache folder."""
    named = os.environ.get("SPEECH_WORKER_CACHE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "speech-training-worker"


def digest(*parts: str) -> str:
    """A short name for what something is made from."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time make the thing called `name`; a second one says that it waits."""
    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as handle:
        # Programs started with close_fds=False hold the lock too: what outlives a killed set-up is still at work.
        os.set_inheritable(handle.fileno(), True)  # noqa: FBT003 - the function has no keyword
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"  waiting: another set-up is making {name} …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made_whole(final: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder in a temporary place and rename it: it is there as a whole or not at all.

    The caller holds the lock. What an interrupted maker left beside it is removed.
    """
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f"{final.name}.part-*"):
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{final.name}.part-", dir=final.parent))
    part.chmod(0o755)
    try:
        make(part)
        part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final
