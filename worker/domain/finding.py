"""What a check found, in words an operator can act on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at by ``python -m worker doctor``."""

    name: str
    """What was looked at, such as ``broker`` or ``queue training.runs``."""
    ok: bool
    what: str
    """What was seen."""
    mend: str = ""
    """What to do about it; empty where nothing is wrong."""
