"""Retained messages over TCP, with paho-mqtt and with bytes: what new subscriptions get, in which order, with which rights."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from push1st.protocols.mqtt.outgoing import BLOCK_IDS
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ConnectPacket, FilterOptions, PublishPacket, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.paho import V5, V31, V311, PahoClient, paho_client
from tests.support.paho_retained import expect, expect_nothing_before, retain
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running
from tests.support.pusher_socket import pusher_socket

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
LEVELS = pytest.mark.parametrize("level", [MQTT_311, MQTT_5])


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0}
    app = merged(APP, {"limits": {"payload": 60_000, "subscriptions": 0}})
    with running({"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt}}, apps={"app-test": app}) as process:
        yield process


def token(server: ServerProcess, *channels: str) -> str:
    answer = server.post("/apps/app-test/token/access", {"origin": "*", "channel": list(channels), "ttl": 0})
    assert answer.status == 200, answer
    return answer.body.decode()


@pytest.fixture
def publisher(server: ServerProcess, port: int) -> Iterator[PahoClient]:
    """A client that may publish to all topics."""
    with paho_client(port, V5, password=token(server, "*")) as client:
        yield client


@VERSIONS
def test_new_subscription_gets_the_retained_message(publisher: PahoClient, port: int, version: Any) -> None:
    topic = f"new/{version}"
    retain(publisher, topic, b"old")
    retain(publisher, topic, b"21.5", qos=2)
    publisher.publish(topic, b"not retained")
    publisher.until_acknowledged()
    with paho_client(port, version) as client:
        client.subscribe(topic, qos=1)
        assert expect(client) == (topic, b"21.5", True, 1)
        publisher.publish(topic, b"22", retain=True)
        assert expect(client) == (topic, b"22", False, 0)
        client.subscribe(topic, qos=0)
        assert expect(client) == (topic, b"22", True, 0)


@VERSIONS
def test_message_without_payload_removes_the_retained_message(publisher: PahoClient, port: int, version: Any) -> None:
    topic = f"clear/{version}"
    retain(publisher, topic)
    with paho_client(port, version) as client:
        client.subscribe(topic)
        assert expect(client)[:3] == (topic, b"1", True)
        retain(publisher, topic, b"", qos=0)
        assert expect(client)[:3] == (topic, b"", False)
    with paho_client(port, version) as client:
        client.subscribe(topic)
        expect_nothing_before(client, publisher, topic)


def test_live_message_has_the_publishers_retain_with_retain_as_published(publisher: PahoClient, port: int) -> None:
    with paho_client(port, V5) as client:
        client.subscribe("rap", options=SubscribeOptions(1, retainAsPublished=True))
        retain(publisher, "rap", b"1")
        assert expect(client) == ("rap", b"1", True, 1)
        publisher.publish("rap", b"2", qos=1)
        assert expect(client) == ("rap", b"2", False, 1)


@pytest.mark.parametrize("handling", [0, 1, 2])
def test_retain_handling(publisher: PahoClient, port: int, handling: int) -> None:
    topic = f"handling/{handling}"
    retain(publisher, topic)
    options = SubscribeOptions(1, retainHandling=handling)
    with paho_client(port, V5) as client:
        client.subscribe(topic, options=options)
        if handling < 2:
            assert expect(client) == (topic, b"1", True, 1)
        client.subscribe(topic, options=options)
        if handling == 0:
            assert expect(client) == (topic, b"1", True, 1)
        expect_nothing_before(client, publisher, topic)


def test_repeated_subscription_waits_for_a_second(publisher: PahoClient, port: int) -> None:
    retain(publisher, "again")
    with paho_client(port, V311) as client:
        begin = time.monotonic()
        for _ in range(3):
            client.subscribe("again")
            assert expect(client)[:3] == ("again", b"1", True)
        assert 1.9 < time.monotonic() - begin < 4


def test_retained_message_has_its_properties_and_remaining_expiry(publisher: PahoClient, port: int) -> None:
    given: Any = Properties(PacketTypes.PUBLISH)
    given.ContentType = "text/plain"
    given.UserProperty = [("b", "2"), ("a", "1")]
    given.MessageExpiryInterval = 3
    retain(publisher, "properties", properties=given)
    time.sleep(1.1)  # the remaining time is sent in whole seconds
    with paho_client(port, V5) as client:
        client.subscribe("properties", qos=1)
        found: Any = client.messages.get(timeout=DEADLINE).properties
        assert (found.ContentType, found.UserProperty) == ("text/plain", [("b", "2"), ("a", "1")])
        assert found.MessageExpiryInterval in (1, 2)
    time.sleep(2)
    with paho_client(port, V5) as client:
        client.subscribe("properties")
        expect_nothing_before(client, publisher, "properties")


def test_messages_come_in_the_order_of_publishing(publisher: PahoClient, port: int) -> None:
    topics = [f"order/{number}" for number in range(300)]
    for topic in topics:
        publisher.publish(topic, b"1", qos=1, retain=True)
    publisher.until_acknowledged()
    with paho_client(port, V311) as client:
        client.subscribe(*topics, qos=1)
        assert [expect(client) for _ in topics] == [(topic, b"1", True, 1) for topic in topics]


def test_pusher_client_of_a_cache_channel_gets_the_retained_message(
    server: ServerProcess, publisher: PahoClient, port: int
) -> None:
    retain(publisher, "cache-m", b'{"a":1}')
    with pusher_socket(server) as pusher:
        pusher.subscribe("cache-m")
        assert pusher.expect("message", "cache-m") == {"a": 1}
    server.publish("cache-m", "e", "event")
    with paho_client(port, V5) as client:
        client.subscribe("cache-m", qos=1)
        assert expect(client) == ("cache-m", b"event", True, 1)


def test_rejected_message_is_not_retained(server: ServerProcess, publisher: PahoClient, port: int) -> None:
    with paho_client(port, V5) as anonymous:
        anonymous.publish("private-rejected", b"1", qos=1, retain=True)
        anonymous.until_acknowledged()
    with paho_client(port, V5, password=token(server, "private-rejected")) as client:
        client.subscribe("private-rejected")
        expect_nothing_before(client, publisher, "private-rejected")


def test_no_retained_message_reaches_a_client_without_the_right(server: ServerProcess, publisher: PahoClient, port: int) -> None:
    secrets = ("private-leak", "presence-leak", "protected-leak", "private-cache-leak", "private-a/leak")
    for topic in (*secrets, "public-leak"):
        retain(publisher, topic)
    with paho_client(port, V5) as client:
        assert client.subscribe(*secrets, "public-leak") == [0x87] * len(secrets) + [0]
        assert expect(client)[0] == "public-leak"
        expect_nothing_before(client, publisher, "public-leak")
    with paho_client(port, V5, password=token(server, "private-leak")) as client:
        assert client.subscribe("private-leak", "presence-leak") == [0, 0x87]
        assert expect(client)[0] == "private-leak"
        expect_nothing_before(client, publisher, "private-leak")
    for filter, topics in (("#", {"public-leak"}), ("+", {"public-leak"}), ("+/leak", set()), ("private-a/+", set())):
        with paho_client(port, V5) as client:
            assert client.subscribe(filter) == [0]
            client.subscribe("leaks-end")
            publisher.publish("leaks-end", b"end")
            found = set()
            while (message := expect(client))[0] != "leaks-end":
                found.add(message[0])
            assert {topic for topic in found if "leak" in topic} == topics, filter


# With bytes


def connected(port: int, level: int, password: str | None = None) -> socket.socket:
    """Returns a connection whose client the server has accepted."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.settimeout(DEADLINE)
    connection.connect(("127.0.0.1", port))
    packet = ConnectPacket(level, "", username="app-key", password=None if password is None else password.encode())
    connection.sendall(packets.connect(packet))
    first = connection.recv(2)
    assert first[:1] == b"\x20"
    received(connection, first[1])
    return connection


