"""Train, dev or test: a pure function of the content, so that adding data never moves a row."""

import hashlib
import re
from typing import Final, Literal

from schemas.text import normalized

Split = Literal["train", "dev", "test"]

TEST_SHARE: Final = 0.10
DEV_SHARE: Final = 0.10
_NOT_A_WORD: Final = re.compile(r"[^\w']+", re.UNICODE)


def split_text_key(text: str) -> str:
    """The transcript as the split sees it: case, punctuation and spacing do not make another text."""
    return " ".join(_NOT_A_WORD.sub(" ", normalized(text, "NFKC").casefold()).split())


def split_of(key: str) -> Split:
    """The side a key falls on.

    Args:
        key: ``split_text_key(text)``; for a recording cut into segments, the digest of the whole recording.
    """
    fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if fraction < TEST_SHARE:
        return "test"
    return "dev" if fraction < TEST_SHARE + DEV_SHARE else "train"
