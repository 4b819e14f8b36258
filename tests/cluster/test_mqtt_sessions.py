"""Sessions of MQTT clients over servers that share a broker: resumption, takeover, wills, and what remains after failures."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, ConnectPacket
from tests.cluster.machine import GONE_SECONDS
from tests.cluster.mqtt_sites import MqttServer, mqtt_server, mqtt_servers, until_total
from tests.support import mqtt_packets as packets
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import DEADLINE, wait_until
from tests.support.signing import access_token
from tests.support.valkey import Valkey

CONNECTED, ABSENT = 'push1st_mqtt_sessions{state="connected"', 'push1st_mqtt_sessions{state="absent"'
TAKEN_OVER, SHUTTING_DOWN = 0x8E, 0x8B


@pytest.fixture(scope="module")
def pair() -> Iterator[list[MqttServer]]:
    """Two servers that no test harms."""
    with contextlib.closing(Valkey()) as valkey, mqtt_servers(valkey) as servers:
        yield servers


@contextlib.contextmanager
def lasting(port: int, client_id: str, **fields: Any) -> Iterator[tuple[socket.socket, bytes]]:
    """Opens a connection whose session outlives it. Returns the socket, and CONNACK; b"" if the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
        values: dict[str, Any] = {"clean": False, "session_expiry": 3600, "username": "app-key"} | fields
        connection.sendall(packets.connect(ConnectPacket(MQTT_5, client_id, **values)))
        yield connection, connection.recv(1000)


def received(client: PahoClient, count: int) -> list[int]:
    return [int(client.expect()[1]) for _ in range(count)]


def publish(port: int, topic: str, *numbers: int) -> None:
    """Publishes numbers with QoS 1, and waits for the acknowledgements."""
    with paho_client(port, V311) as sender:
        for number in numbers:
            sender.publish(topic, str(number), qos=1)
        sender.until_acknowledged()


# Resumption


@pytest.mark.parametrize("version", [V311, V5])
def test_session_is_resumed_at_another_server(pair: list[MqttServer], channel: str, version: Any) -> None:
    one, two = pair
    with paho_client(one.port, version, channel, clean=False) as client:
        client.subscribe(channel, f"{channel}/+", qos=1)
        publish(two.port, channel, 1)
        assert received(client, 1) == [1]
    publish(one.port, channel, 2)
    publish(two.port, f"{channel}/a", 3)
    for number in range(4, 50):
        publish(pair[number % 2].port, channel, number)
    with paho_client(two.port, version, channel, clean=False) as client:
        assert client.is_present
        assert received(client, 48) == list(range(2, 50))
        publish(one.port, channel, 50)
        assert received(client, 1) == [50]
    with paho_client(one.port, version, channel, clean=False) as client:
        publish(two.port, channel, 51)
        assert received(client, 1) == [51]


def test_broker_keeps_messages_as_long_as_sessions(valkey: Valkey) -> None:
    seconds = 30 * 86_400
    with mqtt_server(valkey, config={"server": {"mqtt": {"session-expiry": seconds}}}) as server:
        with paho_client(server.port, V311, "device", clean=False) as client:
            client.subscribe("news", qos=1)
        publish(server.port, "news", 1)
        (log,) = (key for key in valkey.ask("KEYS", "*:l:app-test/news").split(b"\r\n") if key.endswith(b"/news"))
        assert int(valkey.ask("TTL", log.decode()).strip(b":\r\n")) >= seconds


def test_unsubscribed_filter_is_not_resumed_at_another_server(pair: list[MqttServer], channel: str) -> None:
    one, two = pair
    with paho_client(one.port, V5, channel, clean=False) as client:
        client.subscribe(channel, f"{channel}/other", qos=1)
        client.unsubscribe(channel)
    publish(two.port, channel, 1)
    publish(two.port, f"{channel}/other", 2)
    with paho_client(two.port, V5, channel, clean=False) as client:
        assert client.is_present
        assert received(client, 1) == [2]


def test_clean_start_ends_the_session_of_another_server(pair: list[MqttServer], channel: str) -> None:
    one, two = pair
    with paho_client(one.port, V311, channel, clean=False) as client:
        client.subscribe(channel, qos=1)
    with paho_client(two.port, V311, channel) as client:
        assert not client.is_present
        publish(one.port, channel, 1)
        client.subscribe(f"{channel}/end", qos=1)
        publish(one.port, f"{channel}/end", 2)
        assert received(client, 1) == [2]
    with paho_client(one.port, V311, channel, clean=False) as client:
        assert not client.is_present


# Takeover


