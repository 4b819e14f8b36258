"""Retained messages of MQTT clients of two workers: each worker sends the messages that clients of the other have published."""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from push1st.protocols.mqtt.outgoing import BLOCK_IDS
from push1st.protocols.mqtt.packets import MQTT_311, ConnectPacket, FilterOptions, PublishPacket, SubscribePacket
from tests.cluster.machine import by_worker, connect_to, engine, exists, kill, machine, on_worker, until_workers, workers
from tests.support import mqtt_packets as packets
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.paho_retained import expect, expect_nothing_before, retain
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, wait_until
from tests.support.signing import access_token

BOTH = pytest.mark.parametrize("version", [V311, V5])


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


def settings(port: int) -> dict[str, Any]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private"], "publishes": 0}
    return {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "drain": 0}}


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    app = merged(APP, {"limits": {"payload": 60_000, "subscriptions": 0}})
    with machine(2, settings(port), {"app-test": app}) as process:
        yield process


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


def token() -> str:
    return access_token({"app": "app-test", "channel": "*"})


def client_of(server: ServerProcess, port: int, worker: int, stack: contextlib.ExitStack, version: Any = V5) -> PahoClient:
    """Connects a client that may use all topics to a worker."""
    return on_worker(server, worker, stack, lambda: paho_client(port, version, password=token()))


@BOTH
def test_subscriber_of_another_worker_receives_replaces_and_removals(
    server: ServerProcess, port: int, stack: contextlib.ExitStack, version: Any
) -> None:
    publisher, other = client_of(server, port, 0, stack), client_of(server, port, 1, stack, version)
    topic = f"devices/{version}"
    retain(publisher, topic, b"21.5")
    retain(publisher, topic, b"\xff22")
    other.subscribe(topic, qos=1)
    assert expect(other) == (topic, b"\xff22", True, 1)
    retain(other, topic, b"23")
    assert expect(other)[:3] == (topic, b"23", False)
    publisher.subscribe(topic, qos=1)
    assert expect(publisher) == (topic, b"23", True, 1)
    retain(publisher, topic, b"")
    assert expect(other)[:2] == (topic, b"")
    third = client_of(server, port, 1, stack, version)
    third.subscribe(topic)
    expect_nothing_before(third, publisher, topic)


def test_properties_and_the_remaining_expiry_are_those_of_the_publisher(
    server: ServerProcess, port: int, stack: contextlib.ExitStack
) -> None:
    publisher, other = client_of(server, port, 0, stack), client_of(server, port, 1, stack)
    given: Any = Properties(PacketTypes.PUBLISH)
    given.ContentType = "text/plain"
    given.UserProperty = [("b", "2"), ("a", "1")]
    given.MessageExpiryInterval = 3
    retain(publisher, "properties", b"1", properties=given)
    time.sleep(1.1)  # the remaining time is sent in whole seconds
    other.subscribe("properties", qos=1)
    found: Any = other.messages.get(timeout=DEADLINE).properties
    assert (found.ContentType, found.UserProperty) == ("text/plain", [("b", "2"), ("a", "1")])
    assert found.MessageExpiryInterval in (1, 2)
    time.sleep(2)
    third = client_of(server, port, 1, stack)
    third.subscribe("properties")
    expect_nothing_before(third, publisher, "properties")


@pytest.mark.parametrize("has_wildcard", [False, True])
@pytest.mark.parametrize("qos", [0, 1])
def test_subscriptions_during_publishes_miss_nothing_and_get_nothing_twice(
    server: ServerProcess, port: int, stack: contextlib.ExitStack, qos: int, has_wildcard: bool
) -> None:
    publisher = client_of(server, port, 0, stack)
    others = [client_of(server, port, 1, stack, version) for version in (V311, V5)]
    topic, sent = f"rising/{qos}{has_wildcard}/a", ["0"]
    filter = topic.replace("/a", "/+") if has_wildcard else topic
    retain(publisher, topic, b"0")
    for number in range(1, 1500):
        sent.append(str(number))
        publisher.publish(topic, sent[-1], qos=1, retain=True)
        if number % 100 == 50:
            for other in others:
                other.unsubscribe(filter)
                while not other.messages.empty():
                    other.messages.get()
                assert other.subscribe(filter, qos=qos) == [qos]
                sent.append(f"{number} to {other}")
                publisher.publish(topic, sent[-1], qos=1, retain=True)
                received: list[str] = []
                while not received or received[-1] != sent[-1]:
                    received.append(expect(other)[1].decode())
                assert received == sent[sent.index(received[0]) :]
    publisher.until_acknowledged()


def test_cached_events_are_the_same_for_both_workers(server: ServerProcess, port: int, stack: contextlib.ExitStack) -> None:
    publisher, other = client_of(server, port, 0, stack), client_of(server, port, 1, stack)
    retain(publisher, "cache-m", b'{"a":1}')
    pusher = connect_to(server, 1, stack)
    pusher.subscribe("cache-m")
    assert pusher.expect("message", "cache-m") == {"a": 1}
    server.publish("cache-m", "e", "event")
    other.subscribe("cache-m", qos=1)
    assert expect(other) == ("cache-m", b"event", True, 1)


