"""The limits of an app and of the server for MQTT clients, targeted events, the end of tokens and users, and the stop."""

import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import ConnectPacket
from tests.support import mqtt_packets as packets
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V311, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running, wait_until
from tests.support.raw_socket import raw_socket
from tests.support.signing import access_token

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
OVER = pytest.mark.parametrize("path", ["", "/mqtt"], ids=["TCP", "WebSocket"])
PUSH = ["public", "private", "presence"]


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    """Runs a server with an MQTT address."""
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": PUSH, "publishes": 50}
    limits = {"connections": 2, "subscriptions": 3, "payload": 100, "event-name": 10}
    apps = {"app-small": merged(APP, {"key": "small-key", "limits": limits})}
    config = {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "outbox": 300_000}}
    with running(config, apps=apps) as process:
        yield process


def series(server: ServerProcess, name: str, label: str) -> float:
    """Returns the value of a series of `/metrics` with one label."""
    text = server.get("/metrics").body.decode()
    found = re.search(rf'(?m)^push1st_{name}{{\w+="{label}"}} ([0-9.e+]+)$', text)
    return float(found[1]) if found else 0.0


# Limits of the app


@VERSIONS
@OVER
def test_connection_over_the_limit_is_rejected(server: ServerProcess, port: int, version: Any, path: str) -> None:
    at, before = server.ws_port if path else port, series(server, "refusals_total", "quota-exceeded")
    with paho_client(at, version, "one", "small-key", path=path), paho_client(port, version, "two", "small-key"):
        with paho_client(at, version, "three", "small-key", accepted=False, path=path) as third:
            assert third.reason == (0x97 if version == V5 else 0x88)  # paho-mqtt shows the code 3 of 3.1.1 as 88
        assert series(server, "refusals_total", "quota-exceeded") == before + 1
    wait_until(lambda: series(server, "app_connections", "app-small") == 0, "all have left")


@VERSIONS
def test_subscriptions_over_the_limit_are_rejected(server: ServerProcess, port: int, version: Any) -> None:
    with paho_client(port, version, username="small-key") as client:
        rejected = 0x97 if version == V5 else 0x80
        assert client.subscribe("a", "b/+", "a", "$SYS/#", "d", "#") == [0, 0, 0, 0, rejected, rejected]
        client.unsubscribe("b/+")
        assert client.subscribe("#") == [0]
        client.publish("d", "x")
        assert client.expect() == ("d", b"x")


def test_payload_over_the_limit_is_dropped(server: ServerProcess, port: int) -> None:
    answers = {5: ("4003000797", "5003000797"), 4: ("40020007", "50020007")}
    with paho_client(port, V311, "reader", "small-key") as reader:
        reader.subscribe("room")
        for level, acknowledgements in answers.items():
            with connected(port, level, "sender", username="small-key") as sender:
                sender.publish("room", b"x" * 101)
                for qos, answer in enumerate(acknowledgements, 1):
                    sender.publish("room", b"x" * 101, qos, 7)
                    sender.expect(bytes.fromhex(answer))
                sender.publish("room", b"x" * 100)
                assert reader.expect() == ("room", b"x" * 100)
    wait_until(lambda: server.output.count("message is too large") == 1, "one line for the app")


def test_event_name_over_the_limit_is_rejected(server: ServerProcess, port: int) -> None:
    with (
        raw_socket(server, "room", key="small-key") as reader,
        connected(port, 5, "sender", username="small-key") as sender,
    ):
        for name, answer in (("n" * 11, "4003000783"), ("pusher:x", "4003000783"), ("n" * 10, "40020007")):
            sender.publish("room", b"x", 1, 7, properties=encode.user_property("event", name))
            sender.expect(bytes.fromhex(answer))
        assert reader.expect("n" * 10, "room") == "x"


# Limits of the server


def test_client_over_its_rate_is_not_read_and_loses_nothing(server: ServerProcess, port: int) -> None:
    with paho_client(port) as reader, connected(port, 5, "fast") as fast, paho_client(port) as other:
        reader.subscribe("fast", "calm")
        start = time.monotonic()
        fast.send(b"".join(fast.message("fast", b"%d" % number) for number in range(150)))
        other.publish("calm", "x")
        fast.expect_nothing()
        assert time.monotonic() - start > 1.5
        received = [reader.expect() for _ in range(151)]
    assert [payload for topic, payload in received if topic == "fast"] == [b"%d" % number for number in range(150)]
    assert received.index(("calm", b"x")) < 100


@pytest.mark.parametrize("qos", [0, 1])
def test_client_that_does_not_read_is_disconnected(server: ServerProcess, port: int, qos: int) -> None:
    before = series(server, "cut_offs_total", "slow")
    with connected(port, 5, "slow", receive_maximum=65535) as slow, paho_client(port) as reader:
        slow.subscribe("flood", qos)
        reader.subscribe("flood")

        def is_over() -> bool:
            for _ in range(20):
                server.publish("flood", "e", "x" * 10_000)
                reader.expect()
            return series(server, "cut_offs_total", "slow") > before

        if qos:  # the window bounds the output, and further messages wait
            for _ in range(20):
                is_over()
            assert series(server, "cut_offs_total", "slow") == before
            assert series(server, "mqtt_dropped_total", "queue-full") > 0
        else:
            wait_until(is_over, "the slow client is disconnected", 30)


