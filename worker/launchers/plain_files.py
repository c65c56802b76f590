"""Files that a step may have put something else in the place of."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from worker.launchers.exchange.interface import UnreadableWord

_NOT_PLAIN: Final = frozenset({errno.ELOOP, errno.ENXIO})
"""What opening says of a link that may not be followed, and of a socket."""


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading: no link is followed to what its step could not read, no pipe waited for.

    Raises:
        FileNotFoundError: there is nothing.
        UnreadableWord: there is something else.
        OSError: it cannot be reached.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise UnreadableWord(f"{path.name} is no plain file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableWord(f"{path.name} is no plain file")
    return os.fdopen(descriptor, "rb")
