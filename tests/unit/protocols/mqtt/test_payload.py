"""Payloads become data and the same payloads again; data becomes payloads that a device can read."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from push1st.protocols.mqtt.payload import BASE64_HEAD, data_of, payload_of

TOO_DEEP = b"[" * 100_000 + b"]" * 100_000

payloads = st.one_of(
    st.binary(),
    st.text().map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.binary().map(lambda tail: BASE64_HEAD + tail),
)


@given(payloads)
@example(b"")
@example(b"\xef\xbb\xbf1")
@example(b' "a" ')
@example(b'{"base64":"AA=="}')
@example(b' {"base64":"AA=="}')
@example(b'{"a":"\\ud800"}')
@example(b'{"a":"\xff"}')
@example(TOO_DEEP)
def test_payload_is_the_same_after_a_round_trip(payload: bytes):
    assert payload_of(data_of(payload)) == payload


@given(payloads)
def test_data_of_any_payload_is_json(payload: bytes):
    json.loads(data_of(payload))


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b"21.5", b"21.5"),
        (b" 21.5\n", b" 21.5\n"),
        (b'{"a": 1}', b'{"a": 1}'),
        (b"[1,2]", b"[1,2]"),
        (b"true", b"true"),
        (b"null", b"null"),
        (b"1e999", b"1e999"),
    ],
)
def test_json_that_is_no_string_is_data(payload: bytes, data: bytes):
    assert data_of(payload) == data


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b"", b'""'),
        (b"on", b'"on"'),
        ("Küche".encode(), '"Küche"'.encode()),
        (b'"on"', rb'"\"on\""'),
        (b' "on"', rb'" \"on\""'),
        (b"1 2", b'"1 2"'),
        (b"{", b'"{"'),
        (b"true-ish", b'"true-ish"'),
        (b"NaN", b'"NaN"'),
        (b'["\x01"]', rb'"[\"\u0001\"]"'),
        (b'{"base64":"AA=="}', rb'"{\"base64\":\"AA==\"}"'),
        (b'{"base64":"never closed', rb'"{\"base64\":\"never closed"'),
    ],
)
def test_other_text_is_a_json_string(payload: bytes, data: bytes):
    assert data_of(payload) == data


def test_json_that_is_too_deep_for_the_parser_is_a_string():
    assert json.loads(data_of(TOO_DEEP)).encode() == TOO_DEEP


def test_other_bytes_are_base64_without_spaces():
    assert data_of(b"\xff\xfe") == b'{"base64":"//4="}'
    assert data_of(b'{"a":"\xff"}') == b'{"base64":"eyJhIjoi/yJ9"}'


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b'"on"', b"on"),
        (b'""', b""),
        (rb'"{\"a\":1}"', b'{"a":1}'),  # an SDK sends objects as JSON in a string
        (rb'"\u00fc"', "ü".encode()),
        (rb'"a\ud83d"', "a\ufffd".encode()),
        (rb'"\ud83d\ude00"', "😀".encode()),
        (b'{"base64":"//4="}', b"\xff\xfe"),
        (b'{"base64":""}', b""),
        (b"21.5", b"21.5"),
        (b'{"a":1}', b'{"a":1}'),
    ],
)
def test_data_becomes_the_payload_of_a_device(data: bytes, payload: bytes):
    assert payload_of(data) == payload


@pytest.mark.parametrize(
    "data",
    [
        b'{"base64": "//4="}',
        b'{"base64":"//4"}',
        b'{"base64":"//5="}',
        b'{"base64":"//4=\\n"}',
        b'{"base64":"//4=","a":1}',
        b'{"base64":"*"}',
        b'{"base64":1}',
    ],
)
def test_object_that_is_not_exactly_base64_stays_as_it_is(data: bytes):
    assert payload_of(data) == data
