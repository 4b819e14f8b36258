"""Wills over TCP, with paho-mqtt and with bytes: the ends of connections that publish them, their fields, and their rights."""

import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jwt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_311,
    ConnectPacket,
    DisconnectPacket,
    FilterOptions,
    PublishPacket,
    SubscribePacket,
    Will,
)
from tests.support import mqtt_packets as packets
from tests.support.paho import V5, V31, V311, PahoClient, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.receiver import Receiver, receiving

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
LEVELS = pytest.mark.parametrize("level", [MQTT_311, MQTT_5])
PUSH = ["public", "private", "presence"]
SECRET = "a secret that is long enough for tokens"


def mqtt_server(port: int, app: dict[str, Any] | None = None, **server: Any) -> contextlib.AbstractContextManager[ServerProcess]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": PUSH, "publishes": 0}
    config = {"log": {"level": "debug"}, "server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt, **server}}
    return running(config, apps={"app-test": merged(APP, {"secret": SECRET, **(app or {})})})


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    with mqtt_server(port, {"limits": {"payload": 60_000}}, outbox=100_000) as process:
        yield process


def token(*channels: str, user: str = "ann") -> str:
    """Returns an access token of a user."""
    return jwt.encode({"app": "app-test", "origin": "*", "channel": list(channels), "sub": user}, SECRET)


@pytest.fixture
def witness(server: ServerProcess, port: int) -> Iterator[PahoClient]:
    """A client that receives the messages of all channels."""
    with paho_client(port, V5, password=token("*", user="witness")) as client:
        client.subscribe("#", options=SubscribeOptions(2, retainHandling=2))
        yield client


def expect(client: PahoClient, topic: str) -> Any:
    """Returns the next message of a client, which must have this topic."""
    message = client.messages.get(timeout=DEADLINE)
    assert message.topic == topic, (message.topic, message.payload)
    return message


def expect_nothing(server: ServerProcess, witness: PahoClient) -> None:
    """Asserts that the witness has received nothing before the next event of the API."""
    server.publish("end", "e", "1")
    expect(witness, "end")


class Device:
    """A connection of a client whose will has the topic `gone`, and which sends and receives bytes."""

    def __init__(self, port: int, level: int, client_id: str = "device", will: Will | None = None, **fields: Any) -> None:
        self.level = level
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(("127.0.0.1", port))
        will, password = will or Will("gone", b"1"), token("*").encode()
        self.send(packets.connect(ConnectPacket(level, client_id, username="app-key", password=password, will=will, **fields)))
        answer = self.socket.recv(100)
        assert (answer[0], answer[3]) == (0x20, 0), answer.hex(" ")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


# Ends of connections


def read_nothing(server: ServerProcess, device: Device, port: int) -> None:
    device.send(packets.subscribe(SubscribePacket(1, (FilterOptions("flood"),)), device.level))
    server.until_sessions("flood", 1)
    with paho_client(port, V5, password=token("*")) as publisher:
        for _ in range(200):
            publisher.publish("flood", b"x" * 50_000, qos=1)
        publisher.until_acknowledged()


def reset_within_a_packet(server: ServerProcess, device: Device, port: int) -> None:
    device.send(b"\x30\x10\0")
    device.reset()


def terminate(server: ServerProcess, device: Device, port: int) -> None:
    answer = server.signed("POST", "/apps/app-test/users/ann/terminate_connections", {}, secret=SECRET)
    assert answer.status == 200, answer


def take_over(server: ServerProcess, device: Device, port: int) -> None:
    with Device(port, device.level) as other:
        other.send(b"\xe0\0")


ENDS: dict[str, Callable[[ServerProcess, Device, int], object]] = {
    "closed": lambda _server, device, _port: device.socket.close(),
    "shut for writing": lambda _server, device, _port: device.socket.shutdown(socket.SHUT_WR),
    "reset": lambda _server, device, _port: device.reset(),
    "keep alive": lambda _server, _device, _port: None,
    "invalid packet": lambda _server, device, _port: device.send(b"\xf1\0"),
    "second CONNECT": lambda _server, device, _port: device.send(packets.connect(ConnectPacket(device.level, "device"))),
    "lost within a packet": reset_within_a_packet,
    "terminated": terminate,
    "taken over": take_over,
}


@LEVELS
@pytest.mark.parametrize("end", ENDS)
def test_will_is_published_once(server: ServerProcess, port: int, witness: PahoClient, level: int, end: str) -> None:
    with Device(port, level, keep_alive=1 if end == "keep alive" else 60) as device:
        begin = time.monotonic()
        ENDS[end](server, device, port)
        assert expect(witness, "gone").payload == b"1"
        if end == "keep alive":
            assert 1.5 <= time.monotonic() - begin < 4.5
    expect_nothing(server, witness)


@LEVELS
def test_will_of_a_client_that_does_not_read_is_published(
    server: ServerProcess, port: int, witness: PahoClient, level: int
) -> None:
    with Device(port, level) as device:
        read_nothing(server, device, port)
        while witness.messages.get(timeout=DEADLINE).topic != "gone":
            pass


@LEVELS
def test_normal_disconnect_discards_the_will(server: ServerProcess, port: int, witness: PahoClient, level: int) -> None:
    for data in (b"\xe0\0", b"\xe0\1\0" if level == MQTT_5 else b"\xe0\0"):
        with Device(port, level) as device:
            device.send(data)
            assert device.socket.recv(1) == b""
        expect_nothing(server, witness)


@pytest.mark.parametrize("reason", [0x04, 0x80, 0x93])
def test_disconnect_with_another_reason_code_publishes_the_will(port: int, witness: PahoClient, reason: int) -> None:
    with paho_client(port, V5, will=("gone", b"1")) as client:
        client.close(reason)
        assert expect(witness, "gone").payload == b"1"


def test_will_is_published_before_the_messages_of_the_client_that_takes_over(port: int, witness: PahoClient) -> None:
    for _ in range(20):
        with Device(port, MQTT_5, will=Will("state", b"offline")), Device(port, MQTT_5) as device:
            device.send(packets.message(PublishPacket("state", b"online"), MQTT_5) + b"\xe0\0")
            assert expect(witness, "state").payload == b"offline"
            assert expect(witness, "state").payload == b"online"


def test_stop_of_the_server_publishes_wills() -> None:
    port = free_ports(1)[0]
    later = Will("later", b"1", delay=60)
    with receiving() as backend:
        hook = {"url": backend.url, "events": ["client_event"]}
        with mqtt_server(port, {"webhooks": [hook]}) as server, contextlib.ExitStack() as stack:
            for number in range(10):
                stack.enter_context(Device(port, MQTT_5, f"d{number}", Will(f"gone/{number}", b"1")))
            stack.enter_context(Device(port, MQTT_5, "connected", later, session_expiry=60))
            with Device(port, MQTT_5, "absent", later, session_expiry=60) as absent:
                absent.reset()
            server.stop()
            channels = sorted(event["channel"] for event in backend.events)
            assert channels == [f"gone.{number}" for number in range(10)] + ["later", "later"]


# Delays


def metrics(server: ServerProcess) -> str:
    return server.get("/metrics").body.decode()


def delayed(port: int, delay: int, expiry: int = 60, **fields: Any) -> Device:
    """Returns a connection with MQTT 5.0 whose session outlives it, and whose will is delayed. delay, expiry: seconds."""
    will = Will("gone", b"1", delay=delay)
    return Device(port, MQTT_5, "delayed", will, **({"session_expiry": expiry, "clean": False} | fields))


def end(device: Device) -> None:
    """Ends the connection and the session, without the will."""
    device.send(packets.disconnect(DisconnectPacket(session_expiry=0), MQTT_5))
    assert device.socket.recv(100) == b""
    device.socket.close()


@pytest.mark.parametrize(("delay", "expiry"), [(2, 60), (60, 2), (2, 2)])
def test_will_is_published_after_its_delay_or_the_end_of_the_session(
    server: ServerProcess, port: int, witness: PahoClient, delay: int, expiry: int
) -> None:
    with delayed(port, delay, expiry, clean=True) as device:
        device.reset()
    begin = time.monotonic()
    assert expect(witness, "gone").payload == b"1"
    assert 1.9 < time.monotonic() - begin < 3.5
    expect_nothing(server, witness)


def test_will_without_a_delay_is_published_at_once_and_the_session_stays(
    server: ServerProcess, port: int, witness: PahoClient
) -> None:
    for reason in (None, 0x04):
        with delayed(port, 0) as device:
            if reason is None:
                device.reset()
            else:
                device.send(bytes((0xE0, 1, reason)))
            assert expect(witness, "gone").payload == b"1"
    end(delayed(port, 0))
    expect_nothing(server, witness)


def test_will_is_not_published_if_the_client_returns(server: ServerProcess, port: int, witness: PahoClient) -> None:
    with delayed(port, 2) as first:
        first.reset()
    wait_until(lambda: 'push1st_mqtt_sessions{state="connected"} 1.0' in metrics(server), "only the witness is connected")
    with delayed(port, 2) as second:
        time.sleep(2.5)
        end(second)
    expect_nothing(server, witness)


def test_takeover_publishes_the_will_only_if_the_session_ends(server: ServerProcess, port: int, witness: PahoClient) -> None:
    for delay in (0, 60):
        with delayed(port, delay, clean=True), delayed(port, delay):
            expect_nothing(server, witness)
            with delayed(port, delay, clean=True) as third:
                assert expect(witness, "gone").payload == b"1"
                end(third)
    expect_nothing(server, witness)


def test_clean_start_publishes_the_will_before_the_messages_of_the_client(port: int, witness: PahoClient) -> None:
    for _ in range(20):
        with delayed(port, 60, clean=True) as first:
            first.reset()
        with delayed(port, 60, clean=True) as second:
            second.send(packets.message(PublishPacket("gone", b"here"), MQTT_5))
            assert [expect(witness, "gone").payload for _ in range(2)] == [b"1", b"here"]
            end(second)


def test_normal_disconnect_discards_a_delayed_will(server: ServerProcess, port: int, witness: PahoClient) -> None:
    with delayed(port, 1, 2, clean=True) as device:
        device.send(b"\xe0\0")
        time.sleep(3.5)
    expect_nothing(server, witness)


# Fields


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_will_has_its_qos_and_payload(port: int, witness: PahoClient, version: Any, qos: int) -> None:
    with paho_client(port, version, will=("gone", b"\xff\0"), qos=qos) as client:
        client.lose()
        message = expect(witness, "gone")
        assert (message.payload, message.qos, message.retain) == (b"\xff\0", qos, False)


def test_will_has_its_properties_and_expiry(port: int, witness: PahoClient) -> None:
    given: Any = Properties(PacketTypes.WILLMESSAGE)
    given.ContentType = "text/plain"
    given.ResponseTopic = "answers"
    given.CorrelationData = b"7"
    given.UserProperty = [("b", "2"), ("event", "bye")]
    given.MessageExpiryInterval = 100
    with paho_client(port, V5, will=("gone", b"1"), properties=given) as client:
        client.lose()
        found: Any = expect(witness, "gone").properties
    assert (found.ContentType, found.ResponseTopic, found.CorrelationData) == ("text/plain", "answers", b"7")
    assert found.UserProperty == [("b", "2"), ("event", "bye")]
    assert found.MessageExpiryInterval in (99, 100)


@VERSIONS
def test_will_reaches_pusher_clients(server: ServerProcess, port: int, version: Any) -> None:
    with pusher_socket(server) as pusher, paho_client(port, version, will=("room", b'{"state":"gone"}')) as client:
        pusher.subscribe("room")
        client.lose()
        assert pusher.expect("message", "room") == {"state": "gone"}


def test_will_has_the_name_of_its_event(server: ServerProcess, port: int) -> None:
    given: Any = Properties(PacketTypes.WILLMESSAGE)
    given.UserProperty = ("event", "bye")
    with pusher_socket(server) as pusher, paho_client(port, V5, will=("room", b"1"), properties=given) as client:
        pusher.subscribe("room")
        client.lose()
        assert pusher.expect("bye", "room") == 1


@VERSIONS
def test_will_with_retain_becomes_the_retained_message(port: int, witness: PahoClient, version: Any) -> None:
    topic = f"state/{version}"
    with paho_client(port, version, will=(topic, b"offline"), qos=1, retain=True) as client:
        client.publish(topic, b"online", qos=1, retain=True)
        client.until_acknowledged()
        assert expect(witness, topic).payload == b"online"
        client.lose()
        assert expect(witness, topic).retain is False
    with paho_client(port, version) as client:
        client.subscribe(topic, qos=1)
        message = expect(client, topic)
        assert (message.payload, message.retain, message.qos) == (b"offline", True, 1)


def test_empty_will_with_retain_removes_the_retained_message(port: int, witness: PahoClient) -> None:
    with paho_client(port, V5, will=("presence-state", b""), retain=True, password=token("*")) as client:
        client.publish("presence-state", b"here", retain=True)
        assert expect(witness, "presence-state").payload == b"here"
        client.lose()
        assert expect(witness, "presence-state").payload == b""
    with paho_client(port, V5, password=token("*")) as client:
        client.subscribe("presence-state")
        client.publish("presence-state", b"next")
        assert expect(client, "presence-state").payload == b"next"


# Rights


@VERSIONS
@pytest.mark.parametrize("topic", ["private-a", "presence-a", "private-encrypted-a", "$user/ann", "$SYS/a"])
def test_connect_with_a_will_without_the_right_is_rejected(port: int, version: Any, topic: str) -> None:
    with paho_client(port, version, will=(topic, b"1"), password=token("b"), accepted=False) as client:
        assert client.reason == 0x87


def test_no_will_reaches_a_client_without_the_right(server: ServerProcess, port: int, witness: PahoClient) -> None:
    with paho_client(port, V5) as anonymous, paho_client(port, V5, password=token("private-b")) as other:
        for client in (anonymous, other):
            client.subscribe("#", "+", "private-a", "presence-a", options=SubscribeOptions(retainHandling=2))
        for topic in ("private-a", "presence-a"):
            with paho_client(port, V5, will=(topic, b"1"), password=token("*")) as client:
                client.lose()
                expect(witness, topic)
        expect_nothing(server, witness)
        for client in (anonymous, other):
            assert expect(client, "end").payload == b"1"


def refusals(server: ServerProcess, reason: str) -> int:
    found = re.search(rf'^push1st_refusals_total{{reason="{reason}"}} (\d+)', server.get("/metrics").body.decode(), re.MULTILINE)
    return 0 if found is None else int(found[1])


def until_refused(server: ServerProcess, reason: str, text: str, before: int) -> None:
    """Waits until a will is rejected; asserts that its rejection is counted and logged."""
    wait_until(lambda: refusals(server, reason) == before + 1, "the rejected will is counted")
    (line,) = wait_until(lambda: re.findall(r".*will refused.*", server.output), "the rejected will is logged")
    assert text in line
    assert "device" in line


def test_too_large_will_is_dropped_counted_and_logged(server: ServerProcess, port: int, witness: PahoClient) -> None:
    before = refusals(server, "quota-exceeded")
    Device(port, MQTT_5, will=Will("gone", b"x" * 60_001)).reset()
    until_refused(server, "quota-exceeded", "the payload has 60001 bytes, the limit is 60000", before)
    expect_nothing(server, witness)


@pytest.fixture
def backend() -> Iterator[Receiver]:
    with receiving() as one:
        one.act = lambda _: {"allow": True}
        yield one


def test_backend_decides_about_wills_when_they_are_published(backend: Receiver) -> None:
    port = free_ports(1)[0]
    app, password = {"authorize": {"url": backend.url, "on": ["publish"]}}, token("*", user="witness")
    with mqtt_server(port, app) as server, paho_client(port, V5, password=password) as witness:
        witness.subscribe("#")
        device = Device(port, MQTT_311, will=Will("private-w", b"1"))
        assert backend.got == []
        backend.act = lambda _: {"allow": True, "data": "changed"}
        device.reset()
        assert expect(witness, "private-w").payload == b"changed"
        (asked,) = [got.json for got in backend.got]
        assert {name: asked[name] for name in ("on", "channel", "event", "data", "user_id", "ip")} == {
            "on": "publish",
            "channel": "private-w",
            "event": "message",
            "data": 1,
            "user_id": "ann",
            "ip": "127.0.0.1",
        }
        assert asked["socket_id"].startswith("device.")
        before = refusals(server, "not-authorized")
        device = Device(port, MQTT_311, will=Will("private-w", b"1"))
        backend.act = lambda _: {"allow": False}
        device.reset()
        until_refused(server, "not-authorized", "private-w", before)
        expect_nothing(server, witness)
