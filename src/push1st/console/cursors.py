"""Functions for all lists of the console: opaque cursors over several workers, and data of clients as JSON. Pure."""

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import msgspec

from push1st.brokers.listing import FIRST
from push1st.errors import Refused

MAX_DATA = 10_000
"""the maximum number of bytes of an event's data in an answer"""
NO_CURSOR = "this page of the list does not exist any more: begin with the first page"
MAX_CURSOR = 12_000
"""the maximum number of bytes of a cursor; a request has at most `protocols.http.MAX_HEAD` bytes before its body"""
MAX_PLACES = 50
"""the maximum number of nodes with a place in a cursor, so that a cursor has less than 5000 bytes"""
BEGUN = "begun"
"""the cursor's key for the last node whose list has begun; the lists of nodes with later names begin on later pages"""
BEGIN = {BEGUN: ""}
"""the places before the first page"""
_decode = msgspec.msgpack.Decoder(dict[str, str]).decode


class ListedRow(Protocol):
    """A row of a list. after: the place of the rows after this one."""

    @property
    def after(self) -> str: ...


R = TypeVar("R", bound=ListedRow)


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


def places_to_read(cursor: Mapping[str, str], nodes: Iterable[str]) -> dict[str, str]:
    """Returns the places from which the nodes list their entries for a page, in the order in which the page shows the nodes.

    cursor: the places in the cursor of the page; `BEGIN` for the first page.
    nodes: the living nodes.
    """
    last, ordered = cursor.get(BEGUN), sorted(nodes)
    found = {node: cursor[node] for node in ordered if node in cursor}
    return found | {node: FIRST for node in ordered if last is not None and node > last and node not in found}


def joined_page(
    cursor: Mapping[str, str],
    places: Mapping[str, str],
    pages: Mapping[str, tuple[Sequence[R], str]],
    missing: Collection[str],
    limit: int,
) -> tuple[list[tuple[str, R]], dict[str, str]]:
    """Returns the rows of a page, each with its node, and the places in the cursor of the next page (`cursor_of`).

    A page shows the lists of the nodes one after another, so that the cursor has places of `MAX_PLACES` nodes at most, however
    many nodes there are.

    places: the result of `places_to_read`.
    pages: for each node that has replied, its rows, and the place after them; "" at the end of its list.
    missing: the living nodes that have not replied. They keep their places.
    """
    rows: list[tuple[str, R]] = []
    following: dict[str, str] = {}
    last = cursor.get(BEGUN, "")
    for node, place in places.items():
        listed, after = pages.get(node, ((), place if node in missing else ""))
        if node not in cursor:
            if (listed or after) and (len(rows) == limit or len(following) == MAX_PLACES):
                following[BEGUN] = last
                break
            last = node
        shown = listed[: limit - len(rows)]
        rows += [(node, row) for row in shown]
        if len(shown) < len(listed):
            following[node] = shown[-1].after if shown else place
        elif after:
            following[node] = after
    return rows, following


def shown_data(data: bytes, most: int = MAX_DATA) -> dict[str, object]:
    """Returns the fields `data` and `cut`, with `encoding` if the data are not text. most: the maximum number of bytes.

    If a JSON string is too long, `data` is the beginning of the decoded string: a part of the encoded string is not valid JSON.
    """
    cut = len(data) > most
    try:
        data.decode()
    except UnicodeDecodeError:
        return {"data": b64encode(data[:most]).decode(), "cut": cut, "encoding": "base64"}
    if cut and data.startswith(b'"'):
        with suppress(msgspec.DecodeError, UnicodeError):
            data = msgspec.json.decode(data, type=str).encode()
            cut = len(data) > most
    return {"data": data[:most].decode(errors="ignore"), "cut": cut}
