"""Letters that pass through a place where others read."""

import os

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.launchers.exchange.sealed import KEY_BYTES, NotForUsError, seal, unseal

KEY = os.urandom(KEY_BYTES)


@pytest.mark.parametrize("text", [b"", b"\0\0leading zeros", b"x" * 1_000_000])
def test_what_is_sealed_is_read_with_the_same_key_only(text: bytes):
    letter = seal(KEY, text)
    assert unseal(KEY, letter) == text
    with pytest.raises(NotForUsError):
        unseal(os.urandom(KEY_BYTES), letter)


def test_nothing_of_the_text_shows_and_no_two_letters_are_alike():
    letters = {seal(KEY, b"a signed address") for _ in range(100)}
    assert len(letters) == 100
    assert not [letter for letter in letters if b"signed" in letter]


@pytest.mark.parametrize("at", [0, 5, 20, -1])
def test_a_letter_that_was_changed_is_refused(at: int):
    letter = bytearray(seal(KEY, b"remaining_s: 45"))
    letter[at] ^= 1
    with pytest.raises(NotForUsError):
        unseal(KEY, bytes(letter))


@pytest.mark.parametrize(
    "letter", [b"", b"short", b"{}" * 40, b"\x01", b"\x01" + b"x" * 12, b"\x01" + b"x" * 40, b"\x02" + b"x" * 40]
)
def test_what_is_no_letter_is_refused(letter: bytes):
    with pytest.raises(NotForUsError):
        unseal(KEY, letter)


def test_a_key_that_opens_letters_opens_nothing_when_used_without_its_purpose():
    letter = seal(KEY, b"a signed address")
    with pytest.raises(InvalidTag):
        AESGCM(KEY).decrypt(letter[1:13], letter[13:], letter[:1])


def test_a_letter_cut_short_anywhere_is_refused():
    letter = seal(KEY, b"remaining_s: 45")
    for length in range(len(letter)):
        with pytest.raises(NotForUsError):
            unseal(KEY, letter[:length])
