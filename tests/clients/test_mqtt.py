"""MQTT over TCP, with paho-mqtt and with bytes: messages between all protocols, rights, rejections, hostile input."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.support.paho import V5, V31, V311, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running
from tests.support.pusher_socket import pusher_socket
from tests.support.raw_socket import raw_socket

PUSH = ["public", "private", "presence"]
VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
LEAKS = ("private-a", "presence-a", "protected-a", "private-a/b", "private-encrypted-a", "private-cache-a")


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    """Runs a server with an MQTT address."""
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": PUSH}
    apps = {
        "app-closed": merged(APP, {"key": "closed-key", "options": {"authorized-only": True}}),
        "app-off": merged(APP, {"key": "off-key", "enable": False}),
        "app-quota": merged(APP, {"key": "quota-key", "limits": {"connections": 1}}),
    }
    with running({"server": {"proto": ["pusher", "websocket", "sse", "mqtt"], "mqtt": mqtt}}, apps=apps) as process:
        yield process


def token(server: ServerProcess, *channels: str, ttl: int = 0) -> str:
    answer = server.post("/apps/app-test/token/access", {"origin": "*", "channel": list(channels), "ttl": ttl})
    assert answer.status == 200, answer
    return answer.body.decode()


@contextlib.contextmanager
def wire(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
        yield connection


def until_end(connection: socket.socket) -> bytes:
    """Returns all bytes until the server ends the connection."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            data += piece
    return data


# Between the protocols


@VERSIONS
def test_message_reaches_clients_of_all_protocols(server: ServerProcess, port: int, version: Any) -> None:
    name = f"sensors.kitchen.{version}"
    topic = name.replace(".", "/")
    with pusher_socket(server) as pusher, raw_socket(server, name) as raw, paho_client(port, version) as client:
        pusher.subscribe(name)
        server.until_sessions(name, 2)
        assert client.subscribe(topic) == [0]
        client.publish(topic, b"21.5")
        assert client.expect() == (topic, b"21.5")
        assert pusher.expect("message", name) == 21.5
        frame = raw.receive()
        assert (frame["event"], frame["channel"], frame["data"]) == ("message", name, 21.5)


@VERSIONS
def test_event_of_the_api_reaches_a_client(server: ServerProcess, port: int, version: Any) -> None:
    with paho_client(port, version) as client:
        client.subscribe("orders/1")
        server.publish("orders.1", "changed", "paid")
        message = client.messages.get(timeout=DEADLINE)
        assert (message.topic, message.payload) == ("orders/1", b"paid")
        if version == V5:
            assert message.properties.UserProperty == [("event", "changed")]  # type: ignore[union-attr]


def test_client_event_of_pusher_reaches_a_client(server: ServerProcess, port: int) -> None:
    with (
        pusher_socket(server) as pusher,
        paho_client(port, V311, password=token(server, "private-chat")) as client,
    ):
        pusher.subscribe("private-chat")
        client.subscribe("private-chat")
        pusher.send("client-say", {"text": "hi"}, "private-chat")
        assert client.expect() == ("private-chat", b'{"text": "hi"}')


def test_payloads_are_unchanged_between_clients(server: ServerProcess, port: int) -> None:
    payloads = [b"", b"text", b'{"a": 1}', b'"quoted"', b"\xff\0\xfe", b'{"base64":"AAAA"}', "Küche".encode(), b"x" * 9000]
    with paho_client(port, V311) as sender, paho_client(port, V5) as receiver:
        receiver.subscribe("payloads")
        for payload in payloads:
            sender.publish("payloads", payload)
        assert [receiver.expect()[1] for _ in payloads] == payloads


def test_unsubscribed_client_gets_nothing(server: ServerProcess, port: int) -> None:
    with paho_client(port) as client:
        client.subscribe("one", "two")
        assert client.unsubscribe("one", "three") == [0, 0x11]
        server.publish("one", "e", "1")
        server.publish("two", "e", "2")
        assert client.expect() == ("two", b"2")


# Rights: a client without the right gets nothing


