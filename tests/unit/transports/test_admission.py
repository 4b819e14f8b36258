"""Admission of clients: the origins of an app."""

import base64
import hashlib

import pytest

from push1st.transports.admission import origin_allowed

# Origins


@pytest.mark.parametrize(
    ("origin", "allowed", "lets_in"),
    [
        (None, ("http://a",), True),
        ("http://evil", (), True),
        ("http://evil", ("*",), True),
        ("http://a", ("http://a",), True),
        ("HTTP://A", ("http://a/",), True),
        ("http://a:8080", ("http://a",), False),
        ("http://a:8080", ("a",), True),
        ("http://a:8080", ("a:8080",), True),
        ("http://a", ("a:8080",), False),
        ("https://a", ("http://a",), False),
        ("http://a.evil", ("a",), False),
        ("http://evil-a", ("a",), False),
        ("http://sub.a", ("a",), False),
        ("http://[::1]:80", ("[::1]",), True),
        ("null", ("a",), False),
        ("", ("a",), False),
        ("http://", ("a",), False),
    ],
)
def test_origins_are_compared_whole(origin, allowed, lets_in):
    assert origin_allowed(origin, allowed) is lets_in


def test_accept_value_matches_the_rfc():
    digest = hashlib.sha1(b"dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    assert base64.b64encode(digest) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
