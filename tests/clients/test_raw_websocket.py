"""Raw WebSockets (Push1st API, section 7), with the client of `websockets`."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as dial

from tests.support.process import ServerProcess, running
from tests.support.pusher_socket import PusherSocket
from tests.support.raw_socket import RawSocket, raw_socket
from tests.support.wire import HANDSHAKE, Wire


@pytest.fixture
def raw(server: ServerProcess, stack: contextlib.ExitStack) -> Callable[..., RawSocket]:
    """Makes raw connections to the shared server, and waits until they are subscribed."""

    def start(*channels: str, **options: Any) -> RawSocket:
        counts = {channel: server.session_count(channel) for channel in channels}
        socket = stack.enter_context(raw_socket(server, *(quote(channel, safe="") for channel in channels), **options))
        for channel, count in counts.items():
            server.until_sessions(channel, count + 1)
        return socket

    return start


@pytest.fixture
def token(server: ServerProcess) -> Callable[..., str]:
    """Makes access tokens with the API."""

    def ask(channel: str = "*", origin: str = "*", ttl: int = 0) -> str:
        answer = server.post("/apps/app-test/token/access/", {"origin": origin, "channel": channel, "ttl": ttl})
        assert answer.status == 200, answer
        return answer.body.decode()

    return ask


def minted(claims: dict[str, Any], secret: str = "secret", algorithm: str = "HS256") -> str:
    """Makes an access token without the API, as a backend may."""
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning) if algorithm == "HS256" else contextlib.nullcontext():
        return jwt.encode(claims, secret, algorithm)


def close_code(server: ServerProcess, *channels: str, **options: Any) -> int:
    """Returns the close code of a connection with these channels."""
    with raw_socket(server, *channels, **options) as socket:
        return socket.close_code()


def refusal(server: ServerProcess, path: str, **options: Any) -> int:
    """Returns the HTTP status that rejects a handshake."""
    with pytest.raises(InvalidStatus) as refused, dial(server.ws + path, **options):
        pass
    return refused.value.response.status_code


# -- receiving


def test_an_api_publish_arrives_as_one_json_frame(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    socket = raw(channel)
    answer = server.publish(channel, "paid", {"id": 7}).json
    message = socket.receive()
    assert set(message) == {"event", "channel", "data", "#msg-id", "#msg-from", "#msg-time"}
    assert (message["event"], message["channel"], message["data"]) == ("paid", channel, {"id": 7})
    assert message["#msg-id"] == answer["msg-id"]
    assert message["#msg-from"] == "api"
    assert isinstance(message["#msg-time"], int)
    assert 0 <= message["#msg-time"] < 10**10


@pytest.mark.parametrize("data", ["text", 7, 1.5, None, True, [1, {"a": []}], {"nested": {"ü": "\U0001f980"}}, "{}", ""])
def test_any_json_value_arrives_as_it_was_sent(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str, data: Any
) -> None:
    socket = raw(channel)
    server.publish(channel, "value", data)
    received = socket.expect("value", channel)
    assert received == data
    assert type(received) is type(data)


def test_a_connection_is_subscribed_to_all_channels_of_its_path(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str
) -> None:
    names = [f"{channel}-{number}" for number in range(3)]
    socket = raw(*names)
    for name in names:
        server.publish(name, "paid", name)
        assert socket.expect("paid", name) == name


def test_a_channel_named_twice_is_subscribed_to_once(server: ServerProcess, stack: contextlib.ExitStack, channel: str) -> None:
    socket = stack.enter_context(raw_socket(server, channel, channel))
    server.until_sessions(channel, 1)
    assert server.publish(channel, "paid", 1).json["channels"] == {channel: 1}
    socket.expect("paid", channel)
    assert socket.round_trip() == []


def test_a_percent_encoded_segment_is_one_channel(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    name = f"sensors/{channel}/küche #1"
    socket = raw(name)
    server.publish(name, "warm", 21)
    assert socket.expect("warm", name) == 21


def test_messages_of_a_channel_arrive_in_the_order_of_their_ids(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str
) -> None:
    socket = raw(channel)
    ids = [server.publish(channel, "count", number).json["msg-id"] for number in range(50)]
    received = [socket.receive() for _ in range(50)]
    assert [message["data"] for message in received] == list(range(50))
    assert [message["#msg-id"] for message in received] == ids == sorted(ids)


def test_nothing_is_sent_before_something_is_published(raw: Callable[..., RawSocket], channel: str) -> None:
    assert raw(channel).round_trip() == []


# -- authorisation


@pytest.mark.parametrize("kind", ["private", "presence", "protected"])
def test_a_token_in_the_query_opens(
    server: ServerProcess, raw: Callable[..., RawSocket], token: Callable[..., str], channel: str, kind: str
) -> None:
    name = f"{kind}-{channel}"
    socket = raw(name, query=f"token={token()}")
    server.publish(name, "paid", 1)
    assert socket.expect("paid", name) == 1


def test_a_token_in_the_header_opens_a_private_channel(
    server: ServerProcess, raw: Callable[..., RawSocket], token: Callable[..., str], channel: str
) -> None:
    socket = raw(f"private-{channel}", additional_headers={"Authorization": f"Bearer {token()}"})
    server.publish(f"private-{channel}", "paid", 1)
    assert socket.expect("paid", f"private-{channel}") == 1


def test_a_token_that_a_backend_minted_opens_a_private_channel(raw: Callable[..., RawSocket], channel: str) -> None:
    raw(
        f"private-{channel}",
        query="token=" + minted({"app": "app-test", "channel": f"private-{channel}", "exp": time.time() + 60}),
    )


@pytest.mark.parametrize("pattern", ["*", "private-*", "exact", ["private-other", "exact"]], ids=str)
def test_token_covers_the_channels_that_its_pattern_matches(raw: Callable[..., RawSocket], channel: str, pattern: Any) -> None:
    name = f"private-{channel}"
    exact = [name if entry == "exact" else entry for entry in pattern] if isinstance(pattern, list) else pattern
    raw(name, query="token=" + minted({"app": "app-test", "channel": name if exact == "exact" else exact}))


@pytest.mark.parametrize(
    ("claims", "secret"),
    [
        ({"app": "app-test", "channel": "private-other"}, "secret"),
        ({"app": "app-test", "channel": "private"}, "secret"),
        ({"app": "app-test", "channel": []}, "secret"),
        ({"app": "app-test"}, "secret"),
        ({"app": "app-quiet", "channel": "*"}, "secret"),
        ({"channel": "*"}, "secret"),
        ({"app": "app-test", "channel": "*", "exp": 1_000_000_000}, "secret"),
        ({"app": "app-test", "channel": "*", "origin": "https://good.example"}, "secret"),
        ({"app": "app-test", "channel": "*"}, "not the secret"),
    ],
    ids=[
        "for another channel",
        "for a prefix without its star",
        "for no channel",
        "that names no channel",
        "for another app",
        "that names no app",
        "that expired",
        "for an origin, without Origin",
        "of another secret",
    ],
)
def test_a_private_channel_is_closed_to_a_token(server: ServerProcess, channel: str, claims: dict[str, Any], secret: str) -> None:
    assert close_code(server, f"private-{channel}", query="token=" + minted(claims, secret)) == 1008


def test_a_private_channel_is_closed_to_an_unsigned_token(server: ServerProcess, channel: str) -> None:
    forged = minted({"app": "app-test", "channel": "*"}, "", "none")
    assert close_code(server, f"private-{channel}", query=f"token={forged}") == 1008


def test_a_connection_ends_when_its_token_expires(raw: Callable[..., RawSocket], token: Callable[..., str], channel: str) -> None:
    socket = raw(f"private-{channel}", query=f"token={token(ttl=2)}")
    assert socket.expect_error() == {"code": 401, "message": "access token has expired"}
    assert socket.close_code() == 1008


def test_token_that_is_not_valid_yet_is_rejected(server: ServerProcess, channel: str) -> None:
    token = minted({"app": "app-test", "channel": "*", "nbf": time.time() + 60})
    with raw_socket(server, f"private-{channel}", query=f"token={token}") as socket:
        assert socket.close_code() == 1008


def test_a_token_for_an_origin_opens_from_that_origin(
    raw: Callable[..., RawSocket], token: Callable[..., str], channel: str
) -> None:
    raw(f"private-{channel}", query=f"token={token(origin='https://good.example')}", origin="https://good.example")


def test_a_token_for_an_origin_is_worthless_from_another(server: ServerProcess, token: Callable[..., str], channel: str) -> None:
    query = f"token={token(origin='https://good.example')}"
    assert close_code(server, f"private-{channel}", query=query, origin="https://bad.example") == 1008


def test_a_connection_without_an_authorised_channel_is_closed_with_1008(server: ServerProcess, channel: str) -> None:
    assert close_code(server, f"private-{channel}", f"presence-{channel}") == 1008


def test_a_connection_without_any_channel_is_closed_or_refused(server: ServerProcess) -> None:
    """The page documents 1008 if no channel is left, and 404 for an unknown path: both are correct here."""
    with Wire(server.ws_port) as wire:
        wire.send(b"GET /ws/app/app-key HTTP/1.1\r\n" + HANDSHAKE + b"\r\n")
        status, _, _ = wire.response()
        assert status == 404 or (status == 101 and wire.close_code() == 1008)


def test_channels_without_authorisation_are_skipped(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    with raw_socket(server, f"private-{channel}", channel) as socket:
        server.until_sessions(channel, 1)
        assert server.session_count(f"private-{channel}") == 0
        server.publish(f"private-{channel}", "paid", 1)
        server.publish(channel, "paid", 2)
        assert socket.expect("paid", channel) == 2


def test_a_channel_type_that_the_app_does_not_have_is_skipped(server: ServerProcess, channel: str) -> None:
    assert close_code(server, channel, key="private-key") == 1008


# -- before the upgrade


def test_an_unknown_app_is_refused_with_403(server: ServerProcess, channel: str) -> None:
    assert refusal(server, f"/ws/app/nobodys-key/{channel}") == 403


def test_a_disabled_app_is_refused_with_403(server: ServerProcess, channel: str) -> None:
    assert refusal(server, f"/ws/app/off-key/{channel}") == 403


@pytest.mark.parametrize("path", ["/", "/nowhere", "/ws", "/ws/app", "/apps/app-test/channels"])
def test_an_unknown_path_is_refused_with_404(server: ServerProcess, path: str) -> None:
    assert refusal(server, path) == 404


def test_a_wrong_origin_is_refused_with_403(server: ServerProcess, channel: str) -> None:
    assert refusal(server, f"/ws/app/origins-key/{channel}", origin="https://bad.example") == 403


def test_allowed_origin_is_accepted(server: ServerProcess, stack: contextlib.ExitStack, channel: str) -> None:
    stack.enter_context(raw_socket(server, channel, key="origins-key", origin="https://good.example"))
    server.until_sessions(channel, 1, "app-origins")


# -- publishing


@pytest.mark.parametrize("prefix", ["", "private-", "presence-"])
def test_a_publish_reaches_the_others_and_not_its_sender(
    raw: Callable[..., RawSocket], token: Callable[..., str], channel: str, prefix: str
) -> None:
    name = prefix + channel
    sender, other = (raw(name, query=f"token={token()}") for _ in range(2))
    sender.publish(name, "said", {"text": "hello"})
    message = other.receive()
    assert (message["event"], message["channel"], message["data"]) == ("said", name, {"text": "hello"})
    assert re.fullmatch(r"\d+\.\d+", message["#msg-from"])
    assert sender.round_trip() == []


def test_the_id_of_a_publisher_is_in_the_list_of_sessions(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str
) -> None:
    sender, other = raw(channel), raw(channel)
    sender.publish(channel, "said", 1)
    sessions = server.get(f"/apps/app-test/channels/{channel}/").json["sessions"]
    assert other.receive()["#msg-from"] in [session["id"] for session in sessions]


def test_half_an_emoji_is_delivered_as_the_replacement_character(raw: Callable[..., RawSocket], channel: str) -> None:
    one, other = raw(channel), raw(channel)
    one.publish(channel, "said", {"text": "cut \ud83d"})
    text = other.connection.recv(10)
    assert "\\ud83d" not in str(text)
    assert json.loads(text)["data"] == {"text": "cut \ufffd"}


def test_a_frame_may_be_binary(raw: Callable[..., RawSocket], channel: str) -> None:
    sender, other = raw(channel), raw(channel)
    sender.connection.send(json.dumps({"channel": channel, "event": "said", "data": "ж"}).encode())
    assert other.expect("said", channel) == "ж"


def test_headers_reach_raw_subscribers_and_leave_pusher_frames_as_they_are(
    server: ServerProcess, raw: Callable[..., RawSocket], connect: Callable[..., PusherSocket], channel: str
) -> None:
    sender, other, client = raw(channel), raw(channel), connect()
    client.subscribe(channel)
    server.publish(channel, "paid", 1, headers={"trace": ["7"]})
    sender.connection.send(json.dumps({"channel": channel, "event": "said", "data": 2, "headers": {"trace": "8"}}))
    assert [other.receive()["headers"] for _ in range(2)] == [{"trace": ["7"]}, {"trace": "8"}]
    for event in ("paid", "said"):
        frame = client.receive()
        assert (frame["event"], set(frame)) == (event, {"event", "channel", "data"})


def test_a_broadcast_excludes_the_session_of_its_options(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str
) -> None:
    first, second, other, session = desks(server, raw, channel)
    assert server.publish(channel, "ring", 1, options={"session": session}).json["channels"] == {channel: 2}
    assert second.expect("ring", channel) == other.expect("ring", channel) == 1
    other.publish(channel, "ring", 2, session=session)
    assert second.expect("ring", channel) == 2
    assert first.round_trip() == other.round_trip() == []


@pytest.mark.parametrize("delivery", ["unicast", "multicast"])
def test_a_socket_id_is_the_target_without_a_session(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str, delivery: str
) -> None:
    first, second, other, session = desks(server, raw, channel)
    target, reached = (session, [first]) if delivery == "unicast" else ("desk", [first, second])
    answer = server.publish(channel, "ring", 1, socket_id=target, options={"delivery": delivery})
    assert answer.json["channels"] == {channel: len(reached)}
    for one in reached:
        assert one.expect("ring", channel) == 1
    frame = {"channel": channel, "event": "ring", "data": 2, "socket_id": target, "options": {"delivery": delivery}}
    other.connection.send(json.dumps(frame))
    for one in reached:
        assert one.expect("ring", channel) == 2
    assert other.round_trip() == []


def test_a_token_in_the_header_needs_no_bearer(raw: Callable[..., RawSocket], token: Callable[..., str], channel: str) -> None:
    raw(f"private-{channel}", additional_headers={"Authorization": token()})


@pytest.mark.parametrize("prefix", ["/orders/{7}:a+b|c*50%", "two words", "ж" * 127, 'a"b\\c', "a..b."])
def test_a_session_prefix_is_any_text(server: ServerProcess, raw: Callable[..., RawSocket], channel: str, prefix: str) -> None:
    one, other = raw(channel, query=f"session={quote(prefix, safe='')}"), raw(channel)
    options = {"delivery": "multicast", "session": prefix}
    assert server.publish(channel, "ring", 1, options=options).json["channels"] == {channel: 1}
    assert one.expect("ring", channel) == 1
    one.publish(channel, "said", 2)
    assert other.receive()["#msg-from"].startswith(f"{prefix}.")


def test_a_session_prefix_begins_the_id(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    raw(channel, query="session=desk")
    (session,) = server.get(f"/apps/app-test/channels/{channel}/").json["sessions"]
    assert re.fullmatch(r"desk\.\d+\.\d+", session["id"])
    assert session["ip"] == "127.0.0.1"


def desks(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> tuple[RawSocket, RawSocket, RawSocket, str]:
    """Returns connections with the prefixes `desk`, `desk` and `desktop`, and the id of the first."""
    first = raw(channel, query="session=desk")
    (session,) = server.get(f"/apps/app-test/channels/{channel}/").json["sessions"]
    return first, raw(channel, query="session=desk"), raw(channel, query="session=desktop"), session["id"]


def test_a_multicast_of_the_api_reaches_a_prefix(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    first, second, other, _ = desks(server, raw, channel)
    answer = server.publish(channel, "ring", 1, options={"delivery": "multicast", "session": "desk"})
    assert answer.json["channels"] == {channel: 2}
    assert first.expect("ring", channel) == second.expect("ring", channel) == 1
    assert other.round_trip() == []


def test_a_unicast_of_the_api_reaches_one(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    first, second, other, session = desks(server, raw, channel)
    answer = server.publish(channel, "ring", 1, options={"delivery": "unicast", "session": session})
    assert answer.json["channels"] == {channel: 1}
    assert first.expect("ring", channel) == 1
    assert second.round_trip() == other.round_trip() == []


def test_a_multicast_of_a_client_reaches_a_prefix(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    first, second, other, _ = desks(server, raw, channel)
    other.publish(channel, "ring", 1, delivery="multicast", session="desk")
    assert first.expect("ring", channel) == second.expect("ring", channel) == 1
    assert other.round_trip() == []


def test_a_unicast_of_a_client_reaches_one(server: ServerProcess, raw: Callable[..., RawSocket], channel: str) -> None:
    first, second, other, session = desks(server, raw, channel)
    other.publish(channel, "ring", 1, delivery="unicast", session=session)
    assert first.expect("ring", channel) == 1
    assert second.round_trip() == other.round_trip() == []


def test_an_api_publish_passes_over_the_excluded_session(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str
) -> None:
    first, second, other, session = desks(server, raw, channel)
    assert server.publish(channel, "ring", 1, socket_id=session).json["channels"] == {channel: 2}
    assert second.expect("ring", channel) == other.expect("ring", channel) == 1
    assert first.round_trip() == []


@pytest.mark.parametrize(
    "frame",
    [
        "[]",
        "7",
        '"text"',
        "{}",
        '{"channel": 7, "event": "e", "data": 1}',
        '{"channel": "CHANNEL", "event": 7, "data": 1}',
        '{"channel": "CHANNEL", "event": "", "data": 1}',
        '{"channel": "CHANNEL", "data": 1}',
        '{"event": "e", "data": 1}',
        '{"channel": "not-subscribed", "event": "e", "data": 1}',
        '{"channel": "CHANNEL", "event": "pusher:e", "data": 1}',
        '{"channel": "CHANNEL", "event": "pusher_internal:e", "data": 1}',
        '{"channel": "CHANNEL", "event": "e", "data": 1, "options": 7}',
        '{"channel": "CHANNEL", "event": "e", "data": 1, "options": {"delivery": "pigeon"}}',
        '{"channel": "CHANNEL", "event": "e", "data": 1, "options": {"delivery": "unicast"}}',
    ],
)
def test_a_bad_frame_is_answered_with_an_error_and_the_connection_stays(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str, frame: str
) -> None:
    socket, other = raw(channel), raw(channel)
    socket.connection.send(frame.replace("CHANNEL", channel))
    socket.expect_error()
    server.publish(channel, "paid", 1)
    assert socket.expect("paid", channel) == 1
    assert other.expect("paid", channel) == 1


def test_a_frame_that_is_not_json_closes_with_1002(raw: Callable[..., RawSocket], channel: str) -> None:
    socket = raw(channel)
    socket.connection.send("{not json")
    assert socket.close_code() == 1002


def test_pushing_is_refused_to_a_type_that_push_does_not_name(
    stack: contextlib.ExitStack, token: Callable[..., str], channel: str
) -> None:
    with running({"server": {"websocket": {"push": ["private"]}}}) as server:
        names = [channel, f"private-{channel}"]
        with (
            raw_socket(server, *names, query=f"token={token()}") as socket,
            raw_socket(server, *names, query=f"token={token()}") as other,
        ):
            server.until_sessions(names[1], 2)
            socket.publish(names[0], "said", 1)
            socket.expect_error()
            socket.publish(names[1], "said", 2)
            assert other.expect("said", names[1]) == 2


# -- the two sides of a channel


def test_a_pusher_client_event_reaches_raw_subscribers(
    raw: Callable[..., RawSocket], token: Callable[..., str], connect: Callable[..., PusherSocket], channel: str
) -> None:
    private = f"private-{channel}"
    socket, client = raw(private, query=f"token={token()}"), connect()
    client.subscribe(private)
    client.send("client-typing", {"who": "me"}, private)
    message = socket.receive()
    assert (message["event"], message["data"], message["#msg-from"]) == ("client-typing", {"who": "me"}, client.socket_id)


def test_a_raw_publish_reaches_pusher_subscribers(
    raw: Callable[..., RawSocket], connect: Callable[..., PusherSocket], channel: str
) -> None:
    socket, client = raw(channel), connect()
    client.subscribe(channel)
    socket.publish(channel, "said", {"text": "hello"})
    assert client.expect("said", channel) == {"text": "hello"}


def test_one_api_publish_reaches_both_sides(
    server: ServerProcess, raw: Callable[..., RawSocket], connect: Callable[..., PusherSocket], channel: str
) -> None:
    socket, client = raw(channel), connect()
    client.subscribe(channel)
    assert server.publish(channel, "paid", "text").json["channels"] == {channel: 2}
    assert socket.expect("paid", channel) == "text"
    assert client.receive()["data"] == "text"


def test_raw_subscribers_receive_member_events_and_are_no_members(
    raw: Callable[..., RawSocket], token: Callable[..., str], connect: Callable[..., PusherSocket], channel: str
) -> None:
    presence = f"presence-{channel}"
    socket, client = raw(presence, query=f"token={token()}"), connect()
    assert client.subscribe(presence, {"user_id": "u1", "user_info": {}})["presence"]["count"] == 1
    added = socket.receive()
    assert added["event"].endswith("member_added"), added
    assert added["data"]["user_id"] == "u1"
    client.close()
    removed = socket.receive()
    assert removed["event"].endswith("member_removed"), removed
    assert removed["data"] == {"user_id": "u1"}


def test_a_large_message_arrives_whole_within_the_payload_limit(
    server: ServerProcess, raw: Callable[..., RawSocket], channel: str
) -> None:
    socket = raw(channel)
    data = "x" * 10_000
    server.publish(channel, "big", data)
    assert socket.expect("big", channel) == data


# -- behind a proxy


@pytest.fixture(scope="module")
def proxied() -> Iterator[ServerProcess]:
    """Runs a server that trusts this machine as a proxy, and accepts clients of two networks only."""
    whitelist = ["203.0.113.0/24", "2001:db8::/32"]
    with running({"server": {"proxies": ["127.0.0.1"], "websocket": {"path": "/ws/", "whitelist": whitelist}}}) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "ip"),
    [
        ({"X-Forwarded-For": "203.0.113.9"}, "203.0.113.9"),
        ({"X-Forwarded-For": "203.0.113.9:51008"}, "203.0.113.9"),
        ({"X-Forwarded-For": "198.51.100.1, 203.0.113.9:51008, 127.0.0.1"}, "203.0.113.9"),
        ({"X-Forwarded-For": "[2001:db8::1]:443"}, "2001:db8::1"),
        ({"Forwarded": 'for="[2001:db8::1]:443";proto=https'}, "2001:db8::1"),
        ({"Forwarded": "proto=https; for=203.0.113.9:51008, for=127.0.0.1"}, "203.0.113.9"),
    ],
    ids=str,
)
def test_a_client_address_is_read_in_each_form_that_proxies_write(
    proxied: ServerProcess, channel: str, headers: dict[str, str], ip: str
) -> None:
    with raw_socket(proxied, channel, additional_headers=headers):
        assert [one["ip"] for one in proxied.get(f"/apps/app-test/channels/{channel}").json["sessions"]] == [ip]


@pytest.mark.parametrize("value", ["198.51.100.1:80", "unknown", "203.0.113.9.evil.example", "203.0.113.9, unknown", ""])
def test_an_unreadable_address_matches_no_whitelist(proxied: ServerProcess, channel: str, value: str) -> None:
    with pytest.raises(InvalidStatus, match="403"), raw_socket(proxied, channel, additional_headers={"X-Forwarded-For": value}):
        pass
