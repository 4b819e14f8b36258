"""Sessions of MQTT clients that outlive their connections, with paho-mqtt and with bytes: returns, takeovers, ends, rights."""

import contextlib
import itertools
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from push1st.filters import has_wildcard
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ConnectPacket, FilterOptions, PublishPacket, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running, wait_until

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
LEVELS = pytest.mark.parametrize("level", [MQTT_311, MQTT_5])
PINGREQ, PINGRESP = b"\xc0\0", b"\xd0\0"
SESSION_SECONDS = 2
SECRET = "a secret that is long enough for tokens"


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0, "queue": 2000}
    config = {"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt, "outbox": 500_000}}
    with running(
        config,
        apps={
            "app-test": merged(APP, {"secret": SECRET, "limits": {"payload": 60_000}}),
            "app-small": merged(APP, {"key": "small", "limits": {"connections": 2}}),
        },
    ) as process:
        yield process


def token(*channels: str, user: str = "ada") -> str:
    """Returns an access token of a user."""
    return jwt.encode({"app": "app-test", "origin": "*", "channel": list(channels), "sub": user}, SECRET)


@contextlib.contextmanager
def lasting(port: int, level: int, client_id: str, received: int = 0, **fields: Any) -> Iterator[tuple[socket.socket, bytes]]:
    """Opens a connection whose session outlives it. received: the size of the socket's receive buffer; 0: the default.

    Returns the socket, and CONNACK.
    """
    with socket.socket() as connection:
        if received:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received)
        connection.settimeout(DEADLINE)
        connection.connect(("127.0.0.1", port))
        session = {"clean": False, "session_expiry": 3600 if level == MQTT_5 else None}
        connection.sendall(packets.connect(ConnectPacket(level, client_id, username="app-key", **(session | fields))))
        head = connection.recv(2, socket.MSG_WAITALL)
        yield connection, head + connection.recv(head[1], socket.MSG_WAITALL)


def subscribe(connection: socket.socket, level: int, *filters: FilterOptions) -> None:
    connection.sendall(packets.subscribe(SubscribePacket(1, filters), level))
    size = (5 if level == MQTT_5 else 4) + len(filters)
    assert connection.recv(size, socket.MSG_WAITALL)[0] == 0x90


def until_pingresp(connection: socket.socket) -> bytes:
    """Returns all bytes that the server sends before its answer to a ping."""
    connection.sendall(PINGREQ)
    data = b""
    while not data.endswith(PINGRESP):
        data += connection.recv(65_536)
    return data[:-2]


def until_absent(server: ServerProcess, channel: str) -> None:
    """Waits until no client is subscribed to a channel."""
    wait_until(lambda: server.session_count(channel) == 0, "the clients are absent")


def payloads(client: PahoClient, count: int) -> list[bytes]:
    return [client.expect()[1] for _ in range(count)]


def expect_nothing_else(server: ServerProcess, client: PahoClient, topic: str) -> None:
    """Asserts that a client receives nothing before the next event of the API."""
    server.publish(topic.replace("/", "."), "e", "end")
    assert client.expect() == (topic, b"end")


# Returns


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("filter", ["returns/{}", "returns/{}/#"])
def test_returned_client_gets_1000_messages_in_order_and_once(
    server: ServerProcess, port: int, version: Any, qos: int, filter: str
) -> None:
    name = f"{version}-{qos}-{len(filter)}"
    topic = f"returns/{name}"
    with paho_client(port, version, f"device-{name}", clean=False) as client:
        assert not client.is_present
        assert client.subscribe(filter.format(name), qos=qos) == [qos]
    with paho_client(port, version) as sender:
        for number in range(1000):
            sender.publish(topic, b"%d" % number, qos=qos)
        sender.until_acknowledged()
    with paho_client(port, version, f"device-{name}", clean=False) as client:
        assert client.is_present
        assert payloads(client, 1000) == [b"%d" % number for number in range(1000)]
        expect_nothing_else(server, client, topic)


@VERSIONS
def test_no_message_is_lost_or_doubled_while_a_client_comes_and_goes(server: ServerProcess, port: int, version: Any) -> None:
    name = f"goes-{version}"
    with paho_client(port, version, name, clean=False) as client:
        client.subscribe(name, f"{name}/#", qos=2)
    numbers = itertools.count()
    wanted: list[bytes] = []
    found: list[bytes] = []
    with paho_client(port, V5, f"sender-{name}") as sender:
        for _ in range(10):
            with paho_client(port, version, name, clean=False) as client:
                for _ in range(50):
                    wanted.append(b"%d" % next(numbers))
                    sender.publish(name, wanted[-1], qos=2)
                sender.until_acknowledged()
                found += payloads(client, len(wanted) - len(found))
            for _ in range(20):
                wanted.append(b"%d" % next(numbers))
                sender.publish(name, wanted[-1], qos=2)
            sender.until_acknowledged()
    with paho_client(port, version, name, clean=False) as client:
        found += payloads(client, 20)
        expect_nothing_else(server, client, name)
    assert found == wanted