def received(connection: socket.socket, size: int) -> bytes:
    """Returns the next `size` bytes."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, "the server has closed the connection"
        data += piece
    return bytes(data)


@LEVELS
def test_suback_comes_first_and_live_messages_last(publisher: PahoClient, port: int, level: int) -> None:
    topic = f"bytes/{level}"
    retain(publisher, topic)
    with connected(port, level) as connection:
        subscribe = SubscribePacket(1, (FilterOptions(topic, 1),))
        publish = PublishPacket(topic, b"2")
        connection.sendall(packets.subscribe(subscribe, level) + packets.message(publish, level))
        suback = b"\x90\x04\0\1\0\1" if level == MQTT_5 else b"\x90\x03\0\1\1"
        kept = packets.message(PublishPacket(topic, b"1", 1, True, packet_id=1), level)
        live = packets.message(publish, level)
        expected = suback + kept + live
        assert received(connection, len(expected)) == expected


@pytest.mark.parametrize("has_wildcard", [False, True])
@pytest.mark.parametrize("qos", [0, 1])
def test_slow_reader_of_40_mebibytes_needs_no_memory_and_stays_connected(
    server: ServerProcess, publisher: PahoClient, port: int, qos: int, has_wildcard: bool
) -> None:
    topics = [f"big/{number}" for number in range(720)]
    for number, topic in enumerate(topics):
        publisher.publish(topic, b"%08d" % number + b"x" * 59_000, qos=1, retain=True)
    publisher.until_acknowledged()
    with connected(port, MQTT_311, token(server, "*")) as connection:
        filters = tuple(FilterOptions(topic, qos) for topic in (["big/#"] if has_wildcard else topics))
        before = server.resident_bytes()
        connection.sendall(packets.subscribe(SubscribePacket(1, filters), MQTT_311))
        assert received(connection, (4 if len(filters) < 126 else 5) + len(filters))[-1] == qos
        for number, topic in enumerate(topics):
            packet_id = number % BLOCK_IDS + 1
            message = PublishPacket(topic, b"%08d" % number + b"x" * 59_000, qos, True, packet_id=packet_id)
            expected = packets.message(message, MQTT_311)
            assert received(connection, len(expected)) == expected, topic
            if number % 60 == 0:
                time.sleep(0.1)  # the client reads slowly
                assert server.resident_bytes() - before < 8 << 20
            if qos:
                connection.sendall(b"\x40\2" + packet_id.to_bytes(2, "big"))
    for topic in topics:
        publisher.publish(topic, b"", qos=1, retain=True)
    publisher.until_acknowledged()
