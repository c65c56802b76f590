"""A copy of a log that somebody else is still writing."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker.launchers.plain_files import open_plain

_PIECE: Final = 2**20
_SEAM: Final = 256
"""Bytes before the copied end that must still be the same; a log that made room in its middle differs there."""


class LogCopy:
    """Appends another log to a file and keeps it current."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self._target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        self._base = target.stat().st_size if target.exists() else 0
        self._copied = 0
        self._seam = b""

    def follow(self) -> None:
        """Copy what is new. Blocks.

        Raises:
            OSError: one of the two cannot be reached.
            UnreadableWord: the other one is no plain file.
        """
        with suppress(FileNotFoundError), open_plain(self._source) as source:
            seam = os.pread(source.fileno(), len(self._seam), max(0, self._copied - len(self._seam)))
            if seam != self._seam:
                self._copied = 0
            source.seek(self._copied)
            piece = source.read(_PIECE)
            if not piece:
                return
            with self._target.open("r+b" if self._target.exists() else "w+b") as target:
                target.truncate(self._base + self._copied)
                while piece:
                    target.seek(self._base + self._copied)
                    self._copied += target.write(piece)
                    self._seam = (self._seam + piece)[-_SEAM:] if self._copied > len(piece) else piece[-_SEAM:]
                    piece = source.read(_PIECE)

    def finish(self) -> None:
        """Copy all of it once more, now that nobody writes it. Blocks.

        Raises:
            OSError: one of the two cannot be reached.
        """
        self._copied, self._seam = 0, b""
        self.follow()
