"""What the set-up tells a person: lines of progress, and a missing piece with what to do about it."""

import sys


class MissingPieceError(RuntimeError):
    """Something the set-up needs is not here; the message says what to do."""


def say(text: str) -> None:
    """One line of progress, on standard error: standard output is for answers."""
    print(text, file=sys.stderr, flush=True)
