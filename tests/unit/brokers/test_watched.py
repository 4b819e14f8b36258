"""The filters that sessions watch, and the bound for the logs of one message."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers import watched
from push1st.brokers.watched import AppFilters, HighestCount, WatchedFilters, group_and_filter

FILTERS = ("a", "a.b", "a.+", "a.#", "+.b", "#", "b.+", "b.+.c", "$share/g/a", "$share/h/a", "$share/g/b", "$share/g/a.+")


def most_of_any_channel(filters: set[str]) -> tuple[int, int]:
    """Returns the highest number of exact groups of a channel, and of shapes of a first level, by a search."""
    groups: dict[str, set[str]] = {}
    shapes: dict[str, set[str]] = {}
    for filter in filters:
        group, name = group_and_filter(filter)
        first, shape = watched._shape(group, name)
        if not shape and group:
            groups.setdefault(name, set()).add(group)
        elif shape and first:
            shapes.setdefault(first, set()).add(shape)
    return max(map(len, groups.values()), default=0), max(map(len, shapes.values()), default=0)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(FILTERS))))
def test_highest_numbers_are_those_of_a_search(steps: list[tuple[bool, str]]) -> None:
    filters, others, known = WatchedFilters(1), WatchedFilters(1), set[str]()
    for is_added, filter in steps:
        if is_added and filter not in known:
            filters.add(filter, others)
            known.add(filter)
        elif not is_added and filter in known:
            filters.remove(filter)
            known.discard(filter)
        assert (filters._most_groups.value, filters._most_shapes.value) == most_of_any_channel(known)


def test_highest_count_follows_each_number() -> None:
    highest = HighestCount()
    found = []
    for new, by in ((1, 1), (1, 1), (2, 1), (1, -1), (0, -1), (0, -1)):
        highest.change(new, by)
        found.append(highest.value)
    assert found == [1, 1, 2, 1, 1, 0]


def lines_of(call: Callable[[], object]) -> int:
    """Returns the number of lines of the module that a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != watched.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_many_first_levels_cost_a_new_filter_nothing() -> None:
    found = []
    for number in (10, 1000):
        filters = AppFilters()
        for one in range(number):
            filters.add(f"a{one}.+", False)
        found.append(lines_of(lambda filters=filters: filters.add("+.b", False)))  # type: ignore[misc]
    assert found[0] == found[1] > 0
