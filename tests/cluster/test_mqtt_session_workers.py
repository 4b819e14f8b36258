"""Sessions of MQTT clients over the workers of one machine: takeover, and reload."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.machine import MAX_TRIES, by_worker, kill, reload, workers
from tests.cluster.mqtt_sites import MqttServer, mqtt_server, total
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import wait_until

CONNECTED = "push1st_mqtt_sessions"


@pytest.fixture
def pair() -> Iterator[MqttServer]:
    """A machine with two workers to harm."""
    with mqtt_server(None, workers=2) as server:
        yield server


def worker_of_next(server: MqttServer, stack: contextlib.ExitStack, **client: Any) -> tuple[int, PahoClient]:
    """Opens a connection. Returns the number of its worker, and the client."""
    before = by_worker(server.server, "push1st_connections_opened_total")
    found = stack.enter_context(paho_client(server.port, **client))
    after = by_worker(server.server, "push1st_connections_opened_total")
    (number,) = [number for number, count in after.items() if count > before.get(number, 0)]
    return number, found


def test_client_id_is_taken_over_from_another_worker(pair: MqttServer) -> None:
    with contextlib.ExitStack() as stack:
        used, clients = set[int](), list[PahoClient]()
        while len(used) < 2:
            assert len(clients) < MAX_TRIES
            number, client = worker_of_next(pair, stack, client_id="twice")
            client.stay_away()
            used.add(number)
            clients.append(client)
        assert all(client.expect_end() for client in clients[:-1])
        wait_until(lambda: total(pair, 'push1st_mqtt_sessions{state="connected"') == 1, "one connection remains")
        assert clients[-1].ends.empty()


def test_session_is_resumed_at_another_worker_after_the_death_of_its_worker(pair: MqttServer) -> None:
    with contextlib.ExitStack() as stack:
        number, client = worker_of_next(pair, stack, client_id="device", clean=False)
        client.subscribe("news", qos=1)
        kill(workers(pair.server)[number])
        client.expect_end()
    with paho_client(pair.port, V311) as sender:
        for count in range(50):
            sender.publish("news", str(count), qos=1)
        sender.until_acknowledged()
    with paho_client(pair.port, V5, "device", clean=False) as client:
        assert client.is_present
        assert [int(client.expect()[1]) for _ in range(50)] == list(range(50))


def test_reload_loses_no_message_of_a_session(pair: MqttServer) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(paho_client(pair.port, V311, f"device-{number}", clean=False)) for number in range(8)]
        for client in clients:
            client.subscribe("news", qos=1)
        sender = stack.enter_context(paho_client(pair.port, V311, "sender", clean=False))
        for count in range(50):
            sender.publish("news", str(count), qos=1)
        reload(pair.server)
        for count in range(50, 100):
            sender.publish("news", str(count), qos=1)
        sender.until_acknowledged()
        for client in clients:
            found = set[int]()
            while len(found) < 100:
                found.add(int(client.expect()[1]))
            assert client.is_present
