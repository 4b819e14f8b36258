"""What the lists of the console share: opaque cursors over several workers, and data of clients as JSON. Pure."""

import re
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Sequence
from typing import Protocol

import msgspec

from push1st.brokers.listing import digest_of
from push1st.errors import Refused

MAX_DATA = 10_000
"""the maximum number of bytes of an event's data in an answer"""
NO_CURSOR = "after is not a cursor of this list"
FIRST = "0:"
"""the place at the beginning of a list"""
MAX_MOVED = 2000
"""the number of entries on each side of a place among which the anchors of the place are searched"""
ANCHORS = (1, 8, 64, 512)
"""the distances of a place's anchors before the place"""
_PLACE = re.compile(r"[0-9]{1,9}:(?:[0-9a-f]{1,8}(?:\.[0-9a-f]{1,8}){0,3})?\Z")
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


class ListedEntry(Protocol):
    """An entry of a list that keeps its order while entries are removed."""

    @property
    def id(self) -> str: ...


def place_at(entries: Sequence[ListedEntry], index: int) -> str:
    """Returns the place before the entry `index`: the index, and checksums of some entries before it, the *anchors*."""
    return f"{index}:{'.'.join([digest_of(entries[index - one].id) for one in ANCHORS if one <= index])}"


def is_place(text: str) -> bool:
    """Returns whether a text is a place."""
    return _PLACE.match(text) is not None


def index_of(entries: Sequence[ListedEntry], place: str) -> int:
    """Returns the index of the first entry after a place, although entries were removed and added since.

    The last entries before the place may be removed, so the list continues after the nearest anchor that is left. Without an
    anchor, it continues earlier. So a page may repeat entries, but it skips none, unless more than `MAX_MOVED` entries before
    the place are removed meanwhile.
    """
    number, _, text = place.partition(":")
    index, anchors = min(int(number), len(entries)), text.split(".")
    if not text or (index and digest_of(entries[index - 1].id) == anchors[0]):
        return index
    begin = max(0, index - MAX_MOVED)
    places = {digest_of(one.id): at for at, one in enumerate(entries[begin : index + MAX_MOVED], begin + 1)}
    return next((places[anchor] for anchor in anchors if anchor in places), begin)


def shown_data(data: bytes, most: int = MAX_DATA) -> dict[str, object]:
    """Returns the fields `data` and `cut`, with `encoding` if the data are not text. most: the maximum number of bytes."""
    cut = len(data) > most
    try:
        data.decode()
    except UnicodeDecodeError:
        return {"data": b64encode(data[:most]).decode(), "cut": cut, "encoding": "base64"}
    return {"data": data[:most].decode(errors="ignore"), "cut": cut}
