"""What the lists of the console share: opaque cursors over several workers, and data of clients as JSON. Pure."""

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error

import msgspec

from push1st.errors import Refused

MAX_DATA = 10_000
"""the maximum number of bytes of an event's data in an answer"""
NO_CURSOR = "after is not a cursor of this list"
_decode = msgspec.msgpack.Decoder(dict[str, str]).decode


def cursor_of(places: dict[str, str]) -> str | None:
    """Returns a cursor: the places at which the lists continue, by their names; None if no list continues."""
    if not places:
        return None
    return urlsafe_b64encode(msgspec.msgpack.encode(places)).rstrip(b"=").decode()


def places_of(cursor: str) -> dict[str, str]:
    """Reverses `cursor_of`. Raises Refused(400)."""
    try:
        return _decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (Error, ValueError, msgspec.DecodeError, UnicodeError):
        raise Refused(400, NO_CURSOR) from None


def shown_data(data: bytes, most: int = MAX_DATA) -> dict[str, object]:
    """Returns the fields `data` and `cut`, with `encoding` if the data are not text. most: the maximum number of bytes."""
    cut = len(data) > most
    try:
        data.decode()
    except UnicodeDecodeError:
        return {"data": b64encode(data[:most]).decode(), "cut": cut, "encoding": "base64"}
    return {"data": data[:most].decode(errors="ignore"), "cut": cut}
