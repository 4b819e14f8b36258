"""Pages of lists whose entries come and go, and the bound on examined entries."""

import time

import pytest

from push1st.brokers.listing import MAX_EXAMINED, chosen


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


def test_a_page_late_in_a_long_list_is_quick() -> None:
    names = [f"c{number}" for number in range(1_000_000)]
    began = time.process_time()
    chosen(names, "", "900000:0", 50)  # the entry before the place was removed: the longest search
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("cursor", ["x", ":", "1", "-1:a", "1" * 12 + ":a", "²:a"])
def test_other_text_is_no_cursor(cursor: str) -> None:
    with pytest.raises(ValueError, match=cursor):
        chosen(["a"], "", cursor, 5)
