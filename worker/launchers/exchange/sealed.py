"""Letters that only the holder of a key can read or write: AES-256-GCM of the library `cryptography`.

A key belongs to one start of one step, a nonce to one letter. The cipher's key is derived from it for this purpose, so
the same key used for anything else opens no letter. A letter is: version (1 byte), nonce (12), encrypted text with
its tag (16 more bytes). Worker and nodes have to be of releases that know the same version.
"""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.encryption import derived

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_PURPOSE: Final = "letters between a worker and a step"


class NotForUsError(ValueError):
    """It was sealed with another key, or is no letter at all."""


def seal(key: bytes, text: bytes) -> bytes:
    """The letter."""
    nonce = os.urandom(_NONCE_BYTES)
    return _VERSION + nonce + _cipher(key).encrypt(nonce, text, _VERSION)


def unseal(key: bytes, letter: bytes) -> bytes:
    """What was sealed.

    Raises:
        NotForUsError: another key sealed it, it was changed on its way, or another release wrote it.
    """
    if letter[:1] != _VERSION:
        raise NotForUsError("no letter of this release")
    nonce, sealed = letter[1 : 1 + _NONCE_BYTES], letter[1 + _NONCE_BYTES :]
    try:
        return _cipher(key).decrypt(nonce, sealed, _VERSION)
    except (InvalidTag, ValueError) as error:
        raise NotForUsError("sealed with another key") from error


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(derived(key, _PURPOSE, KEY_BYTES))
