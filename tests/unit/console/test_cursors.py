"""Cursors over several workers, and data of clients in answers."""

from typing import NamedTuple

import pytest

from push1st.console.cursors import (
    FIRST,
    MAX_DATA,
    MAX_MOVED,
    cursor_of,
    index_of,
    is_place,
    place_at,
    places_of,
    shown_data,
)
from push1st.errors import Refused


def test_cursor_returns_its_places() -> None:
    places = {"": "0:5:3", "0123456789abcdef": "7:ab"}
    cursor = cursor_of(places)
    assert cursor is not None
    assert cursor.isascii()
    assert places_of(cursor) == places
    assert cursor_of({}) is None


@pytest.mark.parametrize("cursor", ["x", "!", "gaFhAQ", "é", "kA", "=" * 9])
def test_other_text_is_no_cursor(cursor: str) -> None:
    with pytest.raises(Refused, match="after is not a cursor"):
        places_of(cursor)


def test_data_are_text_or_base64() -> None:
    assert shown_data(b'"a"') == {"data": '"a"', "cut": False}
    assert shown_data(b"\xff\x00") == {"data": "/wA=", "cut": False, "encoding": "base64"}


def test_long_data_are_cut_between_characters() -> None:
    shown = shown_data("xé".encode() * MAX_DATA)
    assert shown["cut"] is True
    assert shown["data"] == "xé" * (MAX_DATA // 3) + "x"
    assert shown_data(b"\xff" * (MAX_DATA + 1))["cut"] is True


class Entry(NamedTuple):
    id: str


ENTRIES = [Entry(f"{number}.{number * 7919}") for number in range(9000)]


@pytest.mark.parametrize("index", [1, 7, 8, 600, 9000])
def test_list_continues_at_its_place(index: int) -> None:
    place = place_at(ENTRIES, index)
    assert is_place(place)
    assert index_of(ENTRIES, place) == index
    assert index_of(ENTRIES, FIRST) == 0


@pytest.mark.parametrize("removed", [1, 2, 7, 8, 63, 64, 500, 511, 600, 1900])
def test_no_entry_is_skipped_although_the_last_entries_before_a_place_are_removed(removed: int) -> None:
    place = place_at(ENTRIES, 5000)
    rest = ENTRIES[: 5000 - removed] + ENTRIES[5000:]
    begin = index_of(rest, place)
    assert begin <= 5000 - removed
    repeated = 5000 - removed - begin
    assert repeated < max(8, 8 * removed) if removed < 512 else repeated <= MAX_MOVED


@pytest.mark.parametrize("kept", [2, 3, 11])
def test_no_entry_is_skipped_although_earlier_entries_are_removed_too(kept: int) -> None:
    place = place_at(ENTRIES, 1200)
    rest = ENTRIES[:1190:kept] + ENTRIES[1200:]
    begin = index_of(rest, place)
    assert begin <= len(ENTRIES[:1190:kept])


def test_entries_that_are_added_before_a_place_repeat_none() -> None:
    place = place_at(ENTRIES, 5000)
    assert index_of([Entry(f"new-{number}") for number in range(100)] + ENTRIES, place) == 5100


def test_list_that_is_much_shorter_continues_within_it() -> None:
    assert index_of([], place_at(ENTRIES, 5000)) == 0
    assert index_of(ENTRIES[:10], place_at(ENTRIES, 5000)) == 0
    assert index_of(ENTRIES[:4999], place_at(ENTRIES, 5000)) == 4992 + 1


@pytest.mark.parametrize("text", ["", "x", "1", "-1:", "1:g", "1:a.", "1:a.b.c.d.e", "1:123456789", "1:a\n", "1234567890:"])
def test_other_text_is_no_place(text: str) -> None:
    assert not is_place(text)
