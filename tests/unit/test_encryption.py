"""Secrets at rest: only the right key for the right owner opens them, and keys can be replaced."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.api.settings import ApiSettings
from worker.encryption import CannotDecryptError, Encryption, parse_keys

OLD, NEW = bytes(32), bytes(range(32))


@given(st.text(max_size=200), st.text(max_size=50))
def test_a_secret_comes_back_for_its_owner(text, owner):
    box = Encryption([OLD], "test")
    assert box.decrypt(box.encrypt(text, owner), owner) == text


def test_the_text_is_not_in_what_is_kept_and_no_two_are_alike():
    box = Encryption([OLD], "test")
    first, second = (box.encrypt("whsec_abcdef", "1") for _ in range(2))
    assert b"whsec" not in first
    assert first != second


def test_a_row_that_was_moved_to_another_owner_does_not_open():
    box = Encryption([OLD], "test")
    with pytest.raises(CannotDecryptError):
        box.decrypt(box.encrypt("secret", "webhook 1 of organization 1"), "webhook 1 of organization 2")


@given(st.data())
@settings(max_examples=50)
def test_a_secret_that_was_changed_anywhere_or_cut_does_not_open(data):
    box = Encryption([OLD], "test")
    sealed = box.encrypt("secret", "1")
    at = data.draw(st.integers(0, len(sealed) - 1))
    changed = sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]
    for wrong in (changed, sealed[:at], b""):
        with pytest.raises(CannotDecryptError):
            box.decrypt(wrong, "1")


def test_the_newest_key_encrypts_and_all_decrypt():
    sealed = Encryption([OLD], "test").encrypt("secret", "1")
    both = Encryption([NEW, OLD], "test")
    assert both.decrypt(sealed, "1") == "secret"
    assert Encryption([NEW], "test").decrypt(both.encrypt("secret", "1"), "1") == "secret"
    with pytest.raises(CannotDecryptError, match="not configured"):
        Encryption([NEW], "test").decrypt(sealed, "1")


def test_a_key_for_one_purpose_does_not_open_what_it_closed_for_another():
    with pytest.raises(CannotDecryptError):
        Encryption([OLD], "other").decrypt(Encryption([OLD], "test").encrypt("secret", "1"), "1")


def test_without_a_key_nothing_is_encrypted():
    assert not Encryption([], "test")
    with pytest.raises(CannotDecryptError):
        Encryption([], "test").encrypt("secret", "1")


def test_keys_are_read_in_both_alphabets_of_base64_and_either_way_separated():
    key = b"\xfb\xff" * 16
    plain, url = base64.b64encode(key).decode(), base64.urlsafe_b64encode(OLD).decode()
    assert parse_keys(f"{plain}, {url}\n") == (key, OLD)
    assert parse_keys(base64.urlsafe_b64encode(key).decode()) == (key,)
    assert parse_keys("  ") == ()


@pytest.mark.parametrize("bad", ["secret-word-of-mine", base64.b64encode(b"secret-word").decode(), "A" * 44])
def test_a_setting_that_is_no_key_is_refused_without_being_shown(bad):
    good = base64.b64encode(NEW).decode()
    with pytest.raises(ValueError, match="encryption key 2") as refused:
        ApiSettings(api_encryption_keys=f"{good},{bad}")
    assert bad not in str(refused.value)
    assert good not in str(refused.value)