@pytest.mark.parametrize("version", [V311, V5])
def test_client_without_rights_reads_and_publishes_public_channels_only(server: ServerProcess, port: int, version: Any) -> None:
    denied = 0x87 if version == V5 else 0x80
    with (
        paho_client(port, version) as client,
        paho_client(port, password=token(server, "*")) as owner,
        paho_client(port, version, password=token(server, "private-other", "presence-a*x")) as other,
    ):
        # The event of an earlier run is retained on the cache channel, and is not wanted here.
        assert owner.subscribe(*LEAKS, "end", options=SubscribeOptions(retainHandling=2)) == [0] * (len(LEAKS) + 1)
        for stranger in (client, other):
            assert stranger.subscribe(*LEAKS) == [denied] * len(LEAKS)
            assert stranger.subscribe(*(f"$share/g/{one}" for one in LEAKS)) == [denied] * len(LEAKS)
            assert stranger.subscribe("end") == [0]
            for topic in LEAKS:
                stranger.publish(topic, "forged")
        for topic in LEAKS:
            server.publish(topic.replace("/", "."), "e", "secret")
        server.publish("end", "e", "end")
        for stranger in (client, other):
            assert stranger.expect() == ("end", b"end")
        received = [owner.expect() for _ in range(len(LEAKS) + 1)]
        assert received == [*((topic, b"secret") for topic in LEAKS), ("end", b"end")]


MODULE = """
from push1st.hooks.events import Connecting, Refuse

def decide(question):
    match question:
        case Connecting(protocol="mqtt", client_id="banned"):
            return Refuse(138, "banned")
        case Connecting(protocol="mqtt", username=name, password=password):
            return name == "pump" and password == "open"
        case _:
            return question.channel == "private-mine"
"""


