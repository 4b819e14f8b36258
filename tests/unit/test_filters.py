"""Filters of channels, and the trie against a naive matcher."""

import itertools
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.filters import MAX_NODES, FilterTrie, matches, overlap
from tests.support.mqtt_strategies import channel_filters as filters
from tests.support.mqtt_strategies import channels


def naive(filter: str, channel: str) -> bool:
    """Returns whether a channel matches a filter, by a regular expression that follows §4.7."""
    if channel.startswith("$") and filter[0] in "+#":
        return False
    pattern = r"\.".join(r"[^.]*" if level == "+" else re.escape(level) for level in filter.removesuffix("#").split("."))
    if filter == "#":
        pattern = ".*"
    elif filter.endswith(".#"):
        pattern = pattern.removesuffix(r"\.") + r"(\..*)?"
    return re.fullmatch(pattern, channel, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("filter", "channel", "is_match"),
    [
        ("sport.tennis.player1.#", "sport.tennis.player1", True),
        ("sport.tennis.player1.#", "sport.tennis.player1.score.x", True),
        ("sport.#", "sport", True),
        ("sport.tennis.+", "sport.tennis.a", True),
        ("sport.tennis.+", "sport.tennis.a.b", False),
        ("sport.+", "sport", False),
        ("sport.+", "sport.", True),
        ("+.+", ".finance", True),
        (".+", ".finance", True),
        ("+", ".finance", False),
        ("#", "$SYS.x", False),
        ("+.x", "$SYS.x", False),
        ("$SYS.#", "$SYS.x", True),
        ("$SYS.+", "$SYS.x", True),
        ("a.+", "a.$b", True),
        ("ACCOUNTS", "Accounts", False),
        ("\u00e9", "e\u0301", False),
        ("\u212b.+", "\u00c5.a", False),
    ],
)
def test_channel_matches_filter(filter: str, channel: str, is_match: bool):
    assert matches(filter, channel) is is_match
    assert naive(filter, channel) is is_match


@given(filters, channels)
def test_matches_is_the_naive_matcher(filter: str, channel: str):
    assert matches(filter, channel) == naive(filter, channel)


def candidates(one: str, other: str) -> Iterator[str]:
    """Yields the channels of which at least one matches both filters, if any channel does."""
    columns = itertools.zip_longest(one.split("."), other.split("."), fillvalue="+")
    choices = [{level for level in column if level not in ("+", "#")} or {"a"} for column in columns]
    for size in range(1, len(choices) + 1):
        yield from filter(bool, map(".".join, itertools.product(*choices[:size])))


@given(filters, filters)
def test_filters_overlap_if_and_only_if_a_channel_matches_both(one: str, other: str):
    expected = any(matches(one, channel) and matches(other, channel) for channel in candidates(one, other))
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


@given(filters, filters, channels)
def test_filters_that_match_one_channel_overlap(one: str, other: str, channel: str):
    assert overlap(one, other) or not (matches(one, channel) and matches(other, channel))


# -- the trie


@given(st.lists(filters, max_size=12, unique=True), channels)
def test_trie_finds_the_same_filters_as_the_naive_matcher(names: list[str], channel: str):
    trie: FilterTrie[str] = FilterTrie()
    for name in names:
        trie[name] = name
    found, visited = trie.match(channel)
    assert sorted(found) == sorted(name for name in names if naive(name, channel))
    assert 1 <= visited <= 1 + trie.nodes
    assert trie.nodes == len({tuple(name.split(".")[:size]) for name in names for size in range(1, name.count(".") + 2)})


@given(st.lists(st.tuples(st.booleans(), filters), max_size=40))
def test_trie_is_a_map(steps: list[tuple[bool, str]]):
    trie: FilterTrie[int] = FilterTrie()
    model: dict[str, int] = {}
    for number, (is_added, name) in enumerate(steps):
        if is_added:
            trie[name] = number
            model[name] = number
        elif name in model:
            del trie[name]
            del model[name]
        else:
            with pytest.raises(KeyError):
                del trie[name]
        assert dict(trie.items()) == model
        assert len(trie) == len(model)
        assert trie.get(name) == model.get(name)
    for name in list(model):
        del trie[name]
    assert trie.nodes == 0
    assert trie._root.children is None, "an empty trie keeps no nodes"


def test_search_visits_only_existing_nodes():
    trie: FilterTrie[int] = FilterTrie()
    for number, parts in enumerate(itertools.product(("a", "+"), repeat=10)):
        trie[".".join(parts)] = number
    found, visited = trie.match(".".join("a" * 10))
    assert len(found) == 1024
    assert visited == 2047
    assert trie.match(".".join("b" * 10)) == ([1023], 11)


def test_trie_has_room_for_a_bounded_number_of_nodes():
    trie: FilterTrie[int] = FilterTrie()
    number = 0
    while trie.has_room(f"{number}" + ".+" * 99):
        trie[f"{number}" + ".+" * 99] = number
        number += 1
    assert trie.nodes == MAX_NODES
    assert not trie.has_room("a")
    del trie["0" + ".+" * 99]
    assert trie.nodes == MAX_NODES - 100
    assert trie.has_room("a" + ".+" * 99)
    assert not trie.has_room("a" + ".+" * 100)


def test_deep_channel_needs_no_recursion():
    trie: FilterTrie[int] = FilterTrie()
    deep = ".".join(["+"] * 10_000)
    trie[deep] = 1
    assert trie.match("." * 9_999)[0] == [1]
    del trie[deep]
    assert len(trie) == 0


def test_wildcard_in_a_name_doubles_no_search() -> None:
    trie: FilterTrie[int] = FilterTrie()
    for number, filter in enumerate((".".join("+" * 16), "#", "+.#")):
        trie[filter] = number
    found, visited = trie.match(".".join("+" * 16))
    assert sorted(found) == [0, 1, 2]
    assert visited == 17
    assert trie.match("#")[0] == [1, 2]
