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
    for index in range(place - 1, max(-1, place - MAX_EXAMINED), -1):
        if digest_of(names[index]) == digest:
            return index + 1
    return place


def cursor_at(names: Sequence[str], place: int) -> str:
    """Returns the cursor for the index at which the next page begins; "" at the end. place: at least 1, or the end."""
    return "" if place >= len(names) else f"{place}:{digest_of(names[place - 1])}"


def chosen(names: Sequence[str], prefix: str, cursor: str, most: int) -> tuple[list[tuple[str, str]], str, int]:
    """Returns the names of a page, each with the cursor of the names after it, the cursor of the next page, and the number of
    examined names. most: the maximum number of names in the page.
    """
    begin = place = place_of(names, cursor)
    end = min(len(names), begin + MAX_EXAMINED)
    found: list[tuple[str, str]] = []
    while place < end and len(found) < most:
        if names[place].startswith(prefix):
            found.append((names[place], f"{place + 1}:{digest_of(names[place])}"))
        place += 1
    return found, cursor_at(names, place), place - begin


def digest_of(name: str) -> str:
    """Returns the checksum of a name in a cursor."""
    return f"{crc32(name.encode()):x}"
