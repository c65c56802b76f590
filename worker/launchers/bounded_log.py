"""A log file that keeps its beginning and its end and never grows past its limit. Standard library only."""

import os
from contextlib import suppress


class BoundedLog:
    """Appends to a file; once full, the middle makes room.

    The rule: when a write would pass ``limit`` bytes, the file becomes its first quarter, one line that says
    how many bytes were left out, and its last quarter; then it fills again. Readable at every moment, and
    each byte is copied at most once on average.
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor = descriptor
        self._quarter = max(limit // 4, 1)
        self._size = os.fstat(descriptor).st_size
        self._head_end: int | None = None
        self._left_out = 0
        self._notice = b""

    def write(self, data: bytes) -> None:
        """Append; output that cannot be written (disk full) is lost and the trainer goes on."""
        with suppress(OSError):
            # never more than a quarter at once, or one huge write would pass the limit
            for start in range(0, len(data), self._quarter):
                piece = data[start : start + self._quarter]
                if self._size + len(piece) > 4 * self._quarter:
                    self._make_room()
                self._size += os.pwrite(self._descriptor, piece, self._size)

    def _make_room(self) -> None:
        if self._head_end is None:
            head = os.pread(self._descriptor, self._quarter, 0)
            self._head_end = head.rfind(b"\n") + 1 or len(head)
        tail_start = max(self._size - self._quarter, self._head_end)
        tail = os.pread(self._descriptor, self._size - tail_start, tail_start)
        tail = tail[tail.find(b"\n") + 1 :]
        self._left_out += self._size - self._head_end - len(self._notice) - len(tail)
        self._notice = b"[%d bytes of output left out here]\n" % self._left_out
        rest = self._notice + tail
        os.pwrite(self._descriptor, rest, self._head_end)
        self._size = self._head_end + len(rest)
        os.ftruncate(self._descriptor, self._size)