def test_anonymous_clients_of_both_workers_share_a_bound(server: ServerProcess, port: int, stack: contextlib.ExitStack) -> None:
    clients = [stack.enter_context(paho_client(port, V5)) for _ in range(8)]
    before = refusals(server)
    for number in range(1008):
        clients[number % 8].publish(f"shared-bound/{number}", b"1", qos=1, retain=True)
    for client in clients:
        client.until_acknowledged()
    assert refusals(server) - before == 8
    for number in range(1008):
        clients[number % 8].publish(f"shared-bound/{number}", b"", qos=1, retain=True)
    for client in clients:
        client.until_acknowledged()


def refusals(server: ServerProcess) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("push1st_refusals_total{") and "quota-exceeded" in line
    )


def test_metric_counts_each_retained_message_once(server: ServerProcess, port: int, stack: contextlib.ExitStack) -> None:
    clients = [client_of(server, port, worker, stack) for worker in (0, 1)]
    for number in range(20):
        clients[number % 2].publish(f"counted/{number}", b"1", qos=1, retain=True)
    for client in clients:
        client.until_acknowledged()
    reader = client_of(server, port, 0, stack)
    retain(clients[0], "counted/last", b"1")
    reader.subscribe("#")
    topics = {"counted/last"}
    while (topic := expect(reader)[0]) != "counted/last":  # the last one that was published comes last
        if topic != "cache-m":  # a cached event does not count
            topics.add(topic)
    assert len(topics) > 20
    wait_until(lambda: sum(by_worker(server, "push1st_mqtt_retained").values()) == len(topics), "the count", 25)


def test_slow_reader_of_40_mebibytes_needs_no_memory_and_stays_connected(
    server: ServerProcess, port: int, stack: contextlib.ExitStack
) -> None:
    publishers = [client_of(server, port, worker, stack) for worker in (0, 1)]
    topics = [f"big/{number}" for number in range(720)]
    for number, topic in enumerate(topics):
        publisher = publishers[number // 360]
        publisher.publish(topic, b"%08d" % number + b"x" * 59_000, qos=1, retain=True)
        if number % 360 == 359:
            publisher.until_acknowledged()
    pids = workers(server).values()
    before = server.resident_bytes(*pids)
    connections = [stack.enter_context(connected(port)) for _ in range(4)]
    for number, connection in enumerate(connections):
        filters = ["big/#"] if number % 2 else topics
        subscribe = SubscribePacket(1, tuple(FilterOptions(filter, 1) for filter in filters))
        connection.sendall(packets.subscribe(subscribe, MQTT_311))
        assert received(connection, (4 if number % 2 else 5) + len(filters))[-1] == 1
    for number, topic in enumerate(topics):
        payload = b"%08d" % number + b"x" * 59_000
        packet_id = number % BLOCK_IDS + 1
        expected = packets.message(PublishPacket(topic, payload, 1, True, packet_id=packet_id), MQTT_311)
        for connection in connections:
            assert received(connection, len(expected)) == expected, topic
            connection.sendall(b"\x40\2" + packet_id.to_bytes(2, "big"))
        if number % 60 == 0:
            time.sleep(0.1)  # the clients read slowly
            assert server.resident_bytes(*pids) - before < 16 << 20
    for topic in topics:
        publishers[0].publish(topic, b"", qos=1, retain=True)
    publishers[0].until_acknowledged()


def connected(port: int) -> socket.socket:
    """Returns a connection whose client the server has accepted."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.settimeout(DEADLINE)
    connection.connect(("127.0.0.1", port))
    connection.sendall(packets.connect(ConnectPacket(MQTT_311, "", username="app-key", password=token().encode())))
    assert received(connection, 4) == b"\x20\2\0\0"
    return connection


def received(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, "the server has closed the connection"
        data += piece
    return bytes(data)


# Faults


def test_retained_messages_outlive_the_death_of_the_publishers_worker(port: int, stack: contextlib.ExitStack) -> None:
    own = free_ports(1)[0]
    with machine(2, settings(own)) as server, contextlib.ExitStack() as first:
        publisher = client_of(server, own, 0, first)
        retain(publisher, "kept/1", b"21.5")
        kill(workers(server)[0])
        until_workers(server, 2)
        for worker in (0, 1):
            client = client_of(server, own, worker, stack)
            client.subscribe("kept/1", qos=1)
            assert expect(client) == ("kept/1", b"21.5", True, 1)


def test_retained_messages_end_with_the_engine(stack: contextlib.ExitStack) -> None:
    own = free_ports(1)[0]
    with machine(2, settings(own)) as server, contextlib.ExitStack() as clients:
        publisher = client_of(server, own, 0, clients)
        retain(publisher, "lost/1", b"21.5")
        before, ready = engine(server), server.output.count("engine ready")
        kill(before)
        wait_until(lambda: not exists(before) and server.output.count("engine ready") > ready, "another engine is there", 40)
        retain(publisher, "lost/2", b"22")
        client = client_of(server, own, 1, clients)
        client.subscribe("lost/1", "lost/2", qos=1)
        assert expect(client)[0] == "lost/2"
