"""The step's side of the event descriptor: whole lines, the droppable ones dropped under pressure."""

import errno
import os
import select
import time
from typing import Final

from schemas.events import DROPPABLE, EVENTS_DESCRIPTOR, Event, Progress, encode

ORPHANED_EXIT_CODE: Final = 74
"""EX_IOERR: nobody reads our events any more, so nobody owns this process."""
_ATOMIC: Final = select.PIPE_BUF
_PROGRESS_EVERY_S: Final = 0.5


class Emitter:
    """Writes events to a descriptor; the end of its reader is the end of this process."""

    def __init__(self, descriptor: int = EVENTS_DESCRIPTOR) -> None:
        self.descriptor = descriptor
        self._last_progress = 0.0
        self.dropped = 0

    def emit(self, event: Event) -> None:
        """Send one event; progress and metrics only while the reader keeps up.

        Raises:
            ValueError: the event is longer than a line may be.
        """
        line = encode(event)
        if isinstance(event, DROPPABLE) and not self._wanted(event, line):
            self.dropped += 1
            return
        try:
            while line:
                line = line[os.write(self.descriptor, line) :]
        except OSError as error:
            if error.errno in {errno.EPIPE, errno.EBADF, errno.ECONNRESET}:
                os._exit(ORPHANED_EXIT_CODE)
            raise

    def _wanted(self, event: Event, line: bytes) -> bool:
        if isinstance(event, Progress):
            now = time.monotonic()
            if now - self._last_progress < _PROGRESS_EVERY_S and event.percent < 100:  # noqa: PLR2004 - percent
                return False
            self._last_progress = now
        # A pipe is writable when PIPE_BUF bytes fit: a line no longer than that can then not block.
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        ready = poll.poll(0)
        return len(line) <= _ATOMIC and bool(ready)
