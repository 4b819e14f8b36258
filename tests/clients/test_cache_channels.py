"""Cache channels of every kind: later subscribers get the last event of the API (Pusher protocol, section 3)."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.nodejs import MASTER_KEY, NodeProcess
from tests.support.process import APP, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import PusherSocket
from tests.support.raw_socket import raw_socket

KINDS = ["cache", "private-cache", "private-encrypted-cache", "presence-cache"]
USER = {"user_id": "u1"}
APPS = {"app-counting": merged(APP, {"key": "counting-key", "options": {"subscription-count": True}})}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(apps=APPS) as process:
        yield process


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest, channel: str) -> str:
    """Returns the name of a cache channel of each kind."""
    return f"{request.param}-{channel}"


def join(client: PusherSocket, name: str) -> None:
    client.subscribe(name, USER if name.startswith("presence-") else None)


def cached(server: ServerProcess, name: str, app: str = "app-test", key: str = "app-key") -> Any:
    """Returns the result of `info=cache`."""
    answer = server.signed("GET", f"/apps/{app}/channels/{name}", query={"info": "cache"}, key=key)
    assert answer.status == 200, answer
    return answer.json["cache"]


def test_first_subscriber_gets_a_cache_miss(connect: Callable[..., PusherSocket], name: str) -> None:
    client = connect()
    join(client, name)
    assert client.expect("pusher:cache_miss", name) == {}
    assert client.round_trip() == []


def test_later_subscriber_gets_only_the_last_event(
    server: ServerProcess, connect: Callable[..., PusherSocket], name: str
) -> None:
    for number in (1, 2):
        assert server.publish(name, f"event-{number}", {"n": number}).json["channels"] == {name: 0}
    for _ in range(2):
        client = connect()
        join(client, name)
        assert client.expect("event-2", name) == {"n": 2}
        assert client.round_trip() == []


def test_subscriber_gets_each_later_event_once(server: ServerProcess, connect: Callable[..., PusherSocket], name: str) -> None:
    client = connect()
    join(client, name)
    client.expect("pusher:cache_miss", name)
    server.publish(name, "e", 1)
    assert client.expect("e", name) == 1
    assert client.round_trip() == []


def test_client_that_subscribes_again_gets_the_cached_event_again(
    server: ServerProcess, connect: Callable[..., PusherSocket], name: str
) -> None:
    server.publish(name, "e", 1)
    client = connect()
    for _ in range(2):
        join(client, name)
        assert client.expect("e", name) == 1
        client.send("pusher:unsubscribe", {"channel": name})


def test_the_replay_carries_neither_sender_nor_user(
    server: ServerProcess, connect: Callable[..., PusherSocket], name: str
) -> None:
    server.publish(name, "e", "words")
    client = connect()
    join(client, name)
    assert client.receive() == {"event": "e", "channel": name, "data": "words"}


def test_client_events_are_delivered_and_not_kept(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    for prefix in ("private-cache-", "presence-cache-"):
        name = prefix + channel
        sender, other, late = connect(), connect(), connect()
        for client in (sender, other):
            join(client, name)
            client.expect("pusher:cache_miss", name)
        sender.send("client-e", {"n": 1}, name)
        assert other.expect("client-e", name) == {"n": 1}
        join(late, name)
        assert late.expect("pusher:cache_miss", name) == {}
        server.publish(name, "e", 1)
        sender.send("client-e", {"n": 2}, name)
        sender.round_trip()
        assert cached(server, name)["data"] == "1"


def test_events_of_raw_clients_are_not_kept(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    name = f"cache-{channel}"
    client = connect()
    with raw_socket(server, name) as raw:
        server.until_sessions(name, 1)
        raw.publish(name, "e", 1)
        raw.round_trip()
        join(client, name)
        client.expect("pusher:cache_miss", name)


def test_member_events_are_not_kept(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    name = f"presence-cache-{channel}"
    server.publish(name, "e", 1)
    for number in (1, 2):
        client = connect()
        client.subscribe(name, {"user_id": f"u{number}"})
        assert client.expect("e", name) == 1


def test_subscription_counts_are_not_cached_and_follow_the_replay(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    name = f"cache-{channel}"
    first, second = connect("counting-key"), connect("counting-key")
    first.subscribe(name)
    first.expect("pusher:cache_miss", name)
    assert first.expect("pusher_internal:subscription_count", name) == {"subscription_count": 1}
    body = {"name": "e", "channel": name, "data": "1"}
    assert server.signed("POST", "/apps/app-counting/events", body, key="counting-key").status == 200
    second.subscribe(name)
    assert second.expect("e", name) == 1
    assert second.expect("pusher_internal:subscription_count", name) == {"subscription_count": 2}
    assert cached(server, name, "app-counting", "counting-key")["data"] == "1"


def test_an_event_that_was_for_some_connections_only_is_not_kept(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    name = f"cache-{channel}"
    client, late = connect(), connect()
    join(client, name)
    client.expect("pusher:cache_miss", name)
    for delivery in ("unicast", "multicast"):
        server.publish(name, "e", 1, options={"delivery": delivery, "session": client.socket_id})
    client.expect("e", name)
    join(late, name)
    late.expect("pusher:cache_miss", name)


def test_an_event_that_one_connection_was_excluded_from_is_kept_for_all(
    server: ServerProcess, connect: Callable[..., PusherSocket], name: str
) -> None:
    """The excluded connection caused the event itself; later subscribers have not received it."""
    origin, late = connect(), connect()
    join(origin, name)
    origin.expect("pusher:cache_miss", name)
    server.publish(name, "e", 1, socket_id=origin.socket_id)
    assert origin.round_trip() == []
    join(late, name)
    assert late.expect("e", name) == 1


@pytest.mark.parametrize("call", ["batch_events", "the deprecated call"])
def test_every_way_to_publish_fills_the_cache(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, call: str
) -> None:
    name = f"cache-{channel}"
    if call == "batch_events":
        batch = [{"name": "e", "channel": name, "data": text} for text in ("first", "last")]
        assert server.signed("POST", "/apps/app-test/batch_events", {"batch": batch}).status == 200
    else:
        path = f"/apps/app-test/channels/{name}/events"
        assert server.signed("POST", path, b"last", query={"name": "e"}).status == 202
    client = connect()
    join(client, name)
    assert client.receive() == {"event": "e", "channel": name, "data": "last"}


def test_a_call_that_is_refused_leaves_the_cache_as_it_was(server: ServerProcess, channel: str) -> None:
    name = f"cache-{channel}"
    server.publish(name, "e", "kept")
    batch = [{"name": "e", "channel": name, "data": "lost"}, {"name": "pusher:e", "channel": name, "data": "wrong"}]
    assert server.signed("POST", "/apps/app-test/batch_events", {"batch": batch}).status == 400
    assert server.signed("POST", "/apps/app-test/events", {"name": "e", "channels": [name, "a b"], "data": ""}).status == 400
    assert cached(server, name)["data"] == "kept"


def test_info_has_the_cached_event_and_its_remaining_time(server: ServerProcess, name: str) -> None:
    assert cached(server, name) is None
    server.publish(name, "e", {"n": 1})
    found = cached(server, name)
    assert set(found) == {"data", "ttl"}
    assert json.loads(found["data"]) == {"n": 1}
    assert isinstance(found["data"], str)
    assert 1795 <= found["ttl"] <= 1800


def test_each_event_has_half_an_hour_of_its_own(server: ServerProcess, channel: str) -> None:
    name = f"cache-{channel}"
    server.publish(name, "e", 1)
    assert wait_until(lambda: cached(server, name)["ttl"] < 1800, "its time runs")

    def begun_anew() -> bool:
        server.publish(name, "e", 2)
        ttl: int = cached(server, name)["ttl"]
        return ttl == 1800

    assert wait_until(begun_anew, "the next event has a time to live of its own")


def test_info_has_several_attributes_together(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    connect().subscribe(f"presence-cache-{channel}", USER)
    path = f"/apps/app-test/channels/presence-cache-{channel}"
    assert server.signed("GET", path, query={"info": "user_count,cache"}).json == {
        "occupied": True,
        "user_count": 1,
        "cache": None,
    }


@pytest.mark.parametrize("prefix", ["", "cache", "private-", "presence-", "private-encrypted-"])
def test_cache_info_of_a_channel_without_a_cache_is_400(server: ServerProcess, channel: str, prefix: str) -> None:
    answer = server.signed("GET", f"/apps/app-test/channels/{prefix}{channel}", query={"info": "cache"})
    assert answer.status == 400
    assert "cache" in answer.json["error"]


def test_cached_event_stays_within_its_app(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    name = f"cache-{channel}"
    server.publish(name, "e", 1)
    client = connect("counting-key")
    client.subscribe(name)
    client.expect("pusher:cache_miss", name)


def test_a_raw_subscriber_gets_the_last_event_as_a_message_and_no_miss(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    name, empty = f"cache-{channel}", f"cache-{channel}-empty"
    sent = server.publish(name, "e", {"n": 1}).json["msg-id"]
    with raw_socket(server, name, empty) as raw:
        message = raw.receive()
        assert (message["event"], message["channel"], message["data"]) == ("e", name, {"n": 1})
        assert message["#msg-id"] == sent, "it is the message that was published, not a new one"
        assert message["#msg-from"] == "api"
        assert raw.round_trip() == []


def test_a_raw_subscriber_of_a_private_cache_channel_needs_its_token(server: ServerProcess, channel: str) -> None:
    name = f"private-cache-{channel}"
    server.publish(name, "e", 1)
    token = server.post("/apps/app-test/token/access/", {"channel": name}).body.decode()
    with raw_socket(server, name, query=f"token={quote(token)}") as raw:
        assert raw.expect("e", name) == 1
    with raw_socket(server, name) as raw:
        assert raw.close_code() == 1008


def test_pusher_js_gets_the_cache_miss_and_the_replay(
    server: ServerProcess, node: Callable[..., NodeProcess], channel: str
) -> None:
    name = f"private-cache-{channel}"
    address = {"wsHost": "127.0.0.1", "wsPort": server.ws_port}
    client = node("pusher_more.mjs", key="app-key", secret="secret", client=address)
    client.next(on="state", state="connected")
    client.tell("subscribe", channel=name, events=["paid"])
    client.next(on="subscribed", channel=name)
    client.next(on="cache_miss", channel=name)
    server.publish(name, "paid", {"id": 1})
    assert client.next(on="event", channel=name)["data"] == {"id": 1}
    client.tell("unsubscribe", channel=name)
    server.until_sessions(name, 0)
    client.tell("subscribe", channel=name, events=[])
    client.next(on="subscribed", channel=name)
    assert client.next(on="message", event="paid")["data"] == {"id": 1}


def test_pusher_js_decrypts_the_cached_event(
    server: ServerProcess, node: Callable[..., NodeProcess], stack: contextlib.ExitStack, channel: str
) -> None:
    """The cache has only ciphertext: the replay equals the published event."""
    name = f"private-encrypted-cache-{channel}"
    address = {"host": "127.0.0.1", "port": server.ws_port, "useTLS": False}
    sdk = node(
        "pusher_server.mjs",
        appId="app-test",
        key="app-key",
        secret="secret",
        encryptionMasterKeyBase64=MASTER_KEY,
        **address,
    )
    assert sdk.ask("call", method="trigger", args=[name, "paid", {"pin": "1234"}]) == {"status": 200, "body": "{}"}
    assert set(json.loads(cached(server, name)["data"])) == {"nonce", "ciphertext"}
    client = node(
        "pusher_js.mjs",
        key="app-key",
        secret="secret",
        masterKey=MASTER_KEY,
        authorize="self",
        client={"wsHost": "127.0.0.1", "wsPort": server.ws_port},
    )
    client.next(on="state", state="connected")
    client.tell("subscribe", channel=name, events=["paid"])
    assert client.next(on="event", event="paid")["data"] == {"pin": "1234"}
