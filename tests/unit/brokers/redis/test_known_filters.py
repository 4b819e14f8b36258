"""The filters of all nodes, as one node knows them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers.redis import known_filters
from push1st.brokers.redis.known_filters import NO_MATCHING, KnownFilters, Searches
from push1st.errors import LimitReached
from push1st.filters import matches
from tests.support.mqtt_strategies import channel_filters, channels


def known(*entries: tuple[str, str, int], app: str = "app") -> KnownFilters:
    """Returns known filters with entries: name, node, value."""
    made = KnownFilters(Searches())
    for name, node, value in entries:
        made.change(app, name, node, value)
    return made


def test_nodes_with_matching_filters_are_found_once():
    filters = known(("a.#", "n1", 1), ("a.+", "n1", 1), ("a.+", "n2", 1), ("b.#", "n3", 1))
    assert filters.match("app", "a.b").nodes == ("n1", "n2")
    assert filters.match("app", "c") == filters.match("other", "a.b") == NO_MATCHING


def test_logs_of_the_broker_are_no_nodes():
    filters = known(("a.#", "", 1), ("a.+", "n1", 1), ("a.+", "", 1), ("$share/g/a.b", "", 1))
    matching = filters.match("app", "a.b")
    assert matching.nodes == ("n1",)
    assert set(matching.logs) == {"a.#", "a.+"}
    assert filters.value("app", "a.#") == 1
    assert filters.value("app", "a.b") == filters.value("other", "a.b") == 0


def test_groups_are_kept_apart_with_the_members_on_each_node():
    filters = known(("$share/g/a.+", "n1", 2), ("$share/g/a.+", "n2", 1), ("$share/h/a.b", "n1", 1), ("$share/l/a.b", "", 1))
    matching = filters.match("app", "a.b")
    assert matching.nodes == ()
    assert {one.name: one.nodes for one in matching.groups} == {
        "$share/g/a.+": {"n1": 2, "n2": 1},
        "$share/h/a.b": {"n1": 1},
        "$share/l/a.b": {"": 1},
    }
    filters.change("app", "$share/g/a.+", "n1", 3)
    assert {"n1": 3, "n2": 1} in [one.nodes for one in matching.groups]


def test_an_app_without_entries_is_not_known():
    filters = known(("a.#", "n1", 1), ("$share/g/a.#", "n1", 1), ("a.#", "n2", 1))
    assert filters.match("app", "a").nodes == ("n1", "n2")
    filters.change("app", "a.#", "n1", 0)
    assert filters.match("app", "a").nodes == ("n2",)
    for name, node in (("a.#", "n2"), ("$share/g/a.#", "n1"), ("unknown", "n1")):
        filters.change("app", name, node, 0)
    filters.change("other", "a.#", "n1", 0)
    assert filters.apps == {}


def test_a_channel_that_is_no_topic_matches_no_entry():
    assert known(("#", "n1", 1), ("#", "", 1)).match("app", "#server-to-user-1") == NO_MATCHING


def test_the_owner_receives_each_new_filter_of_a_node():
    added: list[Any] = []
    filters = known()
    filters.on_added = added.append
    for number, (node, value) in enumerate((("n1", 2), ("n1", 2), ("n2", 1), ("n1", 1), ("n1", 2), ("n1", 0), ("", 1))):
        filters.change("app", "a.+", node, value)
        added.append(number)
    assert added == ["app", 0, 1, "app", 2, "app", 3, 4, 5, "app", 6]


def test_a_node_whose_subscribers_read_only_public_channels_needs_no_other_channels():
    filters = known(("#", "n1", 2), ("private-a.#", "n1", 2), ("#", "n2", 1))
    for channel in ("private-a", "presence-a"):
        assert filters.match("app", channel).nodes == ("n2",)
    assert filters.match("app", "a").nodes == ("n1", "n2")
    filters.change("app", "#", "n1", 1)
    assert set(filters.match("app", "private-a").nodes) == {"n1", "n2"}
    filters.change("app", "#", "n1", 2)
    assert filters.match("app", "private-a").nodes == ("n2",)


def test_a_changed_filter_is_searched_again_only_for_the_channels_that_match():
    searches = Searches()
    filters = KnownFilters(searches)
    filters.change("app", "a.#", "n1", 1)
    for channel in ("a.b", "b"):
        filters.match("app", channel)
    cost = searches.cost
    for value in (1, 0):
        filters.change("app", "x.+", "n1", value)
        for channel in ("a.b", "b"):
            filters.match("app", channel)
    assert searches.cost == cost
    filters.change("app", "+", "n2", 1)
    assert filters.match("app", "b").nodes == ("n2",)


def test_only_the_newest_reading_replaces_the_known_entries():
    filters = known(("old.+", "n1", 1))
    first = filters.begin_loading()
    first.change("app", "first.+", "n1", 1)
    second = filters.begin_loading()
    second.change("app", "second.+", "n1", 1)
    filters.end_loading(first)
    assert filters.apps["app"].filters.keys() == {"old.+"}
    filters.end_loading(second)
    assert filters.apps["app"].filters.keys() == {"second.+"}


def test_changes_during_a_reading_apply_to_the_known_entries_and_to_the_new_ones():
    filters = known(("old.+", "n1", 1), ("kept.+", "n2", 1))
    collected = filters.begin_loading()
    for name, node in (("kept.+", "n2"), ("gone.+", "n3")):
        collected.change("app", name, node, 1)
    filters.change("app", "gone.+", "n3", 0)
    filters.change("app", "new.a/b.+", "n4", 1)
    assert [filters.value("app", *entry) for entry in (("old.+", "n1"), ("new.a/b.+", "n4"))] == [1, 1]
    collected.change("app", "log.+", "", 1)
    filters.end_loading(collected)
    assert {name: one.nodes for name, one in filters.apps["app"].filters.items()} == {
        "kept.+": {"n2": 1},
        "new.a/b.+": {"n4": 1},
        "log.+": {"": 1},
    }


def test_an_app_has_a_maximum_number_of_filters(monkeypatch):
    monkeypatch.setattr(known_filters, "MAX_APP_FILTERS", 4)
    filters = known(("a.+", "n1", 1), ("a.+", "n2", 1))
    filters.check_room("app", "b.+", is_anonymous=True)
    filters.change("app", "$share/g/b.+", "n2", 1)
    with pytest.raises(LimitReached):
        filters.check_room("app", "c.+", is_anonymous=True)
    filters.check_room("app", "a.+", is_anonymous=True)
    filters.check_room("app", "c.+", is_anonymous=False)
    filters.check_room("other", "c.+", is_anonymous=True)
    filters.change("app", "log.+", "", 1)
    with pytest.raises(LimitReached):
        filters.check_room("app", "log.+", is_anonymous=True)


def test_long_filters_use_up_the_levels_of_an_app(monkeypatch):
    monkeypatch.setattr("push1st.filters.MAX_NODES", 10)
    filters = known(("a.b.c.d.e.f.g.+", "n1", 1))
    filters.check_room("app", "x.+", is_anonymous=False)
    for name in ("x.y.z.+", "$share/g/a.a.a.a.a.a.a.a.a.a.+"):
        with pytest.raises(LimitReached):
            filters.check_room("app", name, is_anonymous=False)


@given(
    st.lists(st.tuples(channel_filters, st.sampled_from(("n1", "n2", ""))), max_size=20),
    st.lists(channels, max_size=5),
    st.data(),
)
def test_an_entry_is_found_if_its_filter_matches(entries, names, data):
    made = known()
    left = data.draw(st.lists(st.sampled_from(entries), unique=True)) if entries else []
    for value, some in ((1, entries), (0, left)):
        for name, node in some:
            made.change("app", name, node, value)
        for channel in names:
            made.match("app", channel)
    remaining = set(entries) - set(left)
    for channel in names:
        found = made.match("app", channel)
        matching = {(name, node) for name, node in remaining if matches(name, channel)}
        assert set(found.nodes) == {node for _, node in matching if node}
        assert set(found.logs) == {name for name, node in matching if not node}
