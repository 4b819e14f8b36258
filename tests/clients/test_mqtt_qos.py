"""QoS 1 and 2 of MQTT over TCP, with paho-mqtt and with bytes: both directions, order, windows, and rejections."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V31, V311, paho_client
from tests.support.process import DEADLINE, ServerProcess, free_ports, running
from tests.support.pusher_socket import pusher_socket

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
LEVELS = pytest.mark.parametrize("level", [MQTT_311, MQTT_5])
INFLIGHT = 20


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private"], "inflight": INFLIGHT, "publishes": 0}
    with running({"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt}}) as process:
        yield process


# With paho-mqtt


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_messages_arrive_once_and_in_order(server: ServerProcess, port: int, version: Any, qos: int) -> None:
    topic = f"order/{qos}"
    with paho_client(port, version) as sender, paho_client(port, version) as receiver:
        assert receiver.subscribe(topic, qos=qos) == [qos]
        for number in range(300):
            sender.publish(topic, str(number), qos=qos)
        found = [receiver.messages.get(timeout=DEADLINE) for _ in range(300)]
        assert [int(one.payload) for one in found] == list(range(300))
        assert {one.qos for one in found} == {qos}
        sender.until_acknowledged()


@VERSIONS
def test_event_of_the_api_has_qos_1(server: ServerProcess, port: int, version: Any) -> None:
    with paho_client(port, version) as client:
        client.subscribe("orders", qos=2)
        server.publish("orders", "changed", "paid")
        message = client.messages.get(timeout=DEADLINE)
        assert (message.payload, message.qos) == (b"paid", 1)


def test_client_event_of_pusher_has_qos_0(server: ServerProcess, port: int) -> None:
    answer = server.post("/apps/app-test/token/access", {"origin": "*", "channel": ["private-chat"], "ttl": 0})
    with pusher_socket(server) as pusher, paho_client(port, V311, password=answer.body.decode()) as client:
        pusher.subscribe("private-chat")
        client.subscribe("private-chat", qos=1)
        pusher.send("client-say", "hi", "private-chat")
        message = client.messages.get(timeout=DEADLINE)
        assert (message.payload, message.qos) == (b"hi", 0)


def test_properties_arrive_with_qos_1(server: ServerProcess, port: int) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "text/plain"
    properties.ResponseTopic = "answers"
    properties.CorrelationData = b"7"
    properties.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    properties.MessageExpiryInterval = 60
    with paho_client(port) as client:
        client.subscribe("questions", qos=1)
        client.publish("questions", "?", qos=1, properties=properties)
        found: Any = client.messages.get(timeout=DEADLINE).properties
        assert (found.ContentType, found.ResponseTopic, found.CorrelationData) == ("text/plain", "answers", b"7")
        assert found.UserProperty == [("b", "1"), ("a", "2"), ("b", "3")]
        assert 58 <= found.MessageExpiryInterval <= 60


@pytest.mark.parametrize("qos", [1, 2])
def test_messages_between_workers_arrive_once_and_in_order(qos: int) -> None:
    own = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{own}", "push": ["public"], "publishes": 0}
    with (
        running({"server": {"proto": ["pusher", "mqtt"], "workers": 2, "mqtt": mqtt}}),
        contextlib.ExitStack() as stack,
    ):
        receivers = [stack.enter_context(paho_client(own, V311)) for _ in range(4)]
        sender = stack.enter_context(paho_client(own, V5))
        for receiver in receivers:
            assert receiver.subscribe("order", qos=qos) == [qos]
        for number in range(200):
            sender.publish("order", str(number), qos=qos)
        sender.until_acknowledged()
        for receiver in receivers:
            assert [int(receiver.expect()[1]) for _ in range(200)] == list(range(200))
            assert receiver.messages.empty()


# Messages of the client, with bytes


@LEVELS
def test_own_copy_arrives_before_puback_and_after_pubrec(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level) as client:
        client.subscribe("own", 2)
        client.publish("own", b"1", 1, 7)
        client.expect(client.message("own", b"1", 1, 1) + bytes.fromhex("40 02 00 07"))
        client.publish("own", b"2", 2, 8)
        client.expect(bytes.fromhex("50 02 00 08") + client.message("own", b"2", 2, 2))
        client.send(bytes.fromhex("62 02 00 08"))
        client.expect(bytes.fromhex("70 02 00 08"))


@LEVELS
def test_message_without_subscribers(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level) as client:
        client.publish("nobody", qos=1, packet_id=1)
        client.expect(bytes.fromhex("40 03 00 01 10" if level == MQTT_5 else "40 02 00 01"))
        client.publish("nobody", qos=2, packet_id=2)
        client.expect(bytes.fromhex("50 02 00 02"))


REJECTED = {
    "no right": ("private-a", "x", b"", 0x87),
    "topic of the server": ("$SYS/a", "x", b"", 0x87),
    "topic of a shared subscription": ("$share/g/a", "x", b"", 0x87),
    "name of an event": ("a", "x", bytes.fromhex("26 00 05") + b"event" + bytes.fromhex("00 08") + b"pusher:a", 0x83),
    "payload": ("a", 20_000 * "x", b"", 0x97),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_message_has_a_reason_code(server: ServerProcess, port: int, name: str) -> None:
    topic, payload, properties, reason = REJECTED[name]
    with connected(port, MQTT_5) as client:
        for qos, first in ((1, 0x40), (2, 0x50)):
            client.publish(topic, payload.encode(), qos, qos, properties=properties)
            client.expect(bytes((first, 3, 0, qos, reason)))
        client.publish(topic, payload.encode(), properties=properties)
        client.expect_nothing()


def test_rejected_message_is_acknowledged_in_older_versions(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_311) as client:
        client.publish("private-a", qos=1, packet_id=1)
        client.expect(bytes.fromhex("40 02 00 01"))
        client.publish("private-a", qos=2, packet_id=2)
        client.expect(bytes.fromhex("50 02 00 02"))
        client.send(bytes.fromhex("62 02 00 02"))
        client.expect(bytes.fromhex("70 02 00 02"))


@LEVELS
def test_held_message_is_not_published_again(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level, "receiver") as receiver, connected(port, level, "sender") as sender:
        receiver.subscribe("held", 0)
        for payload, dup in ((b"1", False), (b"1", True), (b"other", False)):
            sender.publish("held", payload, 2, 1, dup=dup)
            sender.expect(bytes.fromhex("50 02 00 01"))
        receiver.expect(receiver.message("held", b"1"))
        sender.send(bytes.fromhex("62 02 00 01"))
        sender.expect(bytes.fromhex("70 02 00 01"))
        sender.publish("held", b"2", 2, 1)
        receiver.expect(receiver.message("held", b"2"))
        receiver.expect_nothing()


@LEVELS
def test_message_sent_three_times_without_dup_ends_the_connection(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level) as client:
        for _ in range(2):
            client.publish("again", qos=2, packet_id=1)
            client.expect(bytes.fromhex("50 02 00 01"))
        client.publish("again", qos=2, packet_id=1)
        client.expect_end(bytes.fromhex("e0 01 82") if level == MQTT_5 else b"")


def test_client_above_the_receive_maximum_is_disconnected(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_5) as client:
        for packet_id in range(1, INFLIGHT + 1):
            client.publish("many", qos=2, packet_id=packet_id)
            client.expect(bytes((0x50, 2, 0, packet_id)))
        client.publish("many", qos=2, packet_id=INFLIGHT + 1)
        client.expect_end(bytes.fromhex("e0 01 93"))


def test_older_client_may_send_many_messages_before_it_reads(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_311) as client:
        ids = range(1, 501)
        client.send(b"".join(client.message("many", b"x", 1 + number % 2, number) for number in ids))
        client.send(b"".join(bytes((0x62, 2, number >> 8, number & 255)) for number in ids if number % 2))
        found: dict[int, list[int]] = {}
        for _ in range(750):
            answer = client._connection.recv(4, socket.MSG_WAITALL)
            found.setdefault(answer[0], []).append(answer[2] << 8 | answer[3])
        odd, even = list(ids)[::2], list(ids)[1::2]
        assert found == {0x40: even, 0x50: odd, 0x70: odd}


# Messages to the client, with bytes


def test_receive_maximum_is_obeyed_to_the_message(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_5, receive_maximum=2) as client:
        client.subscribe("window", 2)
        for number in range(5):
            server.publish("window", "message", str(number))
        own = b"\x26\0\5event\0\7message"
        expected = [client.message("window", str(at).encode(), 1, at + 1, properties=own) for at in range(5)]
        client.expect(expected[0] + expected[1])
        client.expect_nothing()
        client.send(bytes.fromhex("40 02 00 02"))
        client.expect(expected[2])
        client.expect_nothing()
        client.send(bytes.fromhex("40 02 00 01 40 02 00 03"))
        client.expect(expected[3] + expected[4])
        client.expect_nothing()


@LEVELS
def test_window_of_the_server_holds_without_receive_maximum(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level, "receiver") as receiver, connected(port, MQTT_311, "sender") as sender:
        receiver.subscribe("window", 2)
        for packet_id in range(1, INFLIGHT + 2):
            sender.publish("window", qos=2, packet_id=packet_id)
        sent = [receiver.message("window", b"x", 2, packet_id) for packet_id in range(1, INFLIGHT + 2)]
        receiver.expect(b"".join(sent[:-1]))
        receiver.send(bytes.fromhex("50 02 00 01"))
        receiver.expect(bytes.fromhex("62 02 00 01"))
        receiver.expect_nothing()
        receiver.send(bytes.fromhex("70 02 00 01"))
        receiver.expect(sent[-1])


@LEVELS
def test_acknowledgement_of_another_qos_ends_the_connection(server: ServerProcess, port: int, level: int) -> None:
    for qos, wrong in ((1, "50 02 00 01"), (2, "40 02 00 01"), (2, "70 02 00 01")):
        with connected(port, level) as client:
            client.subscribe("wrong", qos)
            client.publish("wrong", qos=2, packet_id=9)
            client.expect(bytes.fromhex("50 02 00 09") + client.message("wrong", b"x", qos, 1))
            client.send(bytes.fromhex(wrong))
            client.expect_end(bytes.fromhex("e0 01 82") if level == MQTT_5 else b"")


@LEVELS
def test_unknown_acknowledgements_are_ignored(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level) as client:
        client.send(bytes.fromhex("40 02 00 05 70 02 00 05"))
        client.expect_nothing()
        client.send(bytes.fromhex("50 02 00 05"))
        client.expect(bytes.fromhex("62 02 00 05"))
        client.send(bytes.fromhex("62 02 00 05"))
        client.expect(bytes.fromhex("70 02 00 05"))


def test_small_packets_arrive_within_the_maximum_packet_size(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_5, "receiver", maximum_packet_size=64) as receiver, connected(port, MQTT_5, "sender") as sender:
        receiver.subscribe("size", 1)
        for number, size in enumerate((100, 32, 100, 32), 1):
            sender.publish("size", size * b"x", 1, number)
        receiver.expect(b"".join(receiver.message("size", 32 * b"x", 1, packet_id) for packet_id in (1, 2)))


def test_topic_alias_is_used_from_the_first_message_on(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_5, topic_alias_maximum=1) as client:
        client.subscribe("a", 1)
        client.publish("a", b"1")
        client.expect(bytes.fromhex("30 08 00 01 61 03 23 00 01 31"))
        client.publish("a", b"2", 1, 1)
        client.expect(bytes.fromhex("32 09 00 00 00 01 03 23 00 01 32 40 02 00 01"))


def test_messages_of_a_lost_client_are_published(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_311, "receiver") as receiver:
        receiver.subscribe("last", 1)
        with connected(port, MQTT_311, "sender") as sender:
            sender.send(b"".join(sender.message("last", b"x", 1, number) for number in range(1, 11)))
        receiver.expect(b"".join(receiver.message("last", b"x", 1, number) for number in range(1, 11)))
