"""JSON text that is forwarded without being parsed."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.jsontext import as_string, decode, string_size

texts = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda one: st.lists(one) | st.dictionaries(texts, one), max_leaves=8
)


def test_a_string_stays_as_it_is():
    assert as_string(b'"a\\u0041\\n"') == b'"a\\u0041\\n"'


@pytest.mark.parametrize("data", [b"1", b"null", b"{}", b"[ 1 ]", b'{"a":"\\"b\\""}', '{"a":"ж"}'.encode()])
def test_any_other_value_is_wrapped_as_its_text(data):
    assert json.loads(as_string(data)) == data.decode()


@settings(max_examples=60)
@given(values)
def test_wrapping_keeps_the_value(value):
    wrapped = json.loads(as_string(json.dumps(value, ensure_ascii=False).encode()))
    assert (wrapped if isinstance(value, str) else json.loads(wrapped)) == value


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b'""', 0),
        (b'"abc"', 3),
        ('"ж"'.encode(), 2),
        (b'"\\u0436"', 2),
        (b'"\\n\\\\"', 2),
        (b'"\\ud83d\\ude00"', 4),
        (b"{}", 2),
        (b'{"a": "\\n"}', 11),
        (b"12", 2),
    ],
)
def test_a_size_is_that_of_the_string_or_of_the_text(data, size):
    assert string_size(data) == size


@given(texts, st.booleans())
def test_a_strings_size_does_not_depend_on_how_it_is_escaped(value, escaped):
    assert string_size(json.dumps(value, ensure_ascii=escaped).encode()) == len(value.encode())


@settings(max_examples=60)
@given(values)
def test_a_size_is_never_more_than_that_of_the_text(value):
    data = json.dumps(value).encode()
    assert string_size(data) <= len(data)


ANYTHING = msgspec.json.Decoder()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d"', "\ufffd"),
        (r'"\uDE00"', "\ufffd"),
        (r'"a\ud83db"', "a\ufffdb"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd😀"),
        (r'"\ude00\ud83d"', "\ufffd\ufffd"),
        (r'"\ud83d\u0041"', "\ufffdA"),
        (r'"\ud83d\n"', "\ufffd\n"),
        (r'"\ud83d\\ude00"', "\ufffd\\ude00"),
        (r'"\\ud83d"', r"\ud83d"),
        (r'"\\\ud83d"', "\\\ufffd"),
        (r'{"\ud83d":["\udfff",{"a":"\uD800"}]}', {"\ufffd": ["\ufffd", {"a": "\ufffd"}]}),
    ],
)
def test_half_a_surrogate_pair_is_the_replacement_character(text, value):
    """RFC 8259 §8.2: such a text is allowed."""
    assert decode(ANYTHING, text) == decode(ANYTHING, text.encode()) == value
    assert bytes(decode(msgspec.json.Decoder(msgspec.Raw), text)).decode().encode() != b""


@pytest.mark.parametrize("text", ["", "{", r'"\ud83"', r'"\ud83g"', r'"\ud83d', r'"\x\ud83d"', '"\x01\\ud83d"', r'"\ud83d" 1'])
def test_invalid_json_stays_an_error(text):
    with pytest.raises(msgspec.DecodeError):
        decode(ANYTHING, text)


def test_a_mistyped_field_stays_an_error():
    with pytest.raises(msgspec.ValidationError):
        decode(msgspec.json.Decoder(list[int]), r'["\ud83d"]')


@settings(max_examples=60)
@given(st.text())
def test_any_text_that_javascript_writes_is_decoded_as_javascript_writes_it_in_utf_8(value):
    assert decode(ANYTHING, json.dumps(value)) == value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
