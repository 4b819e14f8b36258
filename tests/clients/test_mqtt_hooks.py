"""Hooks for MQTT clients: webhooks, hooks of Push1st, hooks in Python, and the decisions of the app's backend."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import FilterOptions, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V311, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.receiver import Act, Receiver, receiving
from tests.support.signing import access_token

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
COUNTING = {"client-messages": True, "subscription-count": True}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@contextmanager
def serving(app: dict[str, Any]) -> Iterator[tuple[ServerProcess, int]]:
    """Runs a server whose anonymous MQTT clients may publish; yields the server and its MQTT port."""
    port = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"]}
    config = {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "drain": 0}}
    with running(config, {"app-test": merged(APP, app)}) as server:
        yield server, port


def claims(user: str | None = None) -> str:
    return access_token({"app": "app-test", "channel": "*"} | ({} if user is None else {"sub": user}))


# Webhooks


@VERSIONS
def test_each_kind_of_webhook(receiver: Receiver, version: Any) -> None:
    app = {"options": COUNTING, "webhooks": [{"url": receiver.url}]}
    with serving(app) as (server, port):
        with paho_client(port, version, "pump", password=claims("ann")) as client:
            client.subscribe("presence-room", "room")
            client.publish("presence-room", '{"on":true}', qos=1)
            client.until_acknowledged()
            (session,) = server.get("/apps/app-test/channels/room/").json["sessions"]
            receiver.until(5)
        receiver.until(8)
    assert session["id"].startswith("pump.")
    assert [event for event in receiver.events if event["channel"] == "presence-room"] == [
        {"name": "channel_occupied", "channel": "presence-room"},
        {"name": "member_added", "channel": "presence-room", "user_id": "ann"},
        {
            "name": "client_event",
            "channel": "presence-room",
            "event": "message",
            "data": '{"on":true}',
            "socket_id": session["id"],
            "user_id": "ann",
        },
        {"name": "member_removed", "channel": "presence-room", "user_id": "ann"},
        {"name": "channel_vacated", "channel": "presence-room"},
    ]
    assert [event for event in receiver.events if event["channel"] == "room"] == [
        {"name": "channel_occupied", "channel": "room"},
        {"name": "subscription_count", "channel": "room", "subscription_count": 1},
        {"name": "channel_vacated", "channel": "room"},
    ]


def test_filter_with_wildcards_causes_no_webhook(receiver: Receiver) -> None:
    with serving({"webhooks": [{"url": receiver.url}]}) as (server, port):
        with paho_client(port) as client:
            client.subscribe("#", "+/room", "$SYS/#")
            server.publish("a.room", "e", "x")
            assert client.expect() == ("a/room", b"x")
            client.subscribe("end")
            receiver.until_events("channel_occupied")
        receiver.until_events("channel_occupied", "channel_vacated")
    assert {event["channel"] for event in receiver.events} == {"end"}


def test_client_that_misses_a_cache_channel_causes_a_webhook(receiver: Receiver) -> None:
    with serving({"webhooks": [{"url": receiver.url, "events": ["cache_miss"]}]}) as (server, port), paho_client(port) as client:
        client.subscribe("cache-news")
        assert receiver.until_events("cache_miss") == [{"name": "cache_miss", "channel": "cache-news"}]
        server.publish("cache-news", "e", "filled")
        assert client.expect() == ("cache-news", b"filled")
        client.unsubscribe("cache-news")
        client.subscribe("cache-news")
        assert client.expect() == ("cache-news", b"filled")
        client.subscribe("cache-end")
        receiver.until_events("cache_miss", "cache_miss")


def test_messages_of_clients_are_client_events(receiver: Receiver) -> None:
    """A message that clears a retained message is a client event, too. A rejected message is not a client event."""
    webhook = {"url": receiver.url, "events": ["client_event"]}
    with serving({"webhooks": [webhook], "limits": {"payload": 10}}) as (server, port), connected(port, 5) as client:
        client.publish("room", b"on", retain=True)
        client.publish("room", b"", retain=True)
        client.publish("room", b"x" * 11)
        client.publish("private-room", b"forged")
        client.publish("$SYS/broker/connection/bridge/state", b"1")
        client.publish("room", b"\xff", 2, 7, properties=encode.user_property("event", "measured"))
        client.expect(bytes((0x50, 2, 0, 7)))
        server.publish("room", "e", "of the API")
        client.publish("a/b", b"end", 1, 8)
        events = receiver.until_events(*["client_event"] * 4)
    sent = [(event["channel"], event["event"], event["data"]) for event in events]
    sent.sort(key=lambda event: event[0] == "a.b")  # only the events of one channel have an order
    assert sent == [
        ("room", "message", "on"),
        ("room", "message", ""),
        ("room", "measured", '{"base64":"/w=="}'),
        ("a.b", "message", "end"),
    ]
    assert all(event["socket_id"].startswith("c.") and "user_id" not in event for event in events)


# Hooks of Push1st, and hooks in Python


def test_hooks_of_push1st(receiver: Receiver) -> None:
    hook = {"trigger": ["register", "unregister", "join", "leave", "push"], "endpoint": [receiver.url]}
    with serving({"hook": hook}) as (_, port):
        with paho_client(port, V5, "pump", password=claims("ann")) as client:
            client.subscribe("presence-room")
            client.publish("presence-room", "1")
            receiver.until(3)
        got = receiver.until(5)
    triggers = ("register", "join", "push", "leave", "unregister")
    assert [(one.json["event"], one.json["channel"]) for one in got] == [(trigger, "presence-room") for trigger in triggers]
    sessions = [one.json["session"] for one in got]
    assert sessions[0] == sessions[4] == ""
    assert sessions[1] == sessions[2] == sessions[3]
    assert sessions[1].startswith("pump.")
    assert [json.loads(one.json["data"]) for one in (got[1], got[3])] == [{"user-id": "ann", "user-info": None}] * 2
    pushed = json.loads(got[2].json["data"])
    assert (pushed["event"], pushed["channel"], pushed["data"]) == ("message", "presence-room", 1)


KEEPING = """
import json, os
from push1st.hooks import events

