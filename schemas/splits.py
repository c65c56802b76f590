"""Train, dev or test: a pure function of the content, so that adding data never moves a row."""

import hashlib
import re
from typing import Final, Literal

from schemas.text import normalized

Split = Literal["train", "dev", "test"]

RowKey = tuple[bytes, int]
"""What a row is known by from one training to the next: SHA-256 of its recording, and where it begins, in ms."""

TEST_SHARE: Final = 0.10
DEV_SHARE: Final = 0.10
_NOT_A_WORD: Final = re.compile(r"[^\w']+", re.UNICODE)


def split_text_key(text: str) -> str:
    """The transcript as the split sees it: case, punctuation and spacing do not make another text."""
    return " ".join(_NOT_A_WORD.sub(" ", normalized(text, "NFKC").casefold()).split())


def row_key(recording_sha256: str, offset_s: float | None) -> RowKey:
    """The key of a row.

    Args:
        recording_sha256: of the whole file, in hexadecimal.
        offset_s: where the row begins in it, in seconds; None: with the recording.
    """
    return bytes.fromhex(recording_sha256), round(1000 * (offset_s or 0.0))


def split_of(key: str) -> Split:
    """The side a key fell on before 0.2.0, from which on `schemas.split_rule` decides.

    Args:
        key: ``split_text_key(text)``; for a recording cut into segments, the digest of the whole recording.
    """
    fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if fraction < TEST_SHARE:
        return "test"
    return "dev" if fraction < TEST_SHARE + DEV_SHARE else "train"
