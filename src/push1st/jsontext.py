"""Functions that all codecs use for JSON text: to decode JSON, to measure it, and to forward it without encoding it again."""

import re
from typing import TypeVar

import msgspec

from push1st.errors import Refused

T = TypeVar("T")
encode = msgspec.json.Encoder().encode
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""a pattern for one escape in a JSON string, or for a surrogate pair of two escapes; the group matches an unpaired surrogate"""


def decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    """Decodes JSON, and replaces each unpaired surrogate with U+FFFD.

    An emoji is a pair of surrogates in JavaScript. If a client cuts a text between the two, `JSON.stringify` writes an unpaired
    surrogate. RFC 8259 §8.2 allows unpaired surrogates. But the decoder rejects them, even in values that are only forwarded.

    Raises the exceptions that the decoder raises.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        raw = text.encode() if isinstance(text, str) else text
        whole = _ESCAPE.sub(_whole, raw)
        if whole == raw:
            raise
        return decoder.decode(whole)


def _whole(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape[1] else escape[0]


def as_string(data: bytes) -> bytes:
    """Returns a JSON value as a JSON string. A string is returned unchanged; the JSON text of any other value becomes a string.

    The Pusher protocol, section 2, calls this double encoding.
    """
    return data if data[:1] == b'"' else encode(data.decode())


def string_size(data: bytes) -> int:
    """Returns the size of an event's data in bytes: the size of the decoded string, or of the JSON text of any other value."""
    if data[:1] != b'"':
        return len(data)
    if b"\\" not in data:
        return len(data) - 2
    return len(msgspec.json.decode(data, type=str).encode("utf-8", "surrogatepass"))


def object_text(name: str, text: msgspec.Raw, limit: int) -> bytes:
    """Returns the JSON text of an object; b"" if the value is missing or null.

    `name`: the name of the field, for errors.
    `limit`: the maximum number of bytes.
    Raises Refused with status 400 for any other JSON value, and with 413 for an object that exceeds `limit`.
    """
    found = bytes(text).strip()
    if found in (b"", b"null"):
        return b""
    if found[:1] != b"{":
        raise Refused(400, f"{name} must be an object")
    if len(found) > limit:
        raise Refused(413, f"{name} has {len(found)} bytes, the limit is {limit}")
    return found
