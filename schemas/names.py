"""Names that people give things: what may not be in them, and how what is there already is shown."""

import re
from typing import Final

HIDDEN: Final = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Characters that are not seen and change what is: control characters of both sets (a terminal obeys U+009B as it
obeys escape), separators of lines, and those that embed, override or isolate a direction, by which ``gnp.exe`` is
read as ``exe.png``. Joiners and direction marks, which Persian, Hindi or Hebrew need, are not among them.

The inside of a class of characters, the same in Python's, pydantic's and JSON Schema's regular expressions.
"""
NAME_PATTERN: Final = rf"^[^{HIDDEN}]*[^{HIDDEN}\u0020][^{HIDDEN}]*$"
_HIDDEN: Final = re.compile(f"[{HIDDEN}\ud800-\udfff]")


def is_plain(text: str) -> bool:
    """Whether nothing in a text is hidden, and all of it can be written down (no lone surrogate)."""
    return _HIDDEN.search(text) is None


def visible(text: str) -> str:
    r"""A text as it may be shown on a terminal: what is hidden stands there as ``\u202e``, and does nothing."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
