"""A trainer's event lines on their way to the owner: split, checked, counted, bounded."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from pydantic import ValidationError

from schemas.events import DROPPABLE, EVENT, LONGEST_LINE, Event, Failure, Result, Stopped

_SAMPLES: Final = 5
_SAMPLE_BYTES: Final = 200
_ROOM: Final = 256
"""Waiting events beyond which progress and metrics are dropped."""
_FULL: Final = 512
"""Waiting events beyond which the reader stops reading: only a flood of undroppable ones gets here."""


class EventStream:
    """Bytes in, events out. Garbage is counted and sampled, never raised: the trainer is not our code."""

    def __init__(self) -> None:
        self.garbage_lines = 0
        self.garbage_samples: list[str] = []
        self.dropped = 0
        self.last_word: Result | Failure | Stopped | None = None
        self._rest = b""
        self._skipping = False
        """Inside a line that is already longer than allowed."""
        self._waiting: deque[Event] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the reader should wait before it pushes more."""
        return len(self._waiting) >= _FULL

    def push(self, data: bytes) -> None:
        """Take in what was read, however it was cut."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False  # the end of the over-long line, counted when it was found
            elif line:
                self._take(line)
        if len(rest) >= LONGEST_LINE:
            if not self._skipping:
                self._count_garbage(rest)
            self._skipping = True
            rest = b""
        self._rest = rest
        self._changed.set()

    def close(self) -> None:
        """No more will come.

        A last line without its end was cut off by the trainer's death and is no garbage.
        """
        self._closed = True
        self._changed.set()

    async def events(self) -> AsyncIterator[Event]:
        """Every event in order, until ``close``. For one reader."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _take(self, line: bytes) -> None:
        try:
            # an over-long line is no JSON to us: not even looked at
            event = EVENT.validate_json(line if len(line) < LONGEST_LINE else b"")
        except ValidationError:
            self._count_garbage(line)
            return
        if isinstance(event, DROPPABLE) and len(self._waiting) >= _ROOM:
            self.dropped += 1
            return
        if isinstance(event, Result | Failure | Stopped):
            self.last_word = event
        self._waiting.append(event)

    def _count_garbage(self, line: bytes) -> None:
        self.garbage_lines += 1
        if len(self.garbage_samples) < _SAMPLES:
            self.garbage_samples.append(line[:_SAMPLE_BYTES].decode(errors="replace"))
