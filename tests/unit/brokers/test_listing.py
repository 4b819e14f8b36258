"""Pages of lists whose entries come and go, and the bound on examined entries."""

from collections.abc import Sequence
from typing import overload

import pytest

from push1st.brokers.listing import FIRST, MAX_EXAMINED, MAX_MOVED, chosen, index_of, is_place, place_at

NAMES = [f"{number}.{number * 7919}" for number in range(9000)]


def test_pages_continue_after_removed_entries() -> None:
    names = [f"c{number}" for number in range(100)]
    page, after, _ = chosen(names, "", "", 50)
    assert [name for name, _ in page] == names[:50]
    del names[:30]
    assert [name for name, _ in chosen(names, "", after, 50)[0]] == [f"c{number}" for number in range(50, 100)]
    assert [name for name, _ in chosen(names, "", page[39][1], 2)[0]] == ["c40", "c41"], "each entry has a cursor of its own"


def test_a_page_examines_a_bounded_number_of_entries() -> None:
    names = [f"c{number}" for number in range(3 * MAX_EXAMINED)]
    found, after, examined = chosen(names, "x", "", 50)
    assert (found, examined) == ([], MAX_EXAMINED)
    found, after, examined = chosen(names, f"c{2 * MAX_EXAMINED - 1}", after, 50)
    assert ([name for name, _ in found], examined) == ([f"c{2 * MAX_EXAMINED - 1}"], MAX_EXAMINED)
    assert chosen(names, "x", after, 50) == ([], "", MAX_EXAMINED)


class Counted(Sequence[str]):
    """A list of a million names. read: the number of names that were read."""

    read = 0

    def __len__(self) -> int:
        return 1_000_000

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        wanted = range(1_000_000)[index]
        if isinstance(wanted, int):
            self.read += 1
            return f"c{wanted}"
        self.read += len(wanted)
        return [f"c{number}" for number in wanted]


def test_a_page_late_in_a_long_list_reads_few_entries() -> None:
    names = Counted()
    page, _, _ = chosen(names, "", "900000:0", 50)  # the entry before the place was removed: the longest search
    assert [name for name, _ in page] == [f"c{number}" for number in range(900_000 - MAX_MOVED, 900_050 - MAX_MOVED)]
    assert names.read < 3 * MAX_MOVED


@pytest.mark.parametrize("cursor", ["x", ":", "1", "-1:a", "1" * 12 + ":a", "²:a"])
def test_other_text_is_no_cursor(cursor: str) -> None:
    with pytest.raises(ValueError, match=cursor):
        chosen(["a"], "", cursor, 5)


@pytest.mark.parametrize("most", [3, 7, 20, 60])
@pytest.mark.parametrize("last", [1, 2, 5])
def test_no_name_is_skipped_although_the_last_ones_of_each_page_are_removed(most: int, last: int) -> None:
    names, shown, after = NAMES[:200], list[str](), ""
    while not shown or after:
        page, after, _ = chosen(names, "", after, most)
        shown += [name for name, _ in page]
        for name in [one for one in shown if one in names][-last:]:
            names.remove(name)
    assert set(shown) == set(NAMES[:200])


@pytest.mark.parametrize("back", [(1,), (1, 8), (8,), (64,), (1, 2, 3, 4, 5, 6, 7)])
@pytest.mark.parametrize("length", [108, 200, 5000])
def test_name_that_is_removed_and_added_again_moves_no_page(back: tuple[int, ...], length: int) -> None:
    names = NAMES[:length]
    place = place_at(names, 100, str)
    again = [names[100 - one] for one in back]
    rest = [name for name in names if name not in again] + again
    begin = index_of(rest, place, str)
    assert begin <= 100 - len(again), "a client that has reconnected is at the end of the list, but the page is not"
    assert begin > 100 - 70


def test_single_name_that_was_added_again_is_no_anchor() -> None:
    names = [f"c{number}" for number in range(20)]
    place = place_at(names, 5, str)
    assert index_of([*names[:4], *names[5:], names[4]], place, str) == 0


@pytest.mark.parametrize("index", [1, 7, 8, 600, 9000])
def test_list_continues_at_its_place(index: int) -> None:
    place = place_at(NAMES, index, str)
    assert is_place(place)
    assert index_of(NAMES, place, str) == index
    assert index_of(NAMES, FIRST, str) == 0


@pytest.mark.parametrize("removed", [1, 2, 7, 8, 63, 64, 500, 511, 600, 1900])
def test_no_entry_is_skipped_although_the_last_entries_before_a_place_are_removed(removed: int) -> None:
    place = place_at(NAMES, 5000, str)
    rest = NAMES[: 5000 - removed] + NAMES[5000:]
    begin = index_of(rest, place, str)
    assert begin <= 5000 - removed
    repeated = 5000 - removed - begin
    assert repeated < max(8, 8 * removed) if removed < 512 else repeated <= MAX_MOVED


@pytest.mark.parametrize("kept", [2, 3, 11])
def test_no_entry_is_skipped_although_earlier_entries_are_removed_too(kept: int) -> None:
    place = place_at(NAMES, 1200, str)
    rest = NAMES[:1190:kept] + NAMES[1200:]
    begin = index_of(rest, place, str)
    assert begin <= len(NAMES[:1190:kept])


def test_entries_that_are_added_before_a_place_repeat_none() -> None:
    place = place_at(NAMES, 5000, str)
    assert index_of([f"new-{number}" for number in range(100)] + NAMES, place, str) == 5100


def test_list_that_is_much_shorter_continues_within_it() -> None:
    assert index_of([], place_at(NAMES, 5000, str), str) == 0
    assert index_of(NAMES[:10], place_at(NAMES, 5000, str), str) == 0
    assert index_of(NAMES[:4999], place_at(NAMES, 5000, str), str) == 4992 + 1


@pytest.mark.parametrize("text", ["", "x", "1", "-1:", "1:g", "1:a.", "1:a.b.c.d.e", "1:123456789", "1:a\n", "1234567890:"])
def test_other_text_is_no_place(text: str) -> None:
    assert not is_place(text)
