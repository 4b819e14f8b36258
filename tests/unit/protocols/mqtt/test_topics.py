"""The names of topics and channels, and the rules of topics and filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols.mqtt.topics import (
    MAX_SLASHES,
    MAX_TOPIC_BYTES,
    channel_of,
    exchange,
    filter_of,
    is_filter,
    is_text,
    is_topic,
    name_of,
    share_of,
    topic_of,
)

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


@pytest.mark.parametrize(
    ("filter", "name"),
    [
        ("a/b.c", "a.b/c"),
        ("$share/g/a/+/b.c", "$share/g/a.+.b/c"),
        ("$share/g.1/#", "$share/g.1/#"),
        ("$share/g//a", "$share/g/.a"),
        ("$user/7", "#server-to-user-7"),
    ],
)
def test_name_of_a_filter(filter: str, name: str) -> None:
    assert name_of(filter) == name
    assert filter_of(name) == filter