# The end of a token and of a user


@OVER
@VERSIONS
def test_end_of_the_token_ends_the_connection(server: ServerProcess, port: int, path: str, version: Any) -> None:
    password = access_token({"app": "app-test", "channel": "*", "exp": int(time.time()) + 2})
    with paho_client(server.ws_port if path else port, version, password=password, path=path) as client:
        client.subscribe("private-room")
        server.publish("private-room", "e", "x")
        assert client.expect() == ("private-room", b"x")
        end = client.expect_end()
        if version == V5:
            assert end == 0xA0
    with paho_client(server.ws_port if path else port, version, password=password, path=path, accepted=False) as client:
        assert client.reason == 0x86


@OVER
def test_terminated_user_is_disconnected(server: ServerProcess, port: int, path: str) -> None:
    at = server.ws_port if path else port
    mine, other = (access_token({"app": "app-test", "channel": "*", "sub": user}) for user in ("ann", "bob"))
    with (
        paho_client(at, password=mine, path=path) as one,
        paho_client(port, V311, password=mine) as two,
        paho_client(at, password=other, path=path) as stranger,
    ):
        answer = server.signed("POST", "/apps/app-test/users/ann/terminate_connections", {})
        assert answer.status == 200, answer
        assert one.expect_end() == 0x98
        two.expect_end()
        stranger.subscribe("room")
        server.publish("room", "e", "x")
        assert stranger.expect() == ("room", b"x")


# Events for some connections


@pytest.mark.parametrize("qos", [0, 1])
def test_event_of_the_api_reaches_a_device_by_its_id(server: ServerProcess, port: int, qos: int) -> None:
    with paho_client(port, V311, "pump-1") as one, paho_client(port, V5, "pump-2") as two, paho_client(port, V5, "a.b") as dotted:
        clients = (one, two, dotted)
        for client in clients:
            client.subscribe("room", qos=qos)
        sessions = {
            one["id"].rsplit(".", 2)[0]: one["id"] for one in server.get("/apps/app-test/channels/room/").json["sessions"]
        }
        assert set(sessions) == {"pump-1", "pump-2", "a.b"}
        for name in ("pump-1", "a.b"):
            server.publish("room", "e", f"multicast {name}", options={"delivery": "multicast", "session": name})
        server.publish("room", "e", "unicast", options={"delivery": "unicast", "session": sessions["pump-2"]})
        server.publish("room", "e", "not pump-2", socket_id=sessions["pump-2"])
        server.publish("room", "e", "end")
        for client, expected in (
            (one, ["multicast pump-1", "not pump-2"]),
            (two, ["unicast"]),
            (dotted, ["multicast a.b", "not pump-2"]),
        ):
            assert [client.expect() for _ in range(len(expected) + 1)] == [("room", text.encode()) for text in (*expected, "end")]


def test_raw_client_answers_a_device_by_its_id(server: ServerProcess, port: int) -> None:
    with (
        paho_client(port, client_id="pump-1") as device,
        paho_client(port, client_id="pump-2") as other,
        raw_socket(server, "room") as raw,
    ):
        for client in (device, other):
            client.subscribe("room")
        device.publish("room", "question")
        asked = raw.receive()
        raw.publish("room", "answer", "yes", delivery="unicast", session=asked["#msg-from"])
        raw.publish("room", "end", "end")
        assert [device.expect()[1] for _ in range(3)] == [b"question", b"yes", b"end"]
        assert [other.expect()[1] for _ in range(2)] == [b"question", b"end"]


# The stop


def test_stopping_server_disconnects_clients_in_slices() -> None:
    own = free_ports(1)[0]
    config = {"server": {"proto": ["mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{own}"}, "drain": 4}}
    with running(config) as server, ExitStack() as stack:
        sockets: list[socket.socket] = []
        for number in range(240):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", own), DEADLINE))
            connection.sendall(packets.connect(ConnectPacket(5 if number % 2 else 4, f"c{number}", username="app-key")))
            assert connection.recv(100)[3] == 0
            sockets.append(connection)
        server.signal()
        ended: list[float] = []
        lasts: list[str] = []

        def until_end(connection: socket.socket) -> None:
            lasts.append(connection.recv(100).hex())
            ended.append(time.monotonic())

        threads = [threading.Thread(target=until_end, args=(one,)) for one in sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(lasts) == [""] * 120 + ["e0018b"] * 120
        times = sorted(ended)
        assert 1 + sum(later - earlier > 0.05 for earlier, later in itertools.pairwise(times)) >= 4
        server.wait()
