"""Lists of connections, sessions and retained messages, which operators read in pages. Pure.

The order of a list has no meaning, but stays the same while entries are removed. A cursor is the place in the list
after the last page, with checksums of some names before it, the *anchors*: so a page begins quickly, however long the list is.
A reader sees each entry that exists during all pages, some perhaps twice. If more than `MAX_MOVED` entries before the place of
a cursor are removed before the next page, the reader may miss some.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar
from zlib import crc32

import msgspec

from push1st.messages import Message

MAX_EXAMINED = 20_000
"""the maximum number of entries that one page examines"""
FIRST = "0:"
"""the place at the beginning of a list"""
MAX_MOVED = 2000
"""the number of entries on each side of a place among which the anchors of the place are searched"""
ANCHORS = (1, 8, 64, 512)
"""A place has four anchors: the last, the 8th last, the 64th last and the 512th last entry before it."""
_PLACE = re.compile(r"[0-9]{1,9}:(?:[0-9a-f]{1,8}(?:\.[0-9a-f]{1,8}){0,3})?\Z")

T = TypeVar("T")


class RetainedPage(msgspec.Struct, frozen=True, gc=False):
    """Retained messages. next: the cursor of the next page; "" after the last one. examined: the number of examined names."""

    messages: tuple[Message, ...]
    next: str
    examined: int


def place_at(entries: Sequence[T], index: int, name_of: Callable[[T], str]) -> str:
    """Returns the place before the entry `index`: the index, and the checksums of its anchors."""
    return f"{index}:{'.'.join([digest_of(name_of(entries[index - one])) for one in ANCHORS if one <= index])}"


def is_place(text: str) -> bool:
    """Returns whether a text is a place."""
    return _PLACE.match(text) is not None


def index_of(entries: Sequence[T], place: str, name_of: Callable[[T], str]) -> int:
    """Returns the index of the first entry after a place, although entries were removed and added since.

    The last entries before the place may be removed, so the list continues after the nearest anchor that is left. Without an
    anchor, it continues earlier. So a page may repeat entries, but it skips none, unless more than `MAX_MOVED` entries before the
    place were removed between the two pages.

    An anchor that was removed and added again, such as a client that has reconnected, is now at the end of the list. It does not
    count: the removals between two anchors move the nearer one forward by more than the farther one, and never by less. Only if
    fewer entries follow the place than were removed just before it, such an anchor may seem to be at its place.
    """
    number, _, text = place.partition(":")
    index, anchors = min(int(number), len(entries)), text.split(".") if text else []
    distances = dict(zip(anchors, ANCHORS, strict=False))
    if all(one <= index and digest_of(name_of(entries[index - one])) == anchor for anchor, one in distances.items()):
        return index
    begin = max(0, index - MAX_MOVED)
    places = {digest_of(name_of(one)): at for at, one in enumerate(entries[begin : index + MAX_MOVED], begin + 1)}
    least, count, found = -len(entries), 0, begin
    for anchor, distance in reversed(distances.items()):  # the farthest one first
        at = places.get(anchor)
        if at is not None:
            count += 1
            moves = int(number) - distance + 1 - at
            if moves >= least and (moves >= 0 or count > 1):  # a single anchor that has moved back was added again
                least, found = moves, at
                continue
        least += 1  # this anchor was removed
    return found


def chosen(names: Sequence[str], prefix: str, cursor: str, most: int) -> tuple[list[tuple[str, str]], str, int]:
    """Returns the names of a page, each with the cursor of the names after it, the cursor of the next page, and the number of
    examined names. most: the maximum number of names in the page. Raises ValueError if the text is not a cursor.
    """
    if not is_place(cursor or FIRST):
        raise ValueError(cursor)
    begin = index_of(names, cursor or FIRST, str)
    end = min(len(names), begin + MAX_EXAMINED)
    # measured: 20,000 names in 2.8 ms, and in 3.8 ms with a loop that ends early. The bound for one turn of the loop is 5 ms.
    places = (
        [place for place, name in enumerate(names[begin:end], begin) if name.startswith(prefix)] if prefix else range(begin, end)
    )
    found = [(names[place], place_at(names, place + 1, str)) for place in places[:most]]
    last = places[most - 1] + 1 if len(places) >= most else end
    return found, "" if last == len(names) else place_at(names, last, str), last - begin


def digest_of(name: str) -> str:
    """Returns the checksum of a name in a cursor."""
    return f"{crc32(name.encode()):x}"