def test_backend_decides_about_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = free_ports(1)[0]
    (tmp_path / "rights.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    authorize = {"url": "py://rights:decide", "on": ["connect", "subscribe"], "filter": ["private-"]}
    mqtt = {"listen": f"tcp://127.0.0.1:{own}"}
    with running({"server": {"proto": ["mqtt"], "mqtt": mqtt}}, apps={"app-test": merged(APP, {"authorize": authorize})}):
        with paho_client(own, client_id="banned", accepted=False) as banned:
            assert banned.reason == 0x8A
        with paho_client(own, username="app-key:pump", password="open") as client:
            assert client.subscribe("private-mine", "private-theirs") == [0, 0x87]
        for name, password in (("app-key:pump", "shut"), ("app-key:valve", "open"), ("app-key", None)):
            with paho_client(own, username=name, password=password, accepted=False):
                pass


# CONNACK, as bytes

CONNECTS = {
    "accepted in 3.1": ("10 0f 00 06 4d 51 49 73 64 70 03 02 00 3c 00 01 61", "20 02 00 04"),
    "unknown protocol name": ("10 0d 00 04 4d 51 54 58 04 02 00 3c 00 01 61", ""),
    "level 2": ("10 0d 00 04 4d 51 54 54 02 02 00 3c 00 01 61", "20 03 00 84 00"),
    "level 6": ("10 0d 00 04 4d 51 54 54 06 02 00 3c 00 01 61", "20 03 00 84 00"),
    "level 3 with the name of 3.1.1": ("10 0d 00 04 4d 51 54 54 03 02 00 3c 00 01 61", "20 02 00 01"),
    "bytes left over in 3.1.1": ("10 0e 00 04 4d 51 54 54 04 02 00 3c 00 01 61 00", ""),
    "bytes left over in 5.0": ("10 0f 00 04 4d 51 54 54 05 02 00 3c 00 00 01 61 00", "20 03 00 81 00"),
    "reserved flag": ("10 0d 00 04 4d 51 54 54 04 03 00 3c 00 01 61", ""),
    "receive maximum 0": ("10 11 00 04 4d 51 54 54 05 02 00 3c 03 21 00 00 00 01 61", "20 03 00 82 00"),
    "control character in the client id in 5.0": ("10 0e 00 04 4d 51 54 54 05 02 00 3c 00 00 01 01", "20 03 00 85 00"),
    "control character in the client id in 3.1.1": ("10 0d 00 04 4d 51 54 54 04 02 00 3c 00 01 01", ""),
    "empty client id without clean session": ("10 0c 00 04 4d 51 54 54 04 00 00 3c 00 00", "20 02 00 02"),
    "no app": ("10 0d 00 04 4d 51 54 54 04 02 00 3c 00 01 61", "20 02 00 04"),
    "disabled app": ("10 16 00 04 4d 51 54 54 04 82 00 3c 00 01 61 00 07 6f 66 66 2d 6b 65 79", "20 02 00 05"),
    "anonymous client of a closed app": (
        "10 19 00 04 4d 51 54 54 04 82 00 3c 00 01 61 00 0a 63 6c 6f 73 65 64 2d 6b 65 79",
        "20 02 00 05",
    ),
    "wrong password": (
        "10 19 00 04 4d 51 54 54 04 c2 00 3c 00 01 61 00 07 61 70 70 2d 6b 65 79 00 01 78",
        "20 02 00 04",
    ),
    "maximum packet size shorter than CONNACK": (
        "10 1c 00 04 4d 51 54 54 05 82 00 3c 05 27 00 00 00 0a 00 01 61 00 07 61 70 70 2d 6b 65 79",
        "",
    ),
    "no CONNECT": ("c0 00", ""),
    "HTTP": ("47 45 54 20 2f", ""),
    "256 MB": ("10 ff ff ff 7f", ""),
    "length of 5 bytes": ("10 ff ff ff ff 01", ""),
}


@pytest.mark.parametrize("name", CONNECTS)
def test_rejected_connect(server: ServerProcess, port: int, name: str) -> None:
    sent, expected = (bytes.fromhex(text) for text in CONNECTS[name])
    with wire(port) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        assert until_end(connection).hex(" ") == expected.hex(" ")
        assert time.monotonic() - start < 5


def test_accepted_connect(server: ServerProcess, port: int) -> None:
    with wire(port) as connection:
        connection.sendall(bytes.fromhex("10 16 00 04 4d 51 54 54 04 82 00 3c 00 01 61 00 07 61 70 70 2d 6b 65 79"))
        assert connection.recv(100) == bytes.fromhex("20 02 00 00")
        connection.sendall(bytes.fromhex("c0 00"))
        assert connection.recv(100) == bytes.fromhex("d0 00")


def test_quota_of_connections(server: ServerProcess, port: int) -> None:
    with paho_client(port, username="quota-key"), paho_client(port, username="quota-key", accepted=False):
        pass


def test_second_connection_with_a_client_id_ends_the_first(server: ServerProcess, port: int) -> None:
    with paho_client(port, client_id="device") as first, paho_client(port, client_id="device"):
        assert first.expect_end() == 0x8E


# Hostile input


def test_flood_of_messages_does_not_stop_other_clients(server: ServerProcess, port: int) -> None:
    with wire(port) as flood, paho_client(port) as client:
        flood.sendall(bytes.fromhex("10 16 00 04 4d 51 54 54 04 82 00 3c 00 01 66 00 07 61 70 70 2d 6b 65 79"))
        assert flood.recv(4) == bytes.fromhex("20 02 00 00")
        flood.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10_000):
                flood.send(b"\x30\x04\0\1fx" * 10_000)
        client.subscribe("calm")
        start = time.monotonic()
        for number in range(20):
            client.publish("calm", str(number))
            assert client.expect() == ("calm", str(number).encode())
        assert time.monotonic() - start < 5
    server.assert_alive()


def test_huge_first_packet_costs_nothing(server: ServerProcess, port: int) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(wire(port)) for _ in range(50)]
        for connection in connections:
            connection.sendall(b"\x10\xff\xff\xff\x7f")
            with contextlib.suppress(OSError):
                connection.sendall(b"x" * 100_000)
        for connection in connections:
            assert until_end(connection) == b""
    server.assert_alive()


def test_metrics_have_the_protocols_and_a_stopping_server_ends_the_connections() -> None:
    own = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{own}"}
    with (
        running({"server": {"proto": ["mqtt"], "mqtt": mqtt, "drain": 0}}) as server,
        paho_client(own) as client,
        paho_client(own, V311),
        paho_client(own, V31),
    ):
        metrics = server.get("/metrics").body.decode()
        assert 'push1st_connections{protocol="mqtt"} 2.0' in metrics
        assert 'push1st_connections{protocol="mqtt5"} 1.0' in metrics
        server.signal()
        assert client.expect_end() == 0x8B
