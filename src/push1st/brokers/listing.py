"""Lists of sessions and retained messages, which operators read in pages. Pure.

A list has no order that means anything. A cursor is the place in the list after the last page, with a checksum of the name
before it: so a page begins quickly, however long the list is. A reader sees each entry that exists during all pages, unless the
last entry of a page and others before it are removed meanwhile.
"""

from collections.abc import Sequence
from zlib import crc32

import msgspec

from push1st.messages import Message

MAX_EXAMINED = 20_000
"""the maximum number of entries that one page examines"""
MAX_SEARCHED = 2000
"""the number of entries before the place of a cursor in which its name is searched"""


class RetainedPage(msgspec.Struct, frozen=True, gc=False):
    """Retained messages. next: the cursor of the next page; "" after the last one. examined: the number of examined names."""

    messages: tuple[Message, ...]
    next: str
    examined: int


def place_of(names: Sequence[str], cursor: str) -> int:
    """Returns the index at which the next page begins. Raises ValueError if the text is not a cursor.

    Entries that were removed since have moved the others forward, so the name is searched before its place.
    """
    if not cursor:
        return 0
    digits, colon, digest = cursor.partition(":")
    if not (colon and digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise ValueError(cursor)
    place = min(int(digits), len(names))
    for index in range(place - 1, max(-1, place - MAX_SEARCHED), -1):
        if digest_of(names[index]) == digest:
            return index + 1
    return place


def cursor_at(names: Sequence[str], place: int) -> str:
    """Returns the cursor for the index at which the next page begins, at least 1."""
    return f"{place}:{digest_of(names[place - 1])}"


def chosen(names: Sequence[str], prefix: str, cursor: str, most: int) -> tuple[list[tuple[str, str]], str, int]:
    """Returns the names of a page, each with the cursor of the names after it, the cursor of the next page, and the number of
    examined names. most: the maximum number of names in the page.
    """
    begin = place_of(names, cursor)
    end = min(len(names), begin + MAX_EXAMINED)
    # measured: 20,000 names in 2.8 ms, and in 3.8 ms with a loop that ends early. The bound for one turn of the loop is 5 ms.
    places = (
        [place for place, name in enumerate(names[begin:end], begin) if name.startswith(prefix)] if prefix else range(begin, end)
    )
    found = [(names[place], cursor_at(names, place + 1)) for place in places[:most]]
    last = places[most - 1] + 1 if len(places) >= most else end
    return found, "" if last == len(names) else cursor_at(names, last), last - begin


def digest_of(name: str) -> str:
    """Returns the checksum of a name in a cursor."""
    return f"{crc32(name.encode()):x}"
