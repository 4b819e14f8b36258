"""pusher-js, the official browser client, here under Node."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.nodejs import MASTER_KEY, NodeProcess, start_pusher_js, subscribed
from tests.support.process import ServerProcess, running, wait_until


@pytest.fixture
def pusher_js(server: ServerProcess, node: Callable[..., NodeProcess]) -> Callable[..., NodeProcess]:
    """Makes connected pusher-js clients. `user`: their `channel_data`; `client`: options of pusher-js."""

    def start(user: dict[str, Any] | None = None, authorize: str = "server", **more: Any) -> NodeProcess:
        process = start_pusher_js(node, server, user=user, authorize=authorize, **more)
        process.next(on="state", state="connected")
        return process

    return start


# -- connecting


@pytest.mark.parametrize("path", ["", "/pusher"])
def test_connects_on_both_paths(server: ServerProcess, node: Callable[..., NodeProcess], path: str) -> None:
    client = start_pusher_js(node, server, client={"wsPath": path})
    client.next(on="state", state="connected")


def test_gets_a_socket_id_that_server_libraries_accept(server: ServerProcess, node: Callable[..., NodeProcess]) -> None:
    socket_id = start_pusher_js(node, server).next(on="state", state="connected")["socket_id"]
    left, right = socket_id.split(".")
    assert left.isdecimal()
    assert right.isdecimal()


@pytest.mark.parametrize(
    ("key", "code"), [("nobodys-key", 4001), ("off-key", 4003)], ids=["an unknown key", "the key of a disabled app"]
)
def test_stops_reconnecting_with(server: ServerProcess, node: Callable[..., NodeProcess], key: str, code: int) -> None:
    client = start_pusher_js(node, server, key=key)
    client.next(on="error", code=code)
    client.next(on="state", state="disconnected")
    assert client.ask("connection") == {"state": "disconnected", "retries": False}


def test_waits_a_second_between_handshakes_that_a_stopping_server_rejects(node: Callable[..., NodeProcess]) -> None:
    with running({"server": {"drain": 12}}) as server:  # for a quarter of that time the server still accepts connections
        server.signal()
        wait_until(lambda: server.get("/ready").status == 503, "it is draining")
        client = start_pusher_js(node, server)
        client.next(on="error", code=4100)
        first = time.monotonic()
        client.next(on="error", code=4100)
        assert time.monotonic() - first > 0.9
        client.close()
        server.signal()
        server.wait()  # a third signal would interrupt Python while it exits


# -- public channels


def test_receives_an_api_publish_at_once(server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    client = pusher_js()
    subscribed(client, channel, "paid")
    assert server.publish(channel, "paid", {"id": 7}).json["channels"] == {channel: 1}
    assert client.next(on="event", event="paid")["data"] == {"id": 7}


def test_receives_text_data_as_text(server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    client = pusher_js()
    subscribed(client, channel, "said")
    server.publish(channel, "said", "plain words — ünïcödé \U0001f980")
    assert client.next(on="event", event="said")["data"] == "plain words — ünïcödé \U0001f980"


def test_receives_no_events_after_unsubscribing(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    client = pusher_js()
    subscribed(client, channel, "paid")
    subscribed(client, channel + "-marker", "end")
    client.tell("unsubscribe", channel=channel)
    server.until_sessions(channel, 0)
    server.publish(channel, "paid", 1)
    server.publish(channel + "-marker", "end", 1)
    client.next(on="event", event="end")
    assert not [seen for seen in client.seen if seen["on"] == "message" and seen["event"] == "paid"]


# -- private channels


@pytest.mark.parametrize("authorize", ["server", "self"])
def test_subscribes_to_a_private_channel_with_a_token_of(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str, authorize: str
) -> None:
    client = pusher_js(authorize=authorize)
    subscribed(client, f"private-{channel}", "paid")
    server.publish(f"private-{channel}", "paid", {"id": 7})
    assert client.next(on="event", event="paid")["data"] == {"id": 7}


def test_gets_one_subscription_error_for_a_wrong_signature_and_stays_connected(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    client = pusher_js(authorize="wrongly")
    client.tell("subscribe", channel=f"private-{channel}")
    error = client.next(on="subscription_error", channel=f"private-{channel}")["error"]
    assert (error["type"], error["status"]) == ("AuthError", 401)
    subscribed(client, channel)
    assert client.ask("connection") == {"state": "connected", "retries": False}
    assert [seen["on"] for seen in client.seen].count("subscription_error") == 1
    (raised,) = [seen for seen in client.seen if seen["on"] == "message" and seen["event"] == "pusher:error"]
    assert (raised["channel"], raised["data"]["code"]) == (f"private-{channel}", None)


def test_sends_client_events_to_others_and_not_to_itself(pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    private = f"private-{channel}"
    first, second = pusher_js(), pusher_js()
    for client in (first, second):
        subscribed(client, private, "client-typing", "client-answer")
    first.tell("trigger", channel=private, event="client-typing", data={"who": "first"})
    report = second.next(on="event", event="client-typing")
    assert report["data"] == {"who": "first"}
    assert "user_id" not in (report.get("metadata") or {})
    second.tell("trigger", channel=private, event="client-answer", data={})
    first.next(on="event", event="client-answer")
    assert not [seen for seen in first.seen if seen["on"] == "message" and seen["event"] == "client-typing"]


def test_sends_a_text_that_was_cut_within_an_emoji(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    """JavaScript escapes half an emoji (RFC 8259 §8.2), in client events, signed `channel_data` and calls of the API."""
    presence, cut = f"presence-{channel}", "cut \ud83d"
    first, second = (pusher_js({"user_id": name, "user_info": cut}, "self") for name in ("ann", "bob"))
    for client in (first, second):
        members = subscribed(client, presence, "client-said", "said")["members"]
        assert set(members.values()) == {"cut \ufffd"}
    first.tell("trigger", channel=presence, event="client-said", data={"text": cut})
    assert second.next(on="event", event="client-said")["data"] == {"text": "cut \ufffd"}
    server.publish(presence, "said", cut)
    assert second.next(on="event", event="said")["data"] == "cut \ufffd"


def test_gets_an_error_for_too_many_client_events_and_stays_connected(
    pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    private = f"private-{channel}"
    client = pusher_js()
    subscribed(client, private)
    for number in range(15):
        client.tell("trigger", channel=private, event="client-typing", data={"number": number})
    client.next(on="error", code=4301)
    assert client.ask("connection")["state"] == "connected"


# -- presence channels


def user(number: int) -> dict[str, Any]:
    return {"user_id": f"u{number}", "user_info": {"name": f"User {number}"}}


def test_gets_the_members_when_it_joins(pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    presence = f"presence-{channel}"
    subscribed(pusher_js(user(1)), presence)
    assert subscribed(pusher_js(user(2)), presence) | {"on": ""} == {
        "on": "",
        "channel": presence,
        "count": 2,
        "me": {"id": "u2", "info": {"name": "User 2"}},
        "members": {"u1": {"name": "User 1"}, "u2": {"name": "User 2"}},
    }


def test_joins_a_presence_channel_without_a_user_on_the_path_of_push1st(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    presence = f"presence-{channel}"
    member, guest = pusher_js(user(1)), pusher_js({"user-id": 1}, client={"wsPath": "/pusher"})
    subscribed(member, presence)
    assert subscribed(guest, presence, "paid")["count"] == 1
    server.publish(presence, "paid", {"id": 7})
    assert guest.next(on="event", event="paid")["data"] == {"id": 7}
    assert member.ask("members", channel=presence)["count"] == 1
    pusher_js({"user-id": 1}).tell("subscribe", channel=presence)
    subscribed(pusher_js(user(2)), presence)
    assert server.session_count(presence) == 3


def test_receives_member_changes(pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    presence = f"presence-{channel}"
    first, second = pusher_js(user(1)), pusher_js(user(2))
    subscribed(first, presence)
    subscribed(second, presence)
    assert first.next(on="member_added")["member"] == {"id": "u2", "info": {"name": "User 2"}}
    second.tell("unsubscribe", channel=presence)
    assert first.next(on="member_removed")["member"]["id"] == "u2"
    assert first.ask("members", channel=presence)["count"] == 1


def test_sees_a_user_with_two_sockets_as_one_member(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    presence = f"presence-{channel}"
    watcher, one, other = pusher_js(user(1)), pusher_js(user(2)), pusher_js(user(2))
    subscribed(watcher, presence)
    subscribed(one, presence)
    assert subscribed(other, presence)["count"] == 2
    one.tell("unsubscribe", channel=presence)
    server.until_sessions(presence, 2)
    assert watcher.ask("members", channel=presence)["count"] == 2
    other.tell("unsubscribe", channel=presence)
    watcher.next(on="member_removed")
    assert [seen["on"] for seen in watcher.seen if seen["on"].startswith("member_")] == ["member_added", "member_removed"]


def test_client_events_on_presence_channels_name_their_sender(pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    presence = f"presence-{channel}"
    first, second = pusher_js(user(1)), pusher_js(user(2))
    subscribed(first, presence)
    subscribed(second, presence, "client-typing")
    first.tell("trigger", channel=presence, event="client-typing", data={})
    assert second.next(on="event", event="client-typing")["metadata"] == {"user_id": "u1"}


# -- encrypted channels


def test_decrypts_events_of_the_server_library(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], node: Callable[..., NodeProcess], channel: str
) -> None:
    encrypted = f"private-encrypted-{channel}"
    client = pusher_js()
    subscribed(client, encrypted, "secret-event")
    sdk = node(
        "pusher_server.mjs",
        appId="app-test",
        key="app-key",
        secret="secret",
        host="127.0.0.1",
        port=server.ws_port,
        useTLS=False,
        encryptionMasterKeyBase64=MASTER_KEY,
    )
    assert sdk.ask("call", method="trigger", args=[encrypted, "secret-event", {"pin": "1234"}]) == {"status": 200, "body": "{}"}
    assert client.next(on="event", event="secret-event")["data"] == {"pin": "1234"}
    message = client.next(on="message", event="secret-event")
    assert set(message["data"]) == {"nonce", "ciphertext"}


# -- staying alive


def test_pings_after_the_activity_timeout_and_gets_its_pong(node: Callable[..., NodeProcess]) -> None:
    with running({"server": {"pusher": {"activity-timeout": 1}}}) as server:
        client = start_pusher_js(node, server)
        client.next(on="state", state="connected")
        client.next(on="message", event="pusher:pong")
        assert client.ask("connection")["state"] == "connected"
        client.close()


def test_reconnects_when_the_server_announces_a_restart(node: Callable[..., NodeProcess]) -> None:
    with running() as server:
        client = start_pusher_js(node, server)
        client.next(on="state", state="connected")
        server.signal()
        client.next(on="state", state="connecting")
        wait_until(lambda: server.process is not None and server.process.poll() is not None, "the server ends")
        client.close()
