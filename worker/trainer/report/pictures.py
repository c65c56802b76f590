"""Drawings as inline SVG, in shares of the width: they fit a phone and a wall alike, and text keeps its size."""

import math
from collections.abc import Sequence
from typing import Final

from worker.trainer.report.markup import Markup, fill, joined

_SMOOTHED_OVER: Final = 24
"""A smoothed point is a mean over about this part of a curve."""
_STEPS: Final = (1, 2, 5, 10)
Curve = Sequence[Sequence[float]]


def ticks(highest: float, most: int = 5) -> list[float]:
    """Round numbers from 0 up to `highest`, at most so many steps; none up to what is no finite number."""
    if not math.isfinite(highest):
        return []
    unit = 1e-9
    while True:
        for step in _STEPS:
            if highest / (step * unit) <= most:
                return [at * step * unit for at in range(int(highest / (step * unit)) + 1)]
        unit *= 10


def interval(rate: float, low_high: Sequence[float], model: str, highest: float) -> Markup:
    """One rate with its interval on a line that reaches from 0 to `highest`."""
    low, high, at = (100 * min(1.0, value / highest) for value in (*low_high, rate))
    return fill(
        '<svg class="track {model}" width="100%" height="22" aria-hidden="true">{grid}'
        '<line class="whisker" x1="{low:}%" x2="{high:}%" y1="11" y2="11"/>'
        '<line class="whisker" x1="{low:}%" x2="{low:}%" y1="6" y2="16"/>'
        '<line class="whisker" x1="{high:}%" x2="{high:}%" y1="6" y2="16"/>'
        '<circle cx="{at:}%" cy="11" r="6"/></svg>',
        model=model,
        grid=joined(
            fill('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="22"/>', f"{100 * tick / highest:.2f}")
            for tick in ticks(highest)
        ),
        low=f"{low:.2f}",
        high=f"{high:.2f}",
        at=f"{at:.2f}",
    )


def axis(highest: float) -> Markup:
    """The numbers below lines made by `interval`."""
    numbers = [(100 * tick / highest, f"{100 * tick:.3g}%") for tick in ticks(highest)]
    shown = [
        fill('<text x="{}%" y="13" text-anchor="{}">{}</text>', f"{at:.2f}", _anchor(at), text) for at, text in numbers
    ]
    return fill('<svg class="axis" width="100%" height="18" aria-hidden="true">{}</svg>', joined(shown))


def _anchor(at: float) -> str:
    return "start" if at < 3 else "end" if at > 97 else "middle"  # noqa: PLR2004 - nearly at an edge


def stacked(shares: Sequence[tuple[str, float]], whole: float) -> Markup:
    """Shares of a whole side by side, each with its class."""
    drawn, at = [], 0.0
    for name, share in shares:
        width = 100 * share / whole if whole else 0.0
        if width > 0:
            drawn.append(
                fill('<rect class="{}" x="{}%" width="{}%" height="100%"/>', name, f"{at:.2f}", f"{width:.2f}")
            )
        at += width
    return fill('<svg class="bar" width="100%" height="10" aria-hidden="true">{}</svg>', joined(drawn))


def curves(loss: Curve, dev: Curve, chosen: float | None, said: str) -> Markup:
    """Loss by step as it was and smoothed, development loss as dots, and the step that was taken."""
    last = max([point[0] for point in [*loss, *dev]] or [1])
    highest = max([point[1] for point in [*loss, *dev]] or [1]) * 1.05 or 1.0

    def across(step: float) -> float:
        return 100 * step / last

    def up(value: float) -> float:
        return 100 - 100 * value / highest

    grid = [
        fill(
            '<line class="grid" x1="0" x2="100%" y1="{0}%" y2="{0}%"/><text x="2" y="{0}%" dy="-4">{1}</text>',
            f"{up(tick):.2f}",
            f"{tick:.3g}",
        )
        for tick in ticks(highest, 4)
        if up(tick) > 6  # noqa: PLR2004 - its number would be cut off
    ]
    if chosen is not None:
        grid.append(
            fill('<line class="chosen" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>', f"{min(99.7, across(chosen)):.2f}")
        )
    dots = [
        fill('<circle class="dev" cx="{}%" cy="{}%" r="4"/>', f"{across(step):.2f}", f"{up(value):.2f}")
        for step, value in dev
    ]
    steps = [
        fill('<text x="{}%" y="13" text-anchor="{}">{}</text>', f"{across(at):.2f}", _anchor(across(at)), f"{at:.0f}")
        for at in ticks(last, 6)
    ]
    return fill(
        '<div class="plot" role="img" aria-label="{}">'
        '<svg class="lines" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
        '<svg class="over" width="100%" height="100%" aria-hidden="true">{}</svg></div>'
        '<svg class="axis" width="100%" height="18" aria-hidden="true">{}</svg>',
        said,
        joined(
            [
                _line("raw", [(across(step), up(value)) for step, value in loss]),
                _line("smooth", [(across(step), up(value)) for step, value in smoothed(loss)]),
                _line("dev", [(across(step), up(value)) for step, value in dev]),
            ]
        ),
        joined(grid + dots),
        joined(steps),
    )


def _line(name: str, places: Sequence[tuple[float, float]]) -> Markup:
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    return fill('<polyline class="{}" points="{}"/>', name, path)


def smoothed(curve: Curve) -> list[tuple[float, float]]:
    """A curve without its trembling: each point is the mean of those around it, fewer towards the ends."""
    reach = len(curve) // _SMOOTHED_OVER
    found = []
    for at, (step, _) in enumerate(curve):
        side = min(reach, at, len(curve) - 1 - at)
        around = curve[at - side : at + side + 1]
        found.append((step, sum(value for _, value in around) / len(around)))
    return found
