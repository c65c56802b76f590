"""Letters that only the holder of a key can read or write, with what a bare Python has.

A node has the trainer's environment and no library for ciphers, so this is one: the text is covered by SHAKE-256 of
key and nonce as a key stream, and key, nonce and covered text are authenticated by keyed BLAKE2b (encrypt, then
authenticate). A key belongs to one start of one step, a nonce to one letter.
"""

import hashlib
import hmac
import os
from typing import Final

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 32


class NotForUsError(ValueError):
    """It was sealed with another key, or is no letter at all."""


def seal(key: bytes, text: bytes) -> bytes:
    """The letter."""
    nonce = os.urandom(_NONCE_BYTES)
    covered = _covered(key, nonce, text)
    return nonce + _tag(key, nonce + covered) + covered


def unseal(key: bytes, letter: bytes) -> bytes:
    """What was sealed.

    Raises:
        NotForUsError: another key sealed it, or it was changed on its way.
    """
    nonce, tag, covered = (
        letter[:_NONCE_BYTES],
        letter[_NONCE_BYTES : _NONCE_BYTES + _TAG_BYTES],
        letter[_NONCE_BYTES + _TAG_BYTES :],
    )
    if not hmac.compare_digest(tag, _tag(key, nonce + covered)):
        raise NotForUsError("sealed with another key")
    return _covered(key, nonce, covered)


def _covered(key: bytes, nonce: bytes, text: bytes) -> bytes:
    stream = hashlib.shake_256(b"cover" + key + nonce).digest(len(text))
    return (int.from_bytes(text, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(text), "big")


def _tag(key: bytes, covered: bytes) -> bytes:
    return hashlib.blake2b(covered, digest_size=_TAG_BYTES, key=key, person=b"tag").digest()
