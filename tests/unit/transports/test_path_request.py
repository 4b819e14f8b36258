"""Requests of clients that name their channels in the path."""

import pytest

from push1st.errors import Refused
from push1st.messages import Subscribe
from push1st.positions import Position
from push1st.transports.path_request import MAX_REWIND_SECONDS, parse

P1, P2 = Position("a", 1), Position("b", 2)


def subscriptions(path, query, permitted=None):
    """Returns the commands of a client that may subscribe to the channels `permitted`, or to all channels."""
    request = parse(path, query)
    return request.subscriptions(permitted or dict.fromkeys(request.channels), request.query.get("since", ""))


def test_a_path_has_a_key_and_channels():
    request = parse("key/a/%D0%B6%2Fx/a/", "token=t&session=p.q")
    assert (request.key, request.channels) == ("key", ("a", "ж/x", "a"))
    assert request.query == {"token": "t", "session": "p.q"}
    assert not request.resumes


def test_a_path_that_is_not_utf8_is_refused():
    with pytest.raises(Refused, match="not UTF-8"):
        parse("key/%ff", "")


@pytest.mark.parametrize("query", ["since=a:1", "rewind=1", "positions=1", "token=x&since=-", "since=%2d"])
def test_three_parameters_request_positions(query):
    assert parse("key/c", query).resumes


@pytest.mark.parametrize("query", ["", "token=x", "since=", "rewind=", "positions="])
def test_other_queries_request_no_positions(query):
    assert not parse("key/c", query).resumes


@pytest.mark.parametrize(
    ("path", "since", "positions"),
    [
        ("key/a/b", "a:1,b:2", {"a": P1, "b": P2}),
        ("key/a/b/", "a:1,b:2", {"a": P1, "b": P2}),
        ("key/a/b", "a%3A1%2Cb%3A2", {"a": P1, "b": P2}),
        ("key/a/b", "-,b:2", {"a": None, "b": P2}),
        ("key/a/b", "a:1,b", {"a": P1, "b": None}),
        ("key/a/b", "a:1,b%00:2", {"a": P1, "b": None}),
        ("key/a/b", "a:1", {"a": None, "b": None}),
        ("key/a/a/b", "a:1,a:9,b:2", {"a": P1, "b": P2}),
        ("key/a/a/b", "a:1,b:2", {"a": None, "b": None}),
    ],
)
def test_positions_have_the_order_of_the_channels_in_the_path(path, since, positions):
    assert {one.channel: one.since for one in subscriptions(path, f"since={since}")} == positions


def test_a_channel_that_is_not_permitted_takes_its_position_with_it():
    assert subscriptions("key/private-x/a/private-y/b", "since=x:7,a:1,-,b:2", ["a", "b"]) == [
        Subscribe("a", since=P1),
        Subscribe("b", since=P2),
    ]


@pytest.mark.parametrize(
    ("text", "number", "seconds"),
    [("1", 1, 0), ("100", 100, 0), ("30s", 0, 30), ("1s", 0, 1), (f"{MAX_REWIND_SECONDS}s", 0, MAX_REWIND_SECONDS)],
)
def test_a_rewind_is_a_number_of_messages_or_an_age(text, number, seconds):
    assert subscriptions("key/c", f"rewind={text}") == [Subscribe("c", rewind=number, rewind_seconds=seconds)]


REWINDS = (
    "0",
    "101",
    "-1",
    "+5",
    "01",
    "1.5",
    "s",
    "0s",
    "30 s",
    "30m",
    f"{MAX_REWIND_SECONDS + 1}s",
    "9" * 30,
    "%00",
    "x",
    "\u0661",
)


@pytest.mark.parametrize("text", REWINDS)
def test_other_rewinds_are_refused(text):
    with pytest.raises(Refused, match="rewind is a number") as refused:
        subscriptions("key/c", f"rewind={text}")
    assert refused.value.code == 400


@pytest.mark.parametrize("text", ["0", "true", "11"])
def test_positions_is_1(text):
    with pytest.raises(Refused, match="positions is 1"):
        subscriptions("key/c", f"positions={text}")
