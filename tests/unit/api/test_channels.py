"""`GET /channels` and `/channels/{channel}`: Push1st's answers and Pusher's (Push1st API, section 4)."""

import pytest

from push1st.messages import Subscribe
from tests.support.node import app_config, token


def on(caller, *names, user: str = ""):
    """Subscribes a client to these channels."""
    session, _ = caller.world.session()
    for name in names:
        data = f'{{"user_id":"{user}"}}' if user and name.startswith("presence-") else ""
        session.handle(Subscribe(name, token(session, name, data), data))
    assert set(names) <= set(session.subscriptions)
    return session


@pytest.fixture
def busy(caller):
    """Channel a has two subscribers, presence-p two users on three connections, private-x one subscriber."""
    on(caller, "a", "presence-p", user="u1")
    on(caller, "a", "presence-p", user="u1")
    on(caller, "private-x", "presence-p", user="u2")
    return caller


# Push1st's


def test_no_channels_are_an_empty_list(caller):
    assert caller.get("channels") == (200, [])


def test_channels_are_listed_with_type_and_count(busy):
    assert busy.get("channels") == (
        200,
        [
            {"channel": "a", "type": "public", "close": "auto", "sess_count": 2},
            {"channel": "presence-p", "type": "presence", "close": "auto", "sess_count": 3},
            {"channel": "private-x", "type": "private", "close": "auto", "sess_count": 1},
        ],
    )


def test_a_channel_is_shown_with_its_sessions(caller):
    one, two = on(caller, "protected-c"), on(caller, "protected-c")
    assert caller.get("channels/protected-c") == (
        200,
        {
            "channel": "protected-c",
            "type": "protected",
            "close": "auto",
            "sessions": [{"id": one.id, "ip": "192.0.2.1"}, {"id": two.id, "ip": "192.0.2.1"}],
        },
    )


def test_a_channel_without_subscribers_is_404(caller):
    one = on(caller, "c")
    one.expire()
    assert caller.get("channels/c")[0] == 404
    assert caller.get("channels/never")[0] == 404


def test_other_names_are_unescaped(caller):
    session, _ = caller.world.session(push=frozenset())
    session.handle(Subscribe("a/b ж"))
    assert caller.get("channels/a%2Fb%20%D0%B6")[1]["channel"] == "a/b ж"


@pytest.mark.parametrize("name", ["a%0Ab", "x" * 256])
def test_a_name_that_cannot_be_is_400(caller, name):
    assert caller.get(f"channels/{name}")[0] == 400


# Pusher's


@pytest.mark.parametrize(("query", "key"), [("", True), ("info=", False), ("filter_by_prefix=", False)])
def test_no_channels_are_an_empty_map(caller, query, key):
    if query == "info=":
        query = "info=subscription_count"
    assert caller.get("channels", query, key) == (200, {"channels": {}})


def test_channels_are_a_map_by_name(busy):
    assert busy.get("channels", key=True) == (200, {"channels": {"a": {}, "presence-p": {}, "private-x": {}}})


def test_channels_are_filtered_by_prefix(busy):
    for key in (True, False):
        assert busy.get("channels", "filter_by_prefix=presence-", key) == (200, {"channels": {"presence-p": {}}})
        assert busy.get("channels", "filter_by_prefix=none", key) == (200, {"channels": {}})


def test_user_count_is_listed_for_presence_channels(busy):
    query = "filter_by_prefix=presence-&info=user_count"
    assert busy.get("channels", query, True) == (200, {"channels": {"presence-p": {"user_count": 2}}})


def test_user_counts_need_a_presence_prefix(busy):
    for query in ("info=user_count", "info=user_count&filter_by_prefix=private-"):
        assert busy.get("channels", query)[0] == 400


def test_subscriptions_are_counted_on_channels_of_every_kind(busy):
    answer = {"a": {"subscription_count": 2}, "presence-p": {"subscription_count": 3}, "private-x": {"subscription_count": 1}}
    assert busy.get("channels", "info=subscription_count") == (200, {"channels": answer})


@pytest.mark.parametrize("path", ["channels", "channels/c"])
@pytest.mark.parametrize("info", ["x", "user_count,x", "subscription_count;user_count"])
def test_an_unknown_attribute_is_400(caller, path, info):
    assert caller.get(path, f"info={info}")[0] == 400


def test_a_channel_is_occupied_or_not(busy):
    assert busy.get("channels/a", key=True) == (200, {"occupied": True})
    assert busy.get("channels/b", key=True) == (200, {"occupied": False})


def test_channel_returns_the_requested_attributes(busy):
    for key in (True, False):
        assert busy.get("channels/a", "info=subscription_count", key) == (200, {"occupied": True, "subscription_count": 2})
        assert busy.get("channels/presence-p", "info=user_count", key) == (200, {"occupied": True, "user_count": 2})
        both = {"occupied": True, "user_count": 2, "subscription_count": 3}
        for info in ("user_count,subscription_count", "subscription_count,user_count"):
            assert busy.get("channels/presence-p", f"info={info}", key) == (200, both)
        del both["user_count"]
        assert busy.get("channels/presence-p", "info=subscription_count", key) == (200, both)
        assert busy.get("channels/presence-q", "info=user_count", key) == (200, {"occupied": False, "user_count": 0})


def test_attribute_that_the_channel_does_not_have_is_400(busy):
    assert busy.get("channels/a", "info=user_count")[0] == 400


def test_a_signed_call_is_bound_by_pushers_names(caller):
    assert caller.get("channels/a%20b", key=True)[0] == 400


# Limits


@pytest.mark.parametrize("path", ["channels", "channels/c"])
def test_reads_may_be_limited_to_so_many_a_second(calling, path):
    caller = calling(app_config({"reads": 2}))
    on(caller, "c")
    assert [caller.get(path)[0] for _ in range(3)] == [200, 200, 429]
    caller.world.clock.advance(0.5)
    assert caller.get(path)[0] == 200
