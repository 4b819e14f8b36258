"""Hashes of the console's password, and the keys that follow from them."""

import pytest

from push1st.config.console import _HASH
from push1st.console.passwords import PasswordHash, hashed, stored

TEXT = "correct horse battery"


def test_hash_has_the_form_that_the_configuration_accepts():
    assert _HASH.match(hashed(TEXT, bytes(16)).text)


def test_hash_fits_only_its_password():
    found = hashed(TEXT, bytes(16))
    assert found.fits(TEXT)
    assert not found.fits(TEXT + " ")
    assert not found.fits("")
    assert not found.fits("\ud800 and more text")


def test_clear_text_has_the_same_hash_and_key_on_all_workers():
    one, other = stored(TEXT), stored(TEXT)
    assert one == other
    assert one.key == other.key
    assert one.fits(TEXT)


def test_configured_hash_is_used_unchanged():
    text = hashed(TEXT, b"0123456789abcdef").text
    assert stored(text) == PasswordHash(text)
    assert stored(text).fits(TEXT)
    assert stored(text).key != stored(TEXT).key, "the salts differ"


def test_another_password_has_another_key_and_cookie():
    one, other = stored(TEXT), stored(TEXT + "2")
    assert one.key != other.key
    assert one.cookie_name != other.cookie_name


def test_a_hash_names_its_own_cost():
    found = hashed(TEXT, bytes(16), n=1 << 15)
    assert found.text.startswith("scrypt$32768$8$1$")
    assert found.fits(TEXT)


@pytest.mark.parametrize("show", [repr, str])
def test_printed_hash_is_hidden(show):
    assert "scrypt" not in show(stored(TEXT))
