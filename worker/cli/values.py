"""Names, and ``NAME=VALUE``, as people type them."""

import argparse
import json
from typing import Any, Final

from schemas.names import is_plain

_LONGEST_NAME: Final = 200


def name(text: str) -> str:
    """A name from the command line.

    Raises:
        argparse.ArgumentTypeError: a name that nobody should have to look at, with the reason.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("a name has a character that can be seen")
    if len(text) > _LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"a name has at most {_LONGEST_NAME} characters, this one {len(text)}")
    if not is_plain(text):
        raise argparse.ArgumentTypeError(f"a name holds no hidden characters: {text!a}")
    return text


def parameters(pairs: list[str]) -> dict[str, Any]:
    """Hyper-parameters from the command line: numbers and true or false as JSON reads them, anything else as text.

    Raises:
        ValueError: no ``=``, or a name twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise ValueError(f"{pair!r} is not NAME=VALUE")
        if name in found:
            raise ValueError(f"{name} is set twice")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
