"""Files that a step may have put something else in the place of."""

from pathlib import Path
from typing import BinaryIO

from worker.launchers.exchange.interface import UnreadableWord
from worker.storage import beneath


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading: no link is followed to what its step could not read, no pipe waited for.

    Raises:
        FileNotFoundError: there is nothing.
        UnreadableWord: there is something else.
        OSError: it cannot be reached.
    """
    try:
        return beneath.open_plain(path)
    except ValueError as error:
        raise UnreadableWord(f"{path.name} is no plain file") from error