@pytest.mark.parametrize("clean", [False, True])
def test_client_id_is_taken_over_from_another_server(pair: list[MqttServer], channel: str, clean: bool) -> None:
    one, two = pair
    with paho_client(one.port, V5, channel, clean=clean) as old:
        old.subscribe(channel, qos=1)
        with paho_client(two.port, V5, channel, clean=clean) as new:
            assert new.is_present is not clean
            assert old.expect_end() == TAKEN_OVER
            if clean:
                new.subscribe(channel, qos=1)
            publish(one.port, channel, 1)
            assert received(new, 1) == [1]
            assert old.messages.empty()


def test_client_id_of_another_owner_is_not_taken_over(pair: list[MqttServer], channel: str) -> None:
    one, two = pair
    password = access_token({"app": "app-test", "channel": "*", "sub": "ada"})
    with paho_client(one.port, V5, channel, password=password) as old:
        with paho_client(two.port, V5, channel, accepted=False) as new:
            assert new.reason == 0x87
        assert old.ends.empty()


def test_one_of_many_connections_with_one_client_id_remains(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as servers, contextlib.ExitStack() as stack:
        results: list[tuple[socket.socket, bytes]] = []

        def connect(port: int) -> None:
            with contextlib.suppress(OSError):
                results.append(stack.enter_context(lasting(port, "race")))

        threads = [threading.Thread(target=connect, args=(servers[number % 2].port,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until_total(servers, CONNECTED, 1)
        until_total(servers, ABSENT, 0)
        accepted = [connection for connection, connack in results if connack[3:4] == b"\0"]
        alive = [one for one in accepted if _answers(one)]
        assert len(alive) == 1
        for connection in alive:
            connection.close()
        until_total(servers, CONNECTED, 0)
        until_total(servers, ABSENT, 2)  # both servers count the only session


def _answers(connection: socket.socket) -> bool:
    """Returns whether the server answers a ping, which it does after all other packets."""
    with contextlib.suppress(OSError):
        connection.sendall(b"\xc0\0")
        while data := connection.recv(1000):
            if data.endswith(b"\xd0\0"):
                return True
    return False


def test_stopped_server_loses_its_client_after_a_second(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two), paho_client(one.port, V5, "device", clean=False) as old:
        old.subscribe("news", qos=1)
        publish(two.port, "news", 1)
        assert received(old, 1) == [1]
        time.sleep(0.6)  # the server stores the progress of the client
        one.pause()
        try:
            began = time.monotonic()
            with paho_client(two.port, V5, "device", clean=False) as new:
                assert new.is_present
                assert 0.9 < time.monotonic() - began < 3
                publish(two.port, "news", 2)
                assert received(new, 1) == [2]
                time.sleep(max(0, began + 5 - time.monotonic()))
                one.go_on()
                assert old.expect_end() == TAKEN_OVER
                publish(two.port, "news", 3)
                assert received(new, 1) == [3]
                assert old.messages.empty()
                until_total([one], CONNECTED, 0)
                until_total([two], CONNECTED, 1)
        finally:
            one.go_on()
        publish(one.port, "news", 4)
        with paho_client(one.port, V5, "device", clean=False) as client:
            assert received(client, 1) == [4]


# Servers that end


def test_session_of_a_killed_server_is_resumed(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two):
        with paho_client(one.port, V5, "device", clean=False) as client:
            client.subscribe("news", "news/+", qos=1)
            client.subscribe("seldom", qos=0)
            publish(two.port, "news", 1, 2)
            assert received(client, 2) == [1, 2]
            time.sleep(0.6)  # the server stores the progress of the client
            one.kill()
            publish(two.port, "news", 3)
            publish(two.port, "news/a", 4)
        with paho_client(two.port, V5, "device", clean=False) as client:
            assert client.is_present
            assert received(client, 2) == [3, 4]
            publish(two.port, "seldom", 5)
            assert received(client, 1) == [5]
        one.start()


def test_will_of_a_killed_servers_client_is_published_once(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two), paho_client(two.port, V311) as watcher:
        watcher.subscribe("wills/+", qos=1)
        with contextlib.ExitStack() as stack:
            for name, clean in (("brief", True), ("lasting", False), ("back", True), ("back-lasting", False)):
                stack.enter_context(paho_client(one.port, V311, name, clean=clean, will=(f"wills/{name}", b"1"), qos=1))
            one.kill()
        with paho_client(two.port, V311, "back"), paho_client(two.port, V311, "back-lasting", clean=False) as client:
            assert client.is_present
            began = time.monotonic()
            topics = {watcher.messages.get(timeout=GONE_SECONDS + 8).topic for _ in range(2)}
            assert topics == {"wills/brief", "wills/lasting"}
            assert time.monotonic() - began < GONE_SECONDS + 5
            time.sleep(1.5)
            assert watcher.messages.empty()
        one.start()


def test_clients_of_a_server_that_stops_resume_elsewhere(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two), paho_client(two.port, V311) as watcher, contextlib.ExitStack() as stack:
        watcher.subscribe("wills/+", qos=1)
        clients = [
            stack.enter_context(paho_client(one.port, V5, name, clean=name == "brief", will=(f"wills/{name}", b"1"), qos=1))
            for name in ("brief", "gone", "back")
        ]
        for client in clients:
            client.subscribe("news", qos=1)
        one.server.signal(signal.SIGTERM)
        for client in clients:
            assert client.expect_end() == SHUTTING_DOWN
        one.server.wait()
        stopped = time.monotonic()
        publish(two.port, "news", 1)
        with paho_client(two.port, V5, "back", clean=False) as client:
            assert client.is_present
            assert received(client, 1) == [1]
            topics = {watcher.messages.get(timeout=10).topic for _ in range(2)}
            assert topics == {"wills/brief", "wills/gone"}
            assert time.monotonic() - stopped < 10
            time.sleep(1.5)
            assert watcher.messages.empty()
        one.start()


# The broker


def test_connected_clients_keep_their_sessions_when_the_broker_returns_empty(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two):
        with paho_client(one.port, V5, "absent", clean=False) as client:
            client.subscribe("news", qos=1)
        with paho_client(one.port, V5, "device", clean=False) as client:
            client.subscribe("news", qos=1)
            valkey.kill()
            valkey.start()
            until_total([one, two], CONNECTED, 1)
            wait_until(lambda: _publishes(two, "news"), "the broker is back", 20)
            assert received(client, 1) == [7]
            wait_until(lambda: _sessions(valkey) == 1, "the session is stored again", 15)
        publish(two.port, "news", 8)
        with paho_client(two.port, V5, "device", clean=False) as client:
            assert client.is_present
            assert received(client, 1) == [8]
        with paho_client(two.port, V5, "absent", clean=False) as client:
            assert not client.is_present


def _publishes(server: MqttServer, topic: str) -> bool:
    answer = server.server.post("/apps/app-test/events", {"name": "e", "channels": [topic], "data": 7})
    return answer.status == 200


def _sessions(valkey: Valkey) -> int:
    return len([one for one in valkey.ask("KEYS", "*:s:*").split() if b":s:" in one])


def test_clients_without_a_session_are_admitted_while_the_broker_is_away(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two):
        valkey.kill()
        time.sleep(0.5)
        began = time.monotonic()
        with paho_client(one.port, V5, "brief") as brief:
            assert time.monotonic() - began < 2
            with paho_client(one.port, V5, "device", clean=False, accepted=False) as client:
                assert client.reason == 0x88
            valkey.start()
            wait_until(lambda: _publishes(two, "x"), "the broker is back", 20)
            wait_until(lambda: _sessions(valkey) == 1, "the client id is claimed", 15)
            with paho_client(two.port, V5, "brief"):
                assert brief.expect_end() == TAKEN_OVER


def test_full_broker_rejects_sessions_and_keeps_the_stored_ones(valkey: Valkey) -> None:
    with mqtt_servers(valkey) as (one, two):
        with paho_client(one.port, V5, "known", clean=False) as client:
            client.subscribe("news", qos=1)
        valkey.ask("CONFIG", "SET", "maxmemory", "1")
        for name in ("new", "known"):  # the filters of a known session need memory, too
            with paho_client(two.port, V5, name, clean=False, accepted=False) as client:
                assert client.reason == 0x88
        with paho_client(two.port, V5, "brief"):
            valkey.ask("CONFIG", "SET", "maxmemory", "0")
        publish(one.port, "news", 1)
        with paho_client(one.port, V5, "known", clean=False) as client:
            assert client.is_present
            assert received(client, 1) == [1]


# Clocks


def test_clocks_of_servers_do_not_end_sessions(valkey: Valkey, clock: Callable[[str], Callable[[int], object]]) -> None:
    shift = clock("two")
    with mqtt_server(valkey, config={"server": {"mqtt": {"session-expiry": 4}}}) as two:
        shift(5)
        os.environ.pop("PYTHONPATH", None)
        with mqtt_server(valkey, config={"server": {"mqtt": {"session-expiry": 4}}}) as one:
            for number in range(4):
                server, other = (one, two) if number % 2 else (two, one)
                with paho_client(server.port, V311, "device", clean=False) as client:
                    assert client.is_present is (number > 0)
                    client.subscribe("news", qos=1)
                publish(other.port, "news", number)
                with paho_client(other.port, V311, "device", clean=False) as client:
                    assert client.is_present
                    assert received(client, 1) == [number]
