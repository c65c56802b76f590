"""Secrets kept in the database are encrypted with keys that are not in it: AES-256-GCM of the library `cryptography`.

A stolen database or backup opens nothing, and a row whose bytes were moved to another owner does not open either: what
the secret belongs to is authenticated with it. There may be several keys, so that one can be replaced while everything
runs: the first one encrypts, all of them decrypt.

An encrypted secret is: version (1 byte), id of the key (8), nonce (12), encrypted text with its tag (16 more bytes).
"""

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
MAKE_ONE: Final = "make one with `openssl rand -base64 32`"
_VERSION: Final = b"\x01"
_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_ID_AT: Final = slice(1, 1 + _ID_BYTES)
_NONCE_AT: Final = slice(_ID_AT.stop, _ID_AT.stop + _NONCE_BYTES)


class CannotDecryptError(ValueError):
    """None of the keys decrypts it, or it was changed; the text says which."""


def derived(key: bytes, purpose: str, length: int) -> bytes:
    """Bytes for one purpose from a key, by HKDF-SHA256: no two purposes ever use the same."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose.encode()).derive(key)


def parse_keys(text: str) -> tuple[bytes, ...]:
    """The keys of a setting: base64 of 32 bytes each, separated by commas or white space, the newest first.

    Raises:
        ValueError: one of them is none; says which, and never shows it.
    """
    found = []
    for number, word in enumerate(text.replace(",", " ").split(), start=1):
        try:
            key = base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"encryption key {number} is not base64: {MAKE_ONE}") from error
        if len(key) != KEY_BYTES:
            raise ValueError(f"encryption key {number} has {len(key)} bytes instead of {KEY_BYTES}: {MAKE_ONE}")
        if key in found:
            raise ValueError(f"encryption key {number} stands there twice")
        found.append(key)
    return tuple(found)


@dataclass(frozen=True)
class _Key:
    id: bytes
    cipher: AESGCM


class Encryption:
    """Encrypts with the first of its keys, decrypts with any.

    Args:
        keys: of 32 bytes each, the newest first; with none, nothing can be encrypted.
        purpose: what is encrypted; the same keys used for another purpose do not decrypt it.
    """

    def __init__(self, keys: Sequence[bytes], purpose: str) -> None:
        self._keys = [
            _Key(derived(key, f"{purpose}: key id", _ID_BYTES), AESGCM(derived(key, f"{purpose}: key", KEY_BYTES)))
            for key in keys
        ]

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def key_ids(self) -> list[bytes]:
        """What the encrypted secrets that can be decrypted name, the newest key's first."""
        return [key.id for key in self._keys]

    def encrypt(self, text: str, owner: str) -> bytes:
        """Encrypt a secret.

        Args:
            text: the secret.
            owner: what it belongs to; needed again, the same, to decrypt it.

        Raises:
            CannotDecryptError: there is no key.
        """
        if not self._keys:
            raise CannotDecryptError("no encryption key is configured")
        key, nonce = self._keys[0], os.urandom(_NONCE_BYTES)
        return _VERSION + key.id + nonce + key.cipher.encrypt(nonce, text.encode(), owner.encode())

    def decrypt(self, sealed: bytes, owner: str) -> str:
        """The secret.

        Raises:
            CannotDecryptError: its key is not among ours, or it was changed or belongs to somebody else.
        """
        if sealed[:1] != _VERSION:
            raise CannotDecryptError("the secret is in no format of this release")
        cipher = next((key.cipher for key in self._keys if key.id == sealed[_ID_AT]), None)
        if cipher is None:
            raise CannotDecryptError(f"the secret's encryption key {sealed[_ID_AT].hex()} is not configured")
        try:
            return cipher.decrypt(sealed[_NONCE_AT], sealed[_NONCE_AT.stop :], owner.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise CannotDecryptError("the secret was changed, or it belongs to somebody else") from error
