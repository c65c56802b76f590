"""Which keys may exist: the same rule for files and for buckets."""

from typing import Final

LONGEST_KEY: Final = 900
"""Bytes of UTF-8; S3 allows 1024 with the prefix of the storage itself."""
LONGEST_SEGMENT: Final = 240
"""Bytes of UTF-8; file systems allow 255, and a name still being written is longer than its final one."""
PARTIAL: Final = ".partial"
"""Where files lie until they are whole."""


def check_key(key: str) -> str:
    """The key itself, when it is one.

    Raises:
        ValueError: it is empty, too long, absolute, leaves its folder, or has a character no key may have.
    """
    if not key or len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise ValueError(f"a storage key has 1 to {LONGEST_KEY} bytes: {key[:80]!r}")
    if "\\" in key or not key.isprintable():
        raise ValueError(f"a character that no storage key may have: {key[:80]!r}")
    for segment in key.split("/"):
        if segment in {"", ".", "..", PARTIAL} or len(segment.encode()) > LONGEST_SEGMENT:
            raise ValueError(f"not a storage key: {key[:80]!r}")
    return key


def check_prefix(prefix: str) -> str:
    """A prefix names a folder: a key, or nothing for everything.

    Raises:
        ValueError: it is not one.
    """
    return check_key(prefix) if prefix else prefix
