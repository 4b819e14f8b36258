"""Cursors over several workers, and data of clients in answers."""

import json
from typing import NamedTuple

import pytest

from push1st.brokers.listing import index_of, place_at
from push1st.console.cursors import (
    BEGIN,
    BEGUN,
    MAX_DATA,
    MAX_PLACES,
    cursor_of,
    joined_page,
    places_of,
    places_to_read,
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
    with pytest.raises(Refused, match="this page of the list does not exist any more"):
        places_of(cursor)


def test_data_are_text_or_base64() -> None:
    assert shown_data(b'"a"') == {"data": '"a"', "cut": False}
    assert shown_data(b"\xff\x00") == {"data": "/wA=", "cut": False, "encoding": "base64"}


def test_long_data_are_cut_between_characters() -> None:
    shown = shown_data("xé".encode() * MAX_DATA)
    assert shown["cut"] is True
    assert shown["data"] == "xé" * (MAX_DATA // 3) + "x"
    assert shown_data(b"\xff" * (MAX_DATA + 1))["cut"] is True


def test_cut_string_is_shown_without_its_json_quotes_like_a_short_one() -> None:
    text = 'a "word"\n' * MAX_DATA
    assert shown_data(json.dumps(text).encode()) == {"data": text[:MAX_DATA], "cut": True}
    broken = '"' + "a" * MAX_DATA
    assert shown_data(broken.encode()) == {"data": broken[:MAX_DATA], "cut": True}


class Row(NamedTuple):
    id: str
    after: str


class Workers:
    """Workers with lists of ids. examined: the maximum number of ids that a worker examines for a page.

    silent: the workers that do not reply.
    """

    def __init__(self, lists: dict[str, list[str]], examined: int = 1000) -> None:
        self.lists = lists
        self.examined = examined
        self.silent: set[str] = set()
        self.longest = 0
        """the number of bytes of the longest cursor"""

    def page(self, after: str | None, limit: int, prefix: str = "") -> tuple[list[tuple[str, str]], str | None]:
        cursor = BEGIN if after is None else places_of(after)
        places = places_to_read(cursor, reversed(self.lists))
        pages = {node: self._own(self.lists[node], place, limit, prefix) for node, place in places.items()}
        pages = {node: page for node, page in pages.items() if node not in self.silent}
        rows, following = joined_page(cursor, places, pages, self.silent, limit)
        found = cursor_of(following)
        self.longest = max(self.longest, len(found or ""))
        assert len(rows) <= limit
        return [(node, row.id) for node, row in rows], found

    def _own(self, ids: list[str], place: str, limit: int, prefix: str) -> tuple[list[Row], str]:
        begin = index = index_of(ids, place, str)
        rows: list[Row] = []
        while index < min(len(ids), begin + self.examined) and len(rows) < limit:
            index += 1
            if ids[index - 1].startswith(prefix):
                rows.append(Row(ids[index - 1], f"{index}:"))
        return rows, place_at(ids, index, str) if index < len(ids) else ""

    def all(self, limit: int, prefix: str = "") -> tuple[list[tuple[str, str]], int]:
        """Returns the rows of all pages, and the number of pages."""
        found, after = self.page(None, limit, prefix)
        pages = 1
        while after is not None:
            rows, after = self.page(after, limit, prefix)
            found += rows
            pages += 1
        return found, pages


def workers(count: int, each: int, **settings: int) -> Workers:
    return Workers({f"{worker:016x}": [f"{worker}.{number}" for number in range(each)] for worker in range(count)}, **settings)


def expected(place: Workers, prefix: str = "") -> list[tuple[str, str]]:
    return [(node, id) for node, ids in sorted(place.lists.items()) for id in ids if id.startswith(prefix)]


@pytest.mark.parametrize(("each", "limit"), [(1, 50), (50, 50), (7, 50), (20, 100)])
def test_pages_of_200_workers_show_each_row_once_with_short_cursors(each: int, limit: int) -> None:
    place = workers(200, each)
    found, pages = place.all(limit)
    assert found == expected(place)
    assert pages == -(-200 * each // limit)
    assert place.longest < 200, "one place is enough: the other workers have ended, or have not begun"


def test_pages_of_a_rare_filter_on_200_workers_have_short_cursors() -> None:
    place = workers(200, 500, examined=100)
    found, pages = place.all(50, "199.")
    assert found == expected(place, "199.")
    assert 3000 < place.longest < 5000, "50 workers are not at the end of their lists"
    assert pages < 40, "many workers examine their lists for one page"


def test_list_of_the_last_worker_is_on_the_first_page() -> None:
    place = Workers({f"node{number}": [] for number in range(100, 300)})
    place.lists["node299"] = ["a"]
    assert place.page(None, 50) == ([("node299", "a")], None)


def test_workers_that_do_not_reply_keep_their_places() -> None:
    place = workers(200, 10)
    first, after = place.page(None, 15)
    assert after is not None
    assert places_of(after).keys() == {f"{1:016x}", BEGUN}
    place.silent = set(place.lists)
    nothing, after = place.page(after, 15)
    assert nothing == []
    assert after is not None
    assert len(places_of(after)) == MAX_PLACES + 1
    place.silent = set()
    rest: list[tuple[str, str]] = []
    while after is not None:
        rows, after = place.page(after, 15)
        rest += rows
    assert first + rest == expected(place)


def test_worker_that_has_ended_leaves_the_list() -> None:
    place = workers(3, 10)
    first, after = place.page(None, 5)
    del place.lists[f"{0:016x}"]
    rows, after = place.page(after, 50)
    assert first + rows == [(f"{0:016x}", f"0.{number}") for number in range(5)] + expected(place)
    assert after is None


def test_worker_that_starts_later_is_shown_if_its_turn_is_not_over() -> None:
    place = workers(3, 10)
    _, after = place.page(None, 15)
    place.lists |= {"0": ["early"], "f": ["late"]}
    shown = {id for _, id in place.page(after, 50)[0]}
    assert "late" in shown
    assert "early" not in shown
