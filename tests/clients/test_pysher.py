"""pysher, a Python client library of protocol 6."""

import json
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pysher
import pytest

from tests.support.process import DEADLINE, ServerProcess, wait_until
from tests.support.pusher_socket import PusherSocket


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    made = pysher.Pusher(
        "app-key",
        secure=False,
        secret="secret",
        user_data={"user_id": "snake", "user_info": {"name": "Snake"}},
        custom_host="127.0.0.1",
        port=server.ws_port,
    )
    made.connect()
    wait_until(lambda: made.connection.state == "connected", "pysher connects")
    yield made
    made.disconnect(timeout=1)  # its thread sometimes notices the end only after ten seconds; it is a daemon thread


def test_does_not_reconnect_after_4001(server: ServerProcess) -> None:
    errors: queue.Queue[Any] = queue.Queue()
    made = pysher.Pusher("nobodys-key", secure=False, custom_host="127.0.0.1", port=server.ws_port, reconnect_interval=0)
    made.connection.bind("pusher:error", errors.put)
    made.connect()
    assert errors.get(timeout=DEADLINE)["code"] == 4001
    made.connection.join(DEADLINE)
    assert not made.connection.is_alive()
    assert errors.empty()


def test_stays_connected_after_a_wrong_signature(server: ServerProcess, client: Any, channel: str) -> None:
    errors: queue.Queue[Any] = queue.Queue()
    client.connection.event_handler = lambda event, data, _: errors.put((event, data))
    client.subscribe(f"private-{channel}", auth=f"app-key:{'0' * 64}")
    found = [errors.get(timeout=DEADLINE) for _ in range(2)]
    assert [event for event, _ in found] == ["pusher:subscription_error", "pusher:error"]
    assert found[1][1]["code"] is None
    client.subscribe(channel)
    server.until_sessions(channel, 1)
    assert client.connection.state == "connected"
    assert not client.connection.disconnect_called


def bound(subscription: Any, event: str) -> "queue.Queue[str]":
    """Returns the data of events with this name that the subscription receives."""
    received: queue.Queue[str] = queue.Queue()
    subscription.bind(event, received.put)
    return received


@pytest.mark.parametrize("prefix", ["", "private-", "presence-"])
def test_subscribes_and_receives(server: ServerProcess, client: Any, channel: str, prefix: str) -> None:
    subscription = client.subscribe(prefix + channel)
    received = bound(subscription, "paid")
    server.until_sessions(prefix + channel, 1)
    server.publish(prefix + channel, "paid", {"id": 7})
    assert json.loads(received.get(timeout=DEADLINE)) == {"id": 7}


def test_is_a_member_of_its_presence_channel(
    server: ServerProcess, client: Any, connect: Callable[..., PusherSocket], channel: str
) -> None:
    presence = f"presence-{channel}"
    client.subscribe(presence)
    server.until_sessions(presence, 1)
    assert connect().subscribe(presence, {"user_id": "u1"})["presence"]["hash"]["snake"] == {"name": "Snake"}


def test_sends_client_events(server: ServerProcess, client: Any, connect: Callable[..., PusherSocket], channel: str) -> None:
    private = f"private-{channel}"
    other = connect()
    other.subscribe(private)
    subscription = client.subscribe(private)
    server.until_sessions(private, 2)
    subscription.trigger("client-typing", {"who": "snake"})
    assert other.expect("client-typing", private) == {"who": "snake"}
