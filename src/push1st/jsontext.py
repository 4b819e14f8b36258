"""JSON text as it stands: what the codecs share to cut frames from it and put them together."""

import msgspec

encode = msgspec.json.Encoder().encode


def as_string(data: bytes) -> bytes:
    """JSON text → a JSON string: a string stays, any other value is wrapped (Pusher protocol, section 2)."""
    return data if data[:1] == b'"' else encode(data.decode())


def string_size(data: bytes) -> int:
    """Bytes of an event's data as its subscribers see it: of the decoded string, or of the JSON text."""
    if data[:1] != b'"':
        return len(data)
    if b"\\" not in data:
        return len(data) - 2
    return len(msgspec.json.decode(data, type=str).encode("utf-8", "surrogatepass"))
