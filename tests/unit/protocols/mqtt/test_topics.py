"""The names of topics and channels, the rules of topics and filters, and the trie against a naive matcher."""

import itertools
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols.mqtt.topics import (
    MAX_NODES,
    MAX_SLASHES,
    MAX_TOPIC_BYTES,
    FilterTrie,
    channel_of,
    exchange,
    is_filter,
    is_text,
    is_topic,
    matches,
    overlap,
    share_of,
    topic_of,
)

levels = st.sampled_from(["", "a", "b", "$a"])
topics = st.lists(levels, min_size=1, max_size=5).map("/".join).filter(is_topic)
filters = (
    st.tuples(st.lists(levels | st.just("+"), max_size=4), st.sampled_from(["a", "", "+", "#"]))
    .map(lambda parts: "/".join((*parts[0], parts[1])))
    .filter(is_filter)
)


def naive(filter: str, topic: str) -> bool:
    """Returns whether a topic matches a filter, by a regular expression that follows §4.7."""
    if topic.startswith("$") and filter[0] in "+#":
        return False
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in filter.removesuffix("#").split("/"))
    if filter == "#":
        pattern = ".*"
    elif filter.endswith("/#"):
        pattern = pattern.removesuffix("/") + "(/.*)?"
    return re.fullmatch(pattern, topic, re.DOTALL) is not None


# -- names


@pytest.mark.parametrize(
    ("topic", "channel"),
    [
        ("sensors/kitchen/temp", "sensors.kitchen.temp"),
        ("private-orders/1", "private-orders.1"),
        ("private-App/Models/User/1", "private-App.Models.User.1"),
        ("/up", ".up"),
        ("a//b", "a..b"),
        ("spBv1.0/g/NDATA/n", "spBv1/0.g.NDATA.n"),
        ("fw/1.2.3", "fw.1/2/3"),
        ("Küche/Temp 1", "Küche.Temp 1"),
        ("$user/auth0|1.2/3", "#server-to-user-auth0|1.2/3"),
    ],
)
def test_topic_is_the_channel_with_slashes_and_dots_exchanged(topic: str, channel: str):
    assert channel_of(topic) == channel
    assert topic_of(channel) == topic


@given(st.text())
def test_exchange_is_its_own_inverse(name: str):
    assert exchange(exchange(name)) == name
    assert exchange(name) == name.translate({ord("/"): ".", ord("."): "/"})


@given(st.text().filter(is_topic))
def test_channel_has_the_topic_from_which_it_was_made(topic: str):
    assert topic_of(channel_of(topic)) == topic


@pytest.mark.parametrize("channel", ["a+b", "#server-to-user-a+b", "#watch-1", "a.#"])
def test_channel_with_a_wildcard_in_its_name_has_no_topic(channel: str):
    assert topic_of(channel) is None


# -- validity


@pytest.mark.parametrize("text", ["", "a b", "Küche", "\ufeffa", "\u2028", "😀", "\u200d", "\U0002a6d4"])
def test_text_may_have_every_character_but_controls(text: str):
    assert is_text(text)


@pytest.mark.parametrize(
    "text", ["a\0", "\x01", "\x1f", "\x7f", "\x80", "\x9f", "\ufffe", "\uffff", "\U0001fffe", "\U0010ffff", "\ud800", "\n"]
)
def test_text_has_no_control_characters_and_no_noncharacters(text: str):
    assert not is_text(text)


@pytest.mark.parametrize("topic", ["a", "/", "//", "a/b c", "$SYS/x", "a" * MAX_TOPIC_BYTES, "/" * MAX_SLASHES, "$share/g/a"])
def test_topic_may_be(topic: str):
    assert is_topic(topic)


