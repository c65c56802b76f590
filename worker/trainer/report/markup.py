"""HTML that cannot be spoiled by what customers write: every value is escaped unless it was made here."""

from collections.abc import Iterable
from html import escape
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600


class Markup(str):
    """HTML made by `fill`; anything else is text."""

    __slots__ = ()


def fill(template: str, *values: object, **named: object) -> Markup:
    """Put values into a template of ours: text is escaped, `Markup` is taken as it is, None is nothing."""
    return Markup(template.format(*map(_safe, values), **{name: _safe(value) for name, value in named.items()}))


def joined(parts: Iterable[Markup]) -> Markup:
    """Pieces of HTML, one after the other."""
    return Markup("".join(parts))


def _safe(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    # Lone surrogates can come out of JSON, and no encoding can write them; a NUL ends the text for some readers.
    text = "" if value is None else str(value).encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return Markup(escape(text, quote=True))


def percent(rate: float) -> str:
    """0.172 as `17.2%`."""
    return f"{rate:.1%}"


def points(change: float) -> str:
    """A change of a rate in percent points, with its sign."""
    shown = f"{100 * change:+.1f}".replace("-", "\u2212")
    return "0.0" if shown[1:] == "0.0" else shown


def duration(seconds: float) -> str:
    """`1 h 5 min`, `22 min`, `48 s`, `0.4 s`."""
    if seconds >= _HOUR:
        hours, minutes = divmod(round(seconds / _MINUTE), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if seconds >= 10 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds >= _MINUTE:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"  # noqa: PLR2004 - two digits


def memory(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"  # noqa: PLR2004 - a gigabyte


def counted(count: int, one: str, more: str | None = None) -> str:
    """`1 recording`, `2 recordings`."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
