"""``NAME=VALUE`` as people type it."""

import json
from typing import Any


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
