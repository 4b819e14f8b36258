"""The pages of an app's channel names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.brokers.channel_names import BUCKETS, ChannelNames
from push1st.brokers.local_roster import LocalRoster

ALL = 10**9


def pages(names: ChannelNames, most: int, prefix: str = "", examine: int = ALL) -> list[str]:
    found: list[str] = []
    after = ""
    while True:
        some, after, _ = names.page(prefix, lambda _: True, after, most, examine)
        assert len(some) <= most
        found += some
        if not after:
            return found


@given(st.sets(st.text("ab", min_size=1, max_size=5)), st.integers(1, 5), st.integers(1, 5))
def test_pages_have_each_name_once(given_names: set[str], most: int, examine: int) -> None:
    names = ChannelNames(given_names)
    assert sorted(pages(names, most, examine=examine)) == sorted(given_names)


@given(st.data())
def test_name_that_stays_is_in_one_page_whatever_changes(data: st.DataObject) -> None:
    stay = {f"stay-{number}" for number in range(30)}
    others = {f"other-{number}" for number in range(30)}
    names, there, found, after = ChannelNames(stay), set[str](), list[str](), ""
    while True:
        for name in data.draw(st.sets(st.sampled_from(sorted(others)), max_size=5)):
            (names.remove if name in there else names.add)(name)
            there ^= {name}
        some, after, _ = names.page("", lambda _: True, after, 4, ALL)
        found += some
        if not after:
            break
    assert sorted(name for name in found if name in stay) == sorted(stay)


def test_page_continues_within_a_bucket() -> None:
    names = ChannelNames()
    number = 0
    while max(map(len, names._buckets.values()), default=0) < 4:
        names.add(f"c{number}")
        number += 1
    assert sorted(pages(names, 2)) == sorted(f"c{one}" for one in range(number))


def test_page_ends_at_the_bound_of_examined_names() -> None:
    names = ChannelNames(f"c{number}" for number in range(10_000))
    found, after, examined = names.page("none", lambda _: True, "", 50, 1000)
    assert (found, after != "") == ([], True)
    assert 1000 <= examined < 1100


def test_names_are_chosen_by_beginning_and_function() -> None:
    names = ChannelNames(("ab", "ac", "b"))
    assert sorted(pages(names, 1, "a")) == ["ab", "ac"]
    assert names.page("a", lambda name: name != "ab", "", 5, ALL)[0] == ["ac"]


@pytest.mark.parametrize("cursor", ["x", "1", ":", "-1:", "99999:", "²:"])
def test_other_text_is_no_cursor(cursor: str) -> None:
    with pytest.raises(ValueError, match=cursor):
        ChannelNames().page("", lambda _: True, cursor, 1, ALL)


def test_empty_buckets_are_dropped() -> None:
    names = ChannelNames(("a", "b"))
    names.remove("a")
    assert len(names._buckets) == 1
    assert names.page("", lambda _: True, f"{BUCKETS - 1}:", 1, ALL) == ([], "", 0)


def test_local_roster_keeps_names_only_if_required() -> None:
    roster = LocalRoster()
    roster.join("app", "early", "1.1", None)
    assert not roster._names
    assert pages(roster.names("app"), 9) == ["early"]
    roster.join("app", "late", "1.1", None)
    roster.join("app", "late", "1.2", None)
    assert sorted(pages(roster.names("app"), 9)) == ["early", "late"]
    for channel in ("early", "late"):
        roster.leave("app", channel, "1.1", None)
    assert pages(roster.names("app"), 9) == ["late"]
    roster.leave("app", "late", "1.2", None)
    assert roster._names == {}
    assert pages(roster.names("app"), 9) == []
    roster.join("app", "again", "1.1", None)
    roster.clear()
    assert pages(roster.names("app"), 9) == []
