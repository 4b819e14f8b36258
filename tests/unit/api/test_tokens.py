"""Session and access tokens (Push1st API, sections 1 and 2)."""

import jwt
import pytest

from push1st import auth
from tests.support.loop import WALL
from tests.support.node import APP, SECRET, app_config

KEY = SECRET.encode().ljust(32, b"\0")


def test_the_documented_call_gives_the_documented_token(caller):
    assert caller.post("token/session/", {"session": "1234", "channel": "private-user.1", "data": ""}) == (
        200,
        "661daaab5d7269a3b7ebfe9154a5ade9bcab833a53fce3dba34ca2a41eab2a7d",
    )


@pytest.mark.parametrize(
    "body", [{"session": "1234", "channel": "private-user.1"}, {"session": "1234", "channel": "private-user.1", "data": None}]
)
def test_data_may_be_missing(caller, body):
    assert caller.post("token/session", body)[1] == auth.channel_signature(SECRET, "1234", "private-user.1")


def test_data_is_part_of_the_signed_text(caller):
    data = '{"user_id":"1"}'
    answer = caller.post("token/session", {"session": "1.2", "channel": "presence-c", "data": data})
    assert answer == (200, auth.channel_signature(SECRET, "1.2", "presence-c", data))


@pytest.mark.parametrize(
    "body",
    [
        {"channel": "private-c"},
        {"session": "1.2"},
        {"session": 1.2, "channel": "private-c"},
        {"session": "1.2", "channel": 1},
        {"session": "1.2", "channel": "private-c", "data": {"user_id": "1"}},
        {"session": "", "channel": "private-c"},
        {"session": "1:2", "channel": "private-c"},
        {"session": "1.2\n", "channel": "private-c"},
        {"session": "x" * 129, "channel": "private-c"},
        {"session": "1.2", "channel": ""},
        {"session": "1.2", "channel": ':user::{"id":"admin"}'},
        {"session": "1.2", "channel": "presence-r:{}"},
        {"session": "1.2", "channel": "private-a\nb"},
        {"session": "1.2", "channel": "#server-to-user-1"},
        {"session": "1.2", "channel": "c" * 165},
        {"session": "POST", "channel": "/apps/app-test/events"},
        [],
        b"",
        b"{",
    ],
)
def test_session_token_call_is_no_signing_oracle(caller, body):
    status, answer = caller.post("token/session", body)
    assert status == 400
    assert answer["error"]


def test_access_token_has_the_requested_claims(caller):
    status, token = caller.post("token/access/", {"origin": "*", "channel": "*", "ttl": 0})
    assert status == 200
    assert jwt.decode(token, KEY, algorithms=["HS256"]) == {"app": APP, "origin": "*", "channel": "*"}
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_an_access_token_may_end(caller):
    _, token = caller.post("token/access", {"channel": "c", "ttl": 60})
    assert auth.check_access_token((SECRET,), APP, token, WALL + 1059).exp == WALL + 1060


def test_an_access_token_may_name_several_channels(caller):
    _, token = caller.post("token/access", {"channel": ["a", "private-*"], "origin": "http://a"})
    claims = auth.check_access_token((SECRET,), APP, token, WALL)
    assert (claims.channels, claims.origin) == (("a", "private-*"), "http://a")


def test_access_token_may_name_a_user(caller):
    _, token = caller.post("token/access", {"channel": "c", "user": "kitchen"})
    assert auth.check_access_token((SECRET,), APP, token, WALL).sub == "kitchen"
    _, token = caller.post("token/access", {"channel": "c", "user": None})
    assert auth.check_access_token((SECRET,), APP, token, WALL).sub is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"channel": 1},
        {"channel": ["a", 1]},
        {"channel": None},
        {"channel": "*", "ttl": -1},
        {"channel": "*", "ttl": 1.5},
        {"channel": "*", "ttl": "60"},
        {"channel": "*", "ttl": 10**12},
        {"channel": "*", "ttl": 10**30},
        {"channel": "*", "origin": ""},
        {"channel": "*", "origin": None},
        {"channel": "*", "user": ""},
        {"channel": "*", "user": 7},
        {"channel": "*", "user": "a\n"},
        {"channel": "*", "user": "u" * 129},
        [],
        b"x",
    ],
)
def test_invalid_access_token_request_is_400(caller, body):
    status, answer = caller.post("token/access", body)
    assert status == 400
    assert answer["error"]


@pytest.mark.parametrize("path", ["token/session", "token/access"])
def test_an_app_without_a_secret_has_no_tokens(calling, path):
    caller = calling(app_config(secret=""))
    assert caller.post(path, {"session": "1.2", "channel": "private-c"})[0] == 403
