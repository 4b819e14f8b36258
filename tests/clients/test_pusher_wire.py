"""The Pusher protocol, frame by frame (sections 1 to 8), with fields that the libraries need but do not show."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.process import ServerProcess, wait_until
from tests.support.pusher_socket import PusherSocket, dialled
from tests.support.signing import channel_auth

# -- 1 connect


@pytest.mark.parametrize("path", ["/app/app-key", "/pusher/app/app-key"])
def test_the_greeting_is_double_encoded(server: ServerProcess, path: str) -> None:
    with dialled(server, path) as socket:
        frame = socket.receive()
    assert set(frame) == {"event", "data"}
    data = json.loads(frame["data"])
    assert set(data) == {"socket_id", "activity_timeout"}
    assert re.fullmatch(r"\d+\.\d+", data["socket_id"])
    assert data["activity_timeout"] == 20


@pytest.mark.parametrize("protocol", [4, 5, 6, 7])
def test_older_protocols_are_accepted(server: ServerProcess, protocol: int) -> None:
    with dialled(server, query=f"protocol={protocol}&client=js&version=1") as socket:
        socket.established()


def test_any_client_version_is_accepted(server: ServerProcess) -> None:
    with dialled(server, query="protocol=7&client=%00&version=%F0%9F%A6%80") as socket:
        socket.established()


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/app/nobodys-key", "protocol=7", 4001),
        ("/app/off-key", "protocol=7", 4003),
        ("/app/app-key/more", "protocol=7", 4005),
        ("/app/app-key", "protocol=seven", 4006),
        ("/app/app-key", "protocol=3", 4007),
        ("/app/app-key", "protocol=8", 4007),
    ],
)
def test_a_rejected_handshake_is_upgraded_and_answered_with_an_error_frame_before_the_close(
    server: ServerProcess, path: str, query: str, code: int
) -> None:
    with dialled(server, path, query) as socket:
        error = socket.expect_error()
        assert error["code"] == code
        assert socket.close_code() == code
        assert socket.connection.close_reason == error["message"]
        assert len(socket.frames) == 1


@pytest.mark.parametrize("query", ["client=js&version=8.6.0", "", "protocol=", "protocol=&client=js"])
def test_a_client_that_names_no_protocol_version_is_served(server: ServerProcess, query: str) -> None:
    with dialled(server, query=query) as socket:
        socket.established()


def test_a_wrong_origin_is_upgraded_and_closed_with_4009(server: ServerProcess) -> None:
    with dialled(server, "/app/origins-key", origin="https://bad.example") as socket:
        assert socket.expect_error()["code"] == 4009
        assert socket.close_code() == 4009


def test_the_right_origin_is_served(server: ServerProcess) -> None:
    with dialled(server, "/app/origins-key", origin="https://good.example") as socket:
        socket.established()


# -- 2 and 3 frames


def test_data_of_a_client_may_be_a_string(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.send("pusher:subscribe", json.dumps({"channel": channel}))
    client.expect("pusher_internal:subscription_succeeded", channel)


@pytest.mark.parametrize("data", [{}, "", "{}", None], ids=repr)
def test_ping_with_any_data_is_answered(connect: Callable[..., PusherSocket], data: Any) -> None:
    client = connect()
    client.connection.send(json.dumps({"event": "pusher:ping", "data": data}))
    assert client.expect("pusher:pong") == {}


def test_a_ping_without_data_is_answered(connect: Callable[..., PusherSocket]) -> None:
    client = connect()
    client.connection.send('{"event":"pusher:ping"}')
    assert client.expect("pusher:pong") == {}


def test_a_websocket_ping_is_answered(connect: Callable[..., PusherSocket]) -> None:
    assert connect().connection.ping("are you there?").wait(10)


def test_presence_data_is_ids_hash_and_count(connect: Callable[..., PusherSocket], channel: str) -> None:
    presence = f"presence-{channel}"
    connect().subscribe(presence, {"user_id": "u1", "user_info": {"name": "A"}})
    data = connect().subscribe(presence, {"user_id": "u2"})
    assert set(data) == {"presence"}
    assert sorted(data["presence"].pop("ids")) == ["u1", "u2"]
    assert data["presence"] == {"hash": {"u1": {"name": "A"}, "u2": None}, "count": 2}


def test_a_numeric_user_id_becomes_a_string(connect: Callable[..., PusherSocket], channel: str) -> None:
    presence = f"presence-{channel}"
    first, second = connect(), connect()
    assert first.subscribe(presence, {"user_id": 7})["presence"]["ids"] == ["7"]
    assert second.subscribe(presence, {"user_id": "7"})["presence"]["count"] == 1
    third = connect()
    third.subscribe(presence, {"user_id": 8})
    assert first.expect("pusher_internal:member_added", presence)["user_id"] == "8"
    third.close()
    assert first.expect("pusher_internal:member_removed", presence) == {"user_id": "8"}


def test_member_is_not_notified_of_itself(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.subscribe(f"presence-{channel}", {"user_id": "u1"})
    assert client.round_trip() == []


def test_broken_connection_removes_its_member(connect: Callable[..., PusherSocket], channel: str) -> None:
    presence = f"presence-{channel}"
    stays, breaks = connect(), connect()
    stays.subscribe(presence, {"user_id": "u1"})
    breaks.subscribe(presence, {"user_id": "u2"})
    stays.expect("pusher_internal:member_added", presence)
    breaks.connection.socket.close()
    assert stays.expect("pusher_internal:member_removed", presence) == {"user_id": "u2"}


@pytest.mark.parametrize("form", ["token", "key and token"])
def test_auth_is_the_token_alone_or_after_the_key(connect: Callable[..., PusherSocket], channel: str, form: str) -> None:
    client = connect()
    auth = channel_auth(client.socket_id, f"private-{channel}")
    client.send("pusher:subscribe", {"channel": f"private-{channel}", "auth": auth if form != "token" else auth[8:]})
    client.expect("pusher_internal:subscription_succeeded", f"private-{channel}")


@pytest.mark.parametrize(
    "auth",
    [
        None,
        "",
        ":",
        "app-key:",
        "app-key:" + "0" * 64,
        "app-key:" + "é" * 64,
        "other-key:TOKEN",
        "app-key:TOKEN\n",
        "APP-KEY:TOKEN",
        7,
        ["app-key:TOKEN"],
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["private", "presence", "protected", "private-encrypted"])
def test_a_wrong_auth_opens_no(connect: Callable[..., PusherSocket], channel: str, kind: str, auth: Any) -> None:
    name = f"{kind}-{channel}"
    client = connect()
    user = '{"user_id":"u1"}' if kind == "presence" else ""
    good = channel_auth(client.socket_id, name, user).partition(":")[2]
    data: dict[str, Any] = {"channel": name, "channel_data": user}
    if auth is not None:
        data["auth"] = json.loads(json.dumps(auth).replace("TOKEN", good))
    client.send("pusher:subscribe", data)
    client.expect_refusal()
    assert client.round_trip() == []


def test_a_wrong_signature_is_a_subscription_error(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.request_subscription(f"private-{channel}", secret="wrong")
    error = client.expect_refusal(f"private-{channel}")
    assert (error["type"], error["status"]) == ("AuthError", 401)
    assert error["error"].startswith("Invalid signature: ")


def test_signature_of_another_socket_is_rejected(connect: Callable[..., PusherSocket], channel: str) -> None:
    client, other = connect(), connect()
    auth = channel_auth(other.socket_id, f"private-{channel}")
    client.send("pusher:subscribe", {"channel": f"private-{channel}", "auth": auth})
    client.expect_refusal(f"private-{channel}")


def test_channel_data_that_was_not_signed_is_refused(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    presence = f"presence-{channel}"
    auth = channel_auth(client.socket_id, presence, '{"user_id":"u1"}')
    client.send("pusher:subscribe", {"channel": presence, "auth": auth, "channel_data": '{"user_id":"admin"}'})
    client.expect_refusal(presence)


@pytest.mark.parametrize(
    "channel_data", ["", "not json", "[]", "7", "{}", '{"user_id":null}', '{"user_id":""}', '{"user_id":{}}']
)
def test_presence_needs_a_user_id(connect: Callable[..., PusherSocket], channel: str, channel_data: str) -> None:
    client = connect()
    presence = f"presence-{channel}"
    auth = channel_auth(client.socket_id, presence, channel_data)
    client.send("pusher:subscribe", {"channel": presence, "auth": auth, "channel_data": channel_data})
    client.expect_refusal()
    assert client.round_trip() == []


def test_server_to_user_channels_of_other_users_are_rejected(connect: Callable[..., PusherSocket]) -> None:
    client = connect()
    name = "#server-to-user-admin"
    client.send("pusher:subscribe", {"channel": name, "auth": channel_auth(client.socket_id, name)})
    client.expect_refusal()
    assert client.round_trip() == []


def test_a_second_subscription_to_a_channel_delivers_once(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    client = connect()
    client.subscribe(channel)
    assert client.subscribe(channel) == {}, "it succeeds again: a client that waits for that goes on"
    assert server.publish(channel, "e", 1).json["channels"] == {channel: 1}
    client.expect("e", channel)
    assert client.round_trip() == []


def test_unsubscribing_without_a_subscription_is_ignored(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.send("pusher:unsubscribe", {"channel": channel})
    client.round_trip()
    client.subscribe(channel)


def test_a_type_that_the_app_does_not_have_is_refused(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect("private-key")
    client.send("pusher:subscribe", {"channel": channel})
    client.expect_refusal()
    client.subscribe(f"private-{channel}")


def test_a_protected_channel_is_authorised_like_a_private_one(connect: Callable[..., PusherSocket], channel: str) -> None:
    connect().subscribe(f"protected-{channel}")


def test_subscription_count_is_sent_on_each_change(connect: Callable[..., PusherSocket], channel: str) -> None:
    first, second = connect("counting-key"), connect("counting-key")
    first.subscribe(channel)
    assert first.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 1}
    second.subscribe(channel)
    assert first.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 2}
    second.close()
    assert first.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 1}


# -- 4 client events


def pair(connect: Callable[..., PusherSocket], name: str, key: str = "app-key") -> tuple[PusherSocket, PusherSocket]:
    """Makes two subscribers of one channel; on a presence channel both are the same user."""
    both = connect(key), connect(key)
    for client in both:
        client.subscribe(name, {"user_id": "u1"} if name.startswith("presence-") else None)
    return both


@pytest.mark.parametrize("data", [{"a": 1}, '{"a":1}', "words", 7, None], ids=repr)
def test_a_client_event_carries_its_data_as_a_string(connect: Callable[..., PusherSocket], channel: str, data: Any) -> None:
    sender, other = pair(connect, f"private-{channel}")
    sender.connection.send(json.dumps({"event": "client-e", "channel": f"private-{channel}", "data": data}))
    frame = other.receive()
    assert isinstance(frame["data"], str)
    assert frame["data"] == data or json.loads(frame["data"]) == data


def test_a_sender_cannot_claim_a_user_id(connect: Callable[..., PusherSocket], channel: str) -> None:
    sender, other = pair(connect, f"presence-{channel}")
    sender.send("client-e", {}, f"presence-{channel}", user_id="admin")
    assert other.receive()["user_id"] == "u1"


def test_a_sender_on_a_private_channel_has_no_user_id(connect: Callable[..., PusherSocket], channel: str) -> None:
    sender, other = pair(connect, f"private-{channel}")
    sender.send("client-e", {}, f"private-{channel}", user_id="admin")
    assert "user_id" not in other.receive()


def test_client_event_of_an_unsubscribed_client_is_rejected(connect: Callable[..., PusherSocket], channel: str) -> None:
    _, other = pair(connect, f"private-{channel}")
    stranger = connect()
    stranger.send("client-e", {}, f"private-{channel}")
    stranger.expect_error()
    assert other.round_trip() == []


def test_client_events_are_rejected_if_the_app_disables_them(connect: Callable[..., PusherSocket], channel: str) -> None:
    sender, other = pair(connect, f"private-{channel}", "quiet-key")
    sender.send("client-e", {}, f"private-{channel}")
    assert sender.expect_error()["code"] == 4300
    assert sender.frames[-1]["channel"] == f"private-{channel}"
    assert other.round_trip() == []


@pytest.mark.parametrize(
    "event", ["typing", "client", "client_typing", "Client-typing", "pusher:typing", "pusher_internal:member_added"]
)
def test_a_client_may_not_send_an_event_called(connect: Callable[..., PusherSocket], channel: str, event: str) -> None:
    sender, other = pair(connect, f"private-{channel}")
    sender.send(event, {}, f"private-{channel}")
    assert sender.expect_error()["code"] == 4300
    assert sender.frames[-1]["channel"] == f"private-{channel}"
    assert other.round_trip() == []


def test_ten_client_events_a_second_are_delivered_and_the_others_rejected(
    connect: Callable[..., PusherSocket], channel: str
) -> None:
    sender, other = pair(connect, f"private-{channel}")
    for number in range(30):
        sender.send("client-e", number, f"private-{channel}")
    errors = sender.round_trip()
    assert {error["data"]["code"] for error in errors} == {4301}
    delivered = [json.loads(frame["data"]) for frame in other.round_trip()]
    assert delivered[:10] == list(range(10))
    assert len(delivered) + len(errors) == 30
    assert 10 <= len(delivered) < 20


def test_an_app_s_own_rate_of_client_events_binds(connect: Callable[..., PusherSocket], channel: str) -> None:
    name = f"private-{channel[:8]}"
    sender, other = pair(connect, name, "small-key")
    for number in range(10):
        sender.send("client-e", number, name)
    errors = sender.round_trip()
    assert {error["data"]["code"] for error in errors} == {4301}
    assert 2 <= len(other.round_trip()) < 6


# -- 8 limits


def test_the_largest_channel_name_is_accepted(connect: Callable[..., PusherSocket]) -> None:
    connect().subscribe("c" * 164)


def test_subscriptions_are_limited_by_the_app(connect: Callable[..., PusherSocket]) -> None:
    client = connect("small-key")
    for number in range(3):
        client.subscribe(f"c{number}")
    client.send("pusher:subscribe", {"channel": "c4"})
    client.expect_refusal()
    client.send("pusher:unsubscribe", {"channel": "c1"})
    client.subscribe("c4")


def test_members_are_limited_by_the_app(connect: Callable[..., PusherSocket], channel: str) -> None:
    presence = f"presence-{channel[:8]}"
    for number in (1, 2, 2):
        connect("small-key").subscribe(presence, {"user_id": f"u{number}"})
    late = connect("small-key")
    late.request_subscription(presence, {"user_id": "u3"})
    late.expect_refusal()


@pytest.mark.parametrize(
    "user",
    [{"user_id": "u" * 129}, {"user_id": "a\nb"}, {"user_id": "u", "user_info": {"text": "x" * 1100}}],
    ids=["too long", "with a control character", "with too much info"],
)
def test_a_user_that_breaks_the_limits_is_refused(
    connect: Callable[..., PusherSocket], channel: str, user: dict[str, Any]
) -> None:
    client = connect()
    client.request_subscription(f"presence-{channel}", user)
    client.expect_refusal()


def test_a_client_event_over_the_payload_limit_is_refused(connect: Callable[..., PusherSocket], channel: str) -> None:
    sender, other = pair(connect, f"private-{channel}")
    sender.send("client-e", "x" * 10_241, f"private-{channel}")
    sender.expect_error()
    assert other.round_trip() == []


def test_a_client_event_with_too_long_a_name_is_refused(connect: Callable[..., PusherSocket], channel: str) -> None:
    sender, other = pair(connect, f"private-{channel}")
    sender.send("client-" + "e" * 200, {}, f"private-{channel}")
    sender.expect_error()
    assert other.round_trip() == []


def test_quota_of_one_is_freed_when_the_connection_ends(server: ServerProcess) -> None:
    def admitted() -> bool:
        with dialled(server, "/app/quota-key") as socket:
            try:
                socket.established()
            except ConnectionClosed:
                return False
            return True

    assert wait_until(admitted, "a client is accepted")
    assert wait_until(admitted, "its place is free again")