@LEVELS
def test_lost_client_gets_unacknowledged_messages_again(server: ServerProcess, port: int, level: int) -> None:
    name = f"again-{level}"
    with lasting(port, level, name) as (connection, _):
        subscribe(connection, level, FilterOptions(name, 1))
        server.publish(name, "e", "1")
        first = connection.recv(1000)
        assert first[0] == 0x32
    until_absent(server, name)
    with lasting(port, level, name) as (connection, connack):
        assert connack[2] == 1
        assert until_pingresp(connection) == bytes((0x3A, *first[1:]))
        connection.sendall(b"\x40\x02\0\1")
    until_absent(server, name)
    with lasting(port, level, name) as (connection, _):
        assert until_pingresp(connection) == b""


@LEVELS
def test_client_that_does_not_read_keeps_its_messages(server: ServerProcess, port: int, level: int) -> None:
    name = f"slow-{level}"
    with lasting(port, level, name, received=4096, receive_maximum=20) as (connection, _):
        subscribe(connection, level, FilterOptions(name, 0), FilterOptions(f"{name}/kept", 1))
        server.publish(f"{name}.kept", "e", "kept")
        with paho_client(port) as sender:
            for _ in range(200):
                sender.publish(name, b"x" * 50_000, qos=1)
            sender.until_acknowledged()
        until_absent(server, name)
    with lasting(port, level, name) as (connection, connack):
        assert connack[2] == 1
        data = until_pingresp(connection)
        assert data[0] == 0x3A
        assert data.endswith(b"kept")
        assert len(data) < 100


@VERSIONS
def test_returned_client_gets_an_event_on_each_of_its_channels(server: ServerProcess, port: int, version: Any) -> None:
    names = [f"both.{version}.{number}" for number in range(2)]
    with paho_client(port, version, f"both-{version}", clean=False) as client:
        assert client.subscribe(f"both/{version}/#", qos=1) == [1]
    body = {"name": "e", "channels": names, "data": "twice"}
    assert server.signed("POST", "/apps/app-test/events", body, secret=SECRET).status == 200
    with paho_client(port, version, f"both-{version}", clean=False) as client:
        assert sorted(client.expect() for _ in names) == [(name.replace(".", "/"), b"twice") for name in names]


def test_publisher_gets_success_for_a_message_to_an_absent_client(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5, "only", clean=False) as client:
        client.subscribe("only", qos=1)
    until_absent(server, "only")
    with lasting(port, MQTT_5, "publisher") as (connection, _):
        connection.sendall(packets.message(PublishPacket("only", b"x", 1, packet_id=1), MQTT_5))
        assert connection.recv(100) == b"\x40\x02\0\1"
        connection.sendall(packets.message(PublishPacket("nobody", b"x", 1, packet_id=2), MQTT_5))
        assert connection.recv(100) == b"\x40\x03\0\2\x10"


def test_absent_clients_use_no_connection_of_the_app(server: ServerProcess, port: int) -> None:
    for number in range(5):
        with paho_client(port, V311, f"small-{number}", username="small", clean=False) as client:
            client.subscribe("small", qos=1)
    wait_until(lambda: server.session_count("small", "app-small") == 0, "the clients are absent")
    assert server.get("/apps/app-small/channels").json == []
    assert server.post("/apps/app-small/events", {"name": "e", "channels": ["small"], "data": "1"}).status == 200
    for number in range(5):
        with paho_client(port, V311, f"small-{number}", username="small", clean=False) as client:
            assert client.expect() == ("small", b"1")


# Takeovers


@VERSIONS
def test_new_connection_takes_over_the_session(server: ServerProcess, port: int, version: Any) -> None:
    name = f"taken-{version}"
    with paho_client(port, version, name, clean=False) as old:
        old.subscribe(name, qos=1)
        with paho_client(port, version, name, clean=False) as new:
            assert new.is_present
            assert old.expect_end() == (0x8E if version == V5 else 0x80)
            server.publish(name, "e", "1")
            assert new.expect() == (name, b"1")


