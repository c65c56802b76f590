"""How a parser's processor time grows with its input, and how much of it a kilobyte takes.

Time is this thread's processor time, so a busy machine makes no difference; the bound on a kilobyte is relative to a
calibration loop on the same machine.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST_BYTES = 1 << 10
STEP = 4
GROWTH = 8.0
"""Of the time over one step: 4 is linear, 16 quadratic."""
WORTH_S = 0.004
"""Growth of less than this is noise."""
MOST_PER_KB = 300.0
"""Times of the calibration loop over as many bytes."""
_LIMIT_S = 20.0
"""Where a single reading takes longer, nothing more has to be measured."""
_AGAIN = 3


@dataclass(frozen=True)
class Cost:
    """What a family of inputs costs."""

    sizes: tuple[int, ...]
    """Bytes that each was given."""
    seconds: tuple[float, ...]

    @property
    def growth(self) -> float:
        """The largest growth over one step, of those that are worth looking at."""
        pairs = zip(self.sizes, self.seconds, self.sizes[1:], self.seconds[1:], strict=False)
        ratios = [
            (later / max(earlier, 1e-6)) * STEP / (larger / smaller)
            for smaller, earlier, larger, later in pairs if later - earlier > WORTH_S
        ]  # fmt: skip
        return max(ratios, default=0.0)

    @property
    def per_kb(self) -> float:
        """Of the largest input, in times of the calibration loop."""
        return self.seconds[-1] / (self.sizes[-1] / 1024) / calibration()

    def too_much(self, most_per_kb: float = MOST_PER_KB) -> str | None:
        """What is wrong with it; None: nothing."""
        if self.growth > GROWTH:
            return f"the time grows {self.growth:.1f} times where the input grows {STEP} times"
        if self.per_kb > most_per_kb and self.seconds[-1] > WORTH_S:
            return f"a kilobyte takes {self.per_kb:.0f} times the calibration loop"
        return None


@cache
def calibration() -> float:
    """Seconds for a plain loop over one kilobyte."""
    data = bytes(range(256)) * 256

    def loop() -> int:
        total = 0
        for byte in data:
            total ^= byte
        return total

    return min(_seconds(loop) for _ in range(5)) / (len(data) / 1024)


def cost(
    parse: Callable[[bytes], object], make: Callable[[int], bytes], largest: int, most_per_kb: float = MOST_PER_KB
) -> Cost:
    """Measure a family of inputs, from small to large; no further than it takes to see that one is too much.

    Args:
        parse: the parser; whatever it raises is its answer.
        make: an input of about so many bytes.
        largest: bytes of the largest input that gets to this parser.
        most_per_kb: times of the calibration loop.
    """
    sizes: list[int] = []
    seconds: list[float] = []
    wanted = min(FIRST_BYTES, largest)
    while True:
        data = make(wanted)
        sizes.append(len(data))
        seconds.append(_seconds(lambda data=data: parse(data)))
        found = Cost(tuple(sizes), tuple(seconds))
        if found.too_much(most_per_kb):  # once is chance
            inputs = [make(size) for size in (max(wanted // STEP, 1), wanted)][-len(sizes) :]
            again = [min(_seconds(lambda data=data: parse(data)) for _ in range(_AGAIN)) for data in inputs]
            seconds[-len(inputs) :] = again
            found = Cost(tuple(sizes), tuple(seconds))
        if found.too_much(most_per_kb) or wanted >= largest or seconds[-1] > _LIMIT_S:
            return found
        wanted = min(wanted * STEP, largest)


def _seconds(run: Callable[[], object]) -> float:
    gc.collect(0)
    gc.disable()
    began = time.thread_time()
    try:
        with _ended_after(_LIMIT_S), contextlib.suppress(Exception):
            run()
    finally:
        gc.enable()
    return time.thread_time() - began


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """A pattern that takes for ever is ended: regular expressions look for signals on their way."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