@pytest.mark.parametrize(
    "topic", ["", "a/+", "a+", "#", "a#b", "a" * (MAX_TOPIC_BYTES + 1), "é" * (MAX_TOPIC_BYTES // 2 + 1), "/" * (MAX_SLASHES + 1)]
)
def test_topic_may_not_be(topic: str):
    assert not is_topic(topic)


@pytest.mark.parametrize(
    "filter",
    ["a", "#", "+", "/#", "/+", "+/+", "a/#", "a/+/b/#", "+/#", "//", "$share/g/a/#", "$share//a", "$share/g+/a", "$share/g"],
)
def test_filter_may_be(filter: str):
    assert is_filter(filter)


@pytest.mark.parametrize(
    "filter",
    [
        "",
        "a#",
        "#/a",
        "a/#/b",
        "a+",
        "+a",
        "a/b+/c",
        "++",
        "##",
        "#/",
        "+#",
        "/" * (MAX_SLASHES + 1),
        "$share/g/a#",
        "$share/g/#/a",
    ],
)
def test_filter_may_not_be(filter: str):
    assert not is_filter(filter)


@pytest.mark.parametrize(
    ("filter", "share"),
    [
        ("a/b", ("", "a/b")),
        ("$share", ("", "$share")),
        ("$share/g/a/+", ("g", "a/+")),
        ("$share/g//", ("g", "/")),
        ("$share/g", None),
        ("$share/g/", None),
        ("$share//a", None),
        ("$share/g+/a", None),
        ("$share/#/a", None),
    ],
)
def test_shared_filter_has_a_group_and_a_filter(filter: str, share: tuple[str, str] | None):
    assert share_of(filter) == share


# -- matching


@pytest.mark.parametrize(
    ("filter", "topic", "is_match"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/x", True),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/a", True),
        ("sport/tennis/+", "sport/tennis/a/b", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/+", "$SYS/x", True),
        ("a/+", "a/$b", True),
        ("ACCOUNTS", "Accounts", False),
    ],
)
def test_topic_matches_filter(filter: str, topic: str, is_match: bool):
    assert matches(filter, topic) is is_match
    assert naive(filter, topic) is is_match


@given(filters, topics)
def test_matches_is_the_naive_matcher(filter: str, topic: str):
    assert matches(filter, topic) == naive(filter, topic)


def candidates(one: str, other: str) -> Iterator[str]:
    """Yields the topics of which at least one matches both filters, if any topic does."""
    columns = itertools.zip_longest(one.split("/"), other.split("/"), fillvalue="+")
    choices = [{level for level in column if level not in ("+", "#")} or {"a"} for column in columns]
    for size in range(1, len(choices) + 1):
        yield from filter(is_topic, map("/".join, itertools.product(*choices[:size])))


@given(filters, filters)
def test_filters_overlap_if_and_only_if_a_topic_matches_both(one: str, other: str):
    expected = any(matches(one, topic) and matches(other, topic) for topic in candidates(one, other))
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


@given(filters, filters, topics)
def test_filters_that_match_one_topic_overlap(one: str, other: str, topic: str):
    assert overlap(one, other) or not (matches(one, topic) and matches(other, topic))


# -- the trie


@given(st.lists(filters, max_size=12, unique=True), topics)
def test_trie_finds_the_same_filters_as_the_naive_matcher(names: list[str], topic: str):
    trie: FilterTrie[str] = FilterTrie()
    for name in names:
        trie[name] = name
    found, visited = trie.match(topic)
    assert sorted(found) == sorted(name for name in names if naive(name, topic))
    assert 1 <= visited <= 1 + trie.nodes
    assert trie.nodes == len({tuple(name.split("/")[:size]) for name in names for size in range(1, name.count("/") + 2)})


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
        trie["/".join(parts)] = number
    found, visited = trie.match("/".join("a" * 10))
    assert len(found) == 1024
    assert visited == 2047
    assert trie.match("/".join("b" * 10)) == ([1023], 11)


def test_trie_has_room_for_a_bounded_number_of_nodes():
    trie: FilterTrie[int] = FilterTrie()
    number = 0
    while trie.has_room(f"{number}" + "/+" * 99):
        trie[f"{number}" + "/+" * 99] = number
        number += 1
    assert trie.nodes == MAX_NODES
    assert not trie.has_room("a")
    del trie["0" + "/+" * 99]
    assert trie.nodes == MAX_NODES - 100
    assert trie.has_room("a" + "/+" * 99)
    assert not trie.has_room("a" + "/+" * 100)


def test_deep_topic_needs_no_recursion():
    trie: FilterTrie[int] = FilterTrie()
    deep = "/".join(["+"] * 10_000)
    trie[deep] = 1
    assert trie.match("/" * 9_999)[0] == [1]
    del trie[deep]
    assert len(trie) == 0