def hook(event: events.Event):
    line = [type(event).__name__, event.channel, getattr(event, "user_id", None), getattr(event, "data", None)]
    with open(os.path.join(os.path.dirname(__file__), "kept.jsonl"), "a") as file:
        file.write(json.dumps(line) + "\\n")
"""


def test_hook_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept_events.py").write_text(KEEPING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def lines() -> list[Any]:
        file = tmp_path / "kept.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    with serving({"webhooks": [{"url": "py://kept_events:hook"}]}) as (_, port):
        with paho_client(port, V311, password=claims("ann")) as client:
            client.subscribe("presence-room")
            client.publish("presence-room", "hello")
            wait_until(lambda: len(lines()) >= 3, "the first events")
        wait_until(lambda: len(lines()) >= 5, "all events")
    assert lines() == [
        ["ChannelOccupied", "presence-room", None, None],
        ["MemberAdded", "presence-room", "ann", None],
        ["ClientEvent", "presence-room", "ann", "hello"],
        ["MemberRemoved", "presence-room", "ann", None],
        ["ChannelVacated", "presence-room", None, None],
    ]


# Decisions of the app's backend


def deciding(receiver: Receiver, *on: str, **answer: Any) -> AbstractContextManager[tuple[ServerProcess, int]]:
    """Runs a server whose app's backend answers each question with `answer`."""
    receiver.act = lambda _: answer
    return serving({"authorize": {"url": receiver.url, "on": list(on)}})


def rejecting(code: int) -> Act:
    return lambda _: {"allow": False, "code": code}


CODES = {
    128: (0x80, 0x80, 0x80),
    135: (0x87, 0x87, 0x87),
    138: (0x8A, 0x87, 0x87),
    143: (0x87, 0x8F, 0x87),
    144: (0x90, 0x87, 0x90),
    151: (0x97, 0x97, 0x97),
    162: (0x87, 0xA2, 0x87),
}
"""the code of the backend, and the reason codes of CONNACK, SUBACK and PUBACK: 0x87 if the packet may not have the code"""


def test_code_of_the_backend_is_the_reason_code_where_the_packet_has_it(receiver: Receiver) -> None:
    with (
        deciding(receiver, "subscribe", "publish") as (_, port),
        connected(port, 5) as client,
        connected(port, 4, "older") as older,
    ):
        for code, (_, suback, puback) in CODES.items():
            receiver.act = rejecting(code)
            client.publish("room", b"x", 1, 7)
            client.expect(bytes((0x40, 3, 0, 7, puback)))
            client.send(packets.subscribe(SubscribePacket(7, (FilterOptions("room", 1),)), 5))
            client.expect(bytes((0x90, 4, 0, 7, 0, suback)))
            older.publish("room", b"x", 1, 7)
            older.send(packets.subscribe(SubscribePacket(7, (FilterOptions("room", 1),)), 4))
            older.expect(bytes((0x40, 2, 0, 7, 0x90, 3, 0, 7, 0x80)))


def test_code_of_the_backend_is_the_reason_code_of_connack(receiver: Receiver) -> None:
    with deciding(receiver, "connect") as (_, port):
        for code, (connack, *_others) in CODES.items():
            receiver.act = rejecting(code)
            with paho_client(port, accepted=False) as client:
                assert client.reason == connack
            with paho_client(port, V311, accepted=False):
                pass


def test_backend_replaces_the_data_of_a_message(receiver: Receiver) -> None:
    with (
        deciding(receiver, "publish", allow=True, data={"checked": 21.5}) as (server, port),
        paho_client(port, password=claims("ann")) as client,
        pusher_socket(server) as watcher,
    ):
        watcher.subscribe("room")
        client.subscribe("room")
        client.publish("room", "21.5", qos=1)
        topic, payload = client.expect()
        assert (topic, json.loads(payload)) == ("room", {"checked": 21.5})
        assert watcher.expect("message", "room") == {"checked": 21.5}
        (question,) = receiver.until(1)
        assert (question.json["channel"], question.json["event"], question.json["user_id"]) == ("room", "message", "ann")
        assert question.json["data"] == 21.5


def test_backend_that_is_away_rejects_what_it_should_decide(receiver: Receiver) -> None:
    with deciding(receiver, "connect", "subscribe", "publish") as (_, port):
        receiver.act = lambda got: {"allow": True} if "connect" in got.json.values() else 500
        with connected(port, 5) as client:
            client.publish("room", b"x", 1, 7)
            client.expect(bytes((0x40, 3, 0, 7, 0x80)))
        with paho_client(port) as other:
            assert other.subscribe("room") == [0x80]
        receiver.act = lambda _: 500
        with paho_client(port, accepted=False) as rejected:
            assert rejected.reason == 0x88
        with paho_client(port, V311, accepted=False) as rejected:
            assert rejected.reason == 0x88  # paho-mqtt shows the code 3 of 3.1.1 as 88