def test_clients_that_fight_for_a_client_id_are_delayed(server: ServerProcess, port: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(lasting(port, MQTT_5, "fight"))
        start = time.monotonic()
        for _ in range(2):
            _, connack = stack.enter_context(lasting(port, MQTT_5, "fight"))
            assert connack[2:4] == b"\1\0"
        assert time.monotonic() - start >= 2
        start = time.monotonic()
        stack.enter_context(lasting(port, MQTT_5, "peace"))
        assert time.monotonic() - start < 1
    assert re.search("connections take over a client id too often.*client_id=fight", server.output)


# Ends


def test_sessions_end_after_the_longest_expiry(port: int) -> None:
    other = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{other}", "session-expiry": SESSION_SECONDS}
    with running({"server": {"proto": ["mqtt"], "mqtt": mqtt}}):
        for version in (V311, V5):
            with paho_client(other, version, str(version), clean=False) as client:
                client.subscribe("a", qos=1)
        ended = time.monotonic() + SESSION_SECONDS
        with paho_client(other, V5, str(V5), clean=False) as client:
            assert client.is_present
        wait_until(lambda: time.monotonic() > ended + SESSION_SECONDS, "the sessions have ended")
        for version in (V311, V5):
            with paho_client(other, version, str(version), clean=False) as client:
                assert not client.is_present


def test_client_without_a_session_expiry_has_no_session(server: ServerProcess, port: int) -> None:
    for version in (V311, V5):
        for _ in range(2):
            with paho_client(port, version, "clean") as client:
                client.subscribe("clean", qos=1)
        with paho_client(port, version, "clean", clean=False) as client:
            assert not client.is_present
        with paho_client(port, version, "clean") as client:
            assert not client.is_present


# Rights


@VERSIONS
@pytest.mark.parametrize("filter", ["private-lost/1", "private-lost/+", "private-lost/#", "+/1", "#", "$share/g/private-lost/+"])
def test_resumed_session_without_the_right_gets_nothing_of_the_channel(
    server: ServerProcess, port: int, version: Any, filter: str
) -> None:
    name, group = f"lost-{version}-{filter}", filter.startswith("$share/")
    with paho_client(port, version, name, password=token("private-lost.*"), clean=False) as client:
        assert client.subscribe(filter, "public/1", qos=1) == [1, 1]
        server.publish("private-lost.1", "e", "read")
        assert client.expect() == ("private-lost/1", b"read")
    until_absent(server, "public.1")
    server.publish("private-lost.1", "e", "secret")
    server.publish("public.1", "e", "1")
    with paho_client(port, version, name, password=token("private-other.*"), clean=False) as client:
        assert client.is_present
        assert client.expect() == ("public/1", b"1")
        server.publish("private-lost.1", "e", "secret")
        expect_nothing_else(server, client, "public/1")
    with paho_client(port, version, name, password=token("private-lost.*"), clean=False) as client:
        if group or has_wildcard(filter):  # the subscription stays, and the right has returned
            server.publish("private-lost.1", "e", "later")
            while client.expect()[1] != b"later":
                pass
        expect_nothing_else(server, client, "public/1")


@VERSIONS
def test_sessions_belong_to_their_owners(server: ServerProcess, port: int, version: Any) -> None:
    name = f"owned-{version}"
    with paho_client(port, version, name, password=token("*"), clean=False) as client:
        client.subscribe("private-owned", qos=1)
        for is_absent in (False, True):
            if is_absent:
                client.close()
                until_absent(server, "private-owned")
            for stranger in (token("*", user="eve"), None):
                for clean in (False, True):
                    with paho_client(port, version, name, password=stranger, clean=clean, accepted=False) as other:
                        assert other.reason in (0x87, 5)
    server.publish("private-owned", "e", "1")
    with paho_client(port, version, name, password=token("*"), clean=False) as client:
        assert client.is_present
        assert client.expect() == ("private-owned", b"1")


@VERSIONS
@pytest.mark.parametrize("is_absent", [False, True])
def test_anonymous_client_does_not_lock_out_an_identified_one(
    server: ServerProcess, port: int, version: Any, is_absent: bool
) -> None:
    name = f"squatted-{version}-{is_absent}"
    with paho_client(port, version, name, clean=False) as stranger:
        stranger.subscribe("squatted", qos=1)
        if is_absent:
            stranger.close()
        with paho_client(port, version, name, password=token("*"), clean=False) as device:
            assert not device.is_present
            with paho_client(port, version, name, clean=False, accepted=False) as other:
                assert other.reason in (0x87, 5)
