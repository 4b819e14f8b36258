"""Converts payloads of MQTT, which are any bytes, to the data of events, which is JSON text, and back. Pure.

| payload | data |
| --- | --- |
| one JSON value, but not a string | the payload itself |
| other UTF-8 | a JSON string |
| other bytes | `{"base64":"…"}`, exactly in this form |

A payload that begins like the third form is text, even if the payload is JSON. So each payload that became data becomes the same
bytes again. In the other direction, a JSON string becomes its text, and all other data stays as it is.
"""

import binascii
from base64 import b64encode

import msgspec

from push1st.jsontext import decode, encode

BASE64_HEAD = b'{"base64":"'
BASE64_TAIL = b'"}'
JSON_STARTS = frozenset("{[-0123456789tfn")
"""the first characters of JSON values that are not strings"""

# `Raw` makes the decoder only check the text: it builds no objects. The decoder accepts strings that are not UTF-8.
_check = msgspec.json.Decoder(msgspec.Raw).decode
_strings = msgspec.json.Decoder(str)


def data_of(payload: bytes) -> bytes:
    """Returns the data of an event for the payload of a message."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return BASE64_HEAD + b64encode(payload) + BASE64_TAIL
    if text.lstrip(" \t\n\r")[:1] in JSON_STARTS and not payload.startswith(BASE64_HEAD):
        try:
            _check(payload)
        except (msgspec.DecodeError, RecursionError):
            pass  # not JSON, or nested too deeply for the parser
        else:
            return payload
    return encode(text)


def payload_of(data: bytes) -> bytes:
    """Returns the payload of a message for the data of an event. An unpaired surrogate becomes U+FFFD."""
    if data[:1] == b'"':
        return decode(_strings, data).encode()
    if data.startswith(BASE64_HEAD) and data.endswith(BASE64_TAIL):
        text = data[len(BASE64_HEAD) : -len(BASE64_TAIL)]
        try:
            found = binascii.a2b_base64(text)
        except binascii.Error:
            return data
        if b64encode(found) == text:  # otherwise the text is not the result of `data_of`
            return found
    return data
