"""Cursors over several workers, and data of clients in answers."""

import pytest

from push1st.console.cursors import MAX_DATA, cursor_of, places_of, shown_data
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
