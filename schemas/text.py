"""Normalizing text that strangers wrote, in time that grows with its length and not with its square.

`unicodedata.normalize` sorts each run of combining marks by insertion. 64 KiB of marks take it seconds, 16 MiB a day,
and it holds the interpreter's lock all the time. No other module calls it: a test looks.
"""

import re
import unicodedata
from functools import cache
from typing import Final, Literal

Form = Literal["NFC", "NFKC", "NFKD"]

MOST_MARKS: Final = 30
"""Combining marks in a row. No script needs more: Unicode Standard Annex 15, "Stream-Safe Text Format"."""
LONGEST_TEXT: Final = 1 << 20
"""Characters that anybody may want normalized at once."""
_FIRST_MARK, _LAST_MARK = 0x300, 0x1FFFF


class TextTooLong(ValueError):  # noqa: N818 - a verdict
    """More characters than the caller allows."""

    def __init__(self, length: int, longest: int) -> None:
        super().__init__(f"The text has {length:,} characters; at most {longest:,} are possible.")
        self.length = length
        self.longest = longest


def normalized(text: str, form: Form, longest: int = LONGEST_TEXT) -> str:
    """Text in a normal form, with at most `MOST_MARKS` combining marks in a row. Doing it twice changes nothing more.

    Args:
        text: whatever somebody sent.
        form: NFC, NFKC or NFKD.
        longest: characters that the text may have, before it is normalized.

    Raises:
        TextTooLong: it has more.
    """
    if len(text) > longest:
        raise TextTooLong(len(text), longest)
    if text.isascii():
        return text
    # A second time, because some characters decompose into two marks or three.
    return without_surplus_marks(unicodedata.normalize(form, without_surplus_marks(text)))


def without_surplus_marks(text: str) -> str:
    """The text without the combining marks that follow `MOST_MARKS` others."""
    return text if text.isascii() else _surplus().sub(r"\1", text)


@cache
def _surplus() -> re.Pattern[str]:
    """Runs that are too long; the first group holds what may stay."""
    ranges: list[list[int]] = []
    for code in filter(_is_mark, range(_FIRST_MARK, _LAST_MARK + 1)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    marks = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
    return re.compile(f"([{marks}]{{{MOST_MARKS}}})[{marks}]+")


def _is_mark(code: int) -> bool:
    """Whether a character takes part in the sorting.

    Some marks have no combining class of their own and decompose into characters that do.
    """
    letter = chr(code)
    if unicodedata.combining(letter):
        return True
    return bool(unicodedata.decomposition(letter) and unicodedata.combining(unicodedata.normalize("NFKD", letter)[0]))
