"""Signed-in users and members: `…/users/{id}/terminate_connections` and `…/channels/{channel}/users`."""

import json

import pytest

from push1st import auth
from push1st.messages import SignIn, Subscribe
from tests.support.node import KEY, SECRET, token


def signed_in(caller, user_id: str):
    session, outlet = caller.world.session()
    data = json.dumps({"id": user_id})
    session.handle(SignIn(f"{KEY}:{auth.user_signature(SECRET, session.id, data)}", data))
    return session, outlet


def member(caller, user_id: str, name: str = "presence-c"):
    session, outlet = caller.world.session()
    data = json.dumps({"user_id": user_id})
    session.handle(Subscribe(name, token(session, name, data), data))
    return session, outlet


@pytest.mark.parametrize("body", ["", "{}", " {} "])
@pytest.mark.parametrize("key", [True, False])
def test_terminating_closes_the_users_connections(caller, body, key):
    (_, outlet), (_, other) = signed_in(caller, "u1"), signed_in(caller, "u2")
    assert caller.post("users/u1/terminate_connections", body, key) == (200, {})
    assert [code for code, _ in outlet.closes] == [4009]
    assert other.closes == []


def test_a_member_of_that_id_is_no_signed_in_user(caller):
    _, outlet = member(caller, "u1")
    assert caller.post("users/u1/terminate_connections", "") == (200, {})
    assert outlet.closes == []


def test_terminating_an_unknown_user_succeeds(caller):
    assert caller.post("users/nobody/terminate_connections", "") == (200, {})


@pytest.mark.parametrize("body", ["[]", "x", '{"a":1}'])
def test_terminating_takes_no_body(caller, body):
    assert caller.post("users/u1/terminate_connections", body)[0] == 400


def test_a_users_id_is_unescaped(caller):
    _, outlet = signed_in(caller, "a/b ж")
    assert caller.post("users/a%2Fb%20%D0%B6/terminate_connections", "") == (200, {})
    assert outlet.closes


def test_members_are_listed_once_each(caller):
    for user_id in ("u1", "u2", "u1"):
        member(caller, user_id)
    assert caller.get("channels/presence-c/users", key=True) == (200, {"users": [{"id": "u1"}, {"id": "u2"}]})


def test_channel_without_subscribers_has_no_users(caller):
    assert caller.get("channels/presence-c/users") == (200, {"users": []})


@pytest.mark.parametrize("name", ["c", "private-c", "presencec"])
def test_other_channels_have_no_users(caller, name):
    assert caller.get(f"channels/{name}/users")[0] == 400


def test_channels_of_single_users_are_not_listed(caller):
    session, _ = signed_in(caller, "u1")
    session.handle(Subscribe("#server-to-user-u1"))
    assert "#server-to-user-u1" in session.subscriptions
    assert caller.get("channels") == (200, [])
    assert caller.get("channels", key=True) == (200, {"channels": {}})
    assert caller.event(True, channels=["#server-to-user-u1"]) == (200, {})
