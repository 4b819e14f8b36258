"""Mistakes of well-known servers in the Pusher protocol (section 11): one test for each mistake, named after it.

tests/unit/test_auth.py has the test of the constant-time comparison of signatures.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.process import ServerProcess
from tests.support.pusher_socket import PusherSocket, dialled, pusher_socket, sign_in
from tests.support.wire import CLOSE, TEXT, Wire, frame


def test_client_events_are_refused_on_public_channels(connect: Callable[..., PusherSocket], channel: str) -> None:
    sender, other = connect(), connect()
    for client in (sender, other):
        client.subscribe(channel)
    sender.send("client-e", {}, channel)
    sender.expect_error()
    assert other.round_trip() == []


@pytest.mark.parametrize("age", [-3600, -660, 660, 3600])
@pytest.mark.parametrize("port", ["ws_port", "api_port"])
def test_auth_timestamp_is_checked(server: ServerProcess, channel: str, port: str, age: int) -> None:
    body = {"name": "e", "channels": [channel], "data": "1"}
    answer = server.signed("POST", "/apps/app-test/events", body, at=time.time() - age, port=getattr(server, port))
    assert answer.status == 401
    assert answer.json["error"]


@pytest.mark.parametrize("age", [-540, 540])
def test_auth_timestamp_may_be_off_by_less_than_ten_minutes(server: ServerProcess, channel: str, age: int) -> None:
    body = {"name": "e", "channels": [channel], "data": "1"}
    assert server.signed("POST", "/apps/app-test/events", body, at=time.time() - age).status == 200


def test_over_quota_is_closed_with_4004(server: ServerProcess) -> None:
    with pusher_socket(server, "quota-key"), dialled(server, "/app/quota-key") as second:
        assert second.close_code() == 4004


@pytest.mark.parametrize("prefix", ["", "private-", "presence-", "private-encrypted-"])
def test_data_is_present_in_subscription_succeeded(connect: Callable[..., PusherSocket], channel: str, prefix: str) -> None:
    client = connect()
    client.request_subscription(prefix + channel, {"user_id": "u1"} if prefix == "presence-" else None)
    frame = client.receive()
    assert frame["event"] == "pusher_internal:subscription_succeeded"
    assert isinstance(frame["data"], str)
    assert isinstance(json.loads(frame["data"]), dict)


def test_data_is_present_in_every_frame(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    presence = f"presence-{channel}"
    client.subscribe(presence, {"user_id": "u1"})
    other = connect()
    other.subscribe(presence, {"user_id": "u2"})
    other.connection.send(json.dumps({"event": "client-without-data", "channel": presence}))
    other.close()
    assert [client.receive()["event"] for _ in range(3)] == [
        "pusher_internal:member_added",
        "client-without-data",
        "pusher_internal:member_removed",
    ]
    assert all("data" in frame for frame in client.frames)


def test_data_is_present_in_cache_miss(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.subscribe(f"cache-{channel}")
    assert client.receive() == {"event": "pusher:cache_miss", "channel": f"cache-{channel}", "data": "{}"}


def test_activity_timeout_is_a_number(server: ServerProcess) -> None:
    with dialled(server) as socket:
        timeout = json.loads(socket.receive()["data"])["activity_timeout"]
    assert type(timeout) is int
    assert timeout > 0


def test_a_signed_trigger_answers_exactly_an_empty_object(server: ServerProcess, channel: str) -> None:
    answer = server.signed("POST", "/apps/app-test/events", {"name": "e", "channels": [channel], "data": "1"})
    assert (answer.status, answer.body) == (200, b"{}")


def test_info_is_honoured(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    presence = f"presence-{channel}"
    for _ in range(2):
        client = connect("counting-key")
        client.subscribe(presence, {"user_id": "u1"})
        client.subscribe(channel)
    body = {"name": "e", "channels": [presence, channel], "data": "1", "info": "user_count,subscription_count"}
    answer = server.signed("POST", "/apps/app-counting/events", body, key="counting-key")
    assert answer.status == 200
    assert answer.json == {"channels": {presence: {"user_count": 1, "subscription_count": 2}, channel: {"subscription_count": 2}}}


def test_info_of_a_channel_is_honoured(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    connect("counting-key").subscribe(channel)
    answer = server.signed(
        "GET", f"/apps/app-counting/channels/{channel}", query={"info": "subscription_count"}, key="counting-key"
    )
    assert answer.json == {"occupied": True, "subscription_count": 1}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("channels", {"info": "user_count"}),
        ("channels", {"info": "user_count", "filter_by_prefix": "private-"}),
        ("channels", {"info": "age"}),
        ("channels/c", {"info": "user_count"}),
        ("channels/c", {"info": "cache"}),
    ],
)
def test_info_that_does_not_apply_is_400(server: ServerProcess, path: str, query: dict[str, str]) -> None:
    assert server.signed("GET", f"/apps/app-counting/{path}", query=query, key="counting-key").status == 400


def test_terminate_ends_signed_in_connections_and_not_members_with_that_id(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    member, user = connect(), connect()
    member.subscribe(f"presence-{channel}", {"user_id": channel})
    sign_in(user, channel)
    assert server.signed("POST", f"/apps/app-test/users/{channel}/terminate_connections").body == b"{}"
    assert user.close_code() == 4009
    assert member.round_trip() == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "e"},
        {"name": 7, "channels": ["c"], "data": "1"},
        {"name": "e", "channels": {"c": 1}, "data": "1"},
        {"name": "e", "channels": ["c"], "data": "1", "info": 7},
        {"name": "pusher:e", "channels": ["c"], "data": "1"},
        {"name": "e", "channels": ["c d"], "data": "1"},
    ],
    ids=str,
)
def test_invalid_requests_are_400_and_never_422(server: ServerProcess, body: Any) -> None:
    answer = server.signed("POST", "/apps/app-test/events", body)
    assert answer.status == 400
    assert answer.json["error"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/app/nobodys-key?protocol=7", 4001),
        ("/app/off-key?protocol=7", 4003),
        ("/app/app-key?protocol=1", 4007),
    ],
)
def test_an_error_frame_is_followed_by_a_close_with_its_code_and_not_by_a_plain_close(
    server: ServerProcess, path: str, code: int
) -> None:
    with Wire(server.ws_port).upgrade(path) as wire:
        opcode, payload = wire.receive()
        assert (opcode, json.loads(payload)["data"]["code"]) == (TEXT, code)
        opcode, payload = wire.receive()
        assert opcode == CLOSE, payload
        assert int.from_bytes(payload[:2]) == code
        assert payload[2:].decode(), "a reason for the person who looks"
        wire.send(frame(CLOSE, payload))
        assert wire.is_closed()


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "a\n", "ünïcödé", "#a", "c" * 165, "private-a b", "\x00"])
def test_channel_names_of_subscriptions_are_validated(connect: Callable[..., PusherSocket], name: str) -> None:
    client = connect()
    client.request_subscription(name)
    client.expect_refusal()
    assert client.round_trip() == []


@pytest.mark.parametrize("name", [None, 7, [], {}, True], ids=repr)
def test_a_channel_name_that_is_no_text_is_refused(connect: Callable[..., PusherSocket], name: Any) -> None:
    client = connect()
    client.send("pusher:subscribe", {"channel": name})
    client.expect_error()
    assert client.round_trip() == []


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "a\n", "ünïcödé", "c" * 165])
def test_channel_names_of_signed_publishes_are_validated(server: ServerProcess, name: str) -> None:
    assert server.signed("POST", "/apps/app-test/events", {"name": "e", "channels": [name], "data": "1"}).status == 400


@pytest.mark.parametrize("prefix", ["cache", "private", "presence", "protected", "PRIVATE-", "x-private-"])
def test_a_bare_prefix_does_not_make_a_kind(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, prefix: str
) -> None:
    """`cachefoo` is no cache channel: it needs no signature, and sends neither a cached event nor `cache_miss`."""
    name = prefix + channel
    server.publish(name, "earlier", 1)
    client = connect()
    assert client.subscribe(name) == {}
    assert client.round_trip() == []
    assert server.get(f"/apps/app-test/channels/{name}").json["type"] == "public"


def test_member_added_and_removed_are_sent_once_per_user_and_not_per_socket(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    presence = f"presence-{channel}"
    watcher, one, other = connect(), connect(), connect()
    watcher.subscribe(presence, {"user_id": "w"})
    one.subscribe(presence, {"user_id": "u"})
    assert other.subscribe(presence, {"user_id": "u"})["presence"]["count"] == 2
    assert one.round_trip() == []
    one.close()
    server.until_sessions(presence, 2)
    other.close()
    server.until_sessions(presence, 1)
    assert [frame["event"] for frame in watcher.round_trip()] == [
        "pusher_internal:member_added",
        "pusher_internal:member_removed",
    ]
