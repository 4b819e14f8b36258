"""MQTT clients of several workers: presence, users, targeted events, hooks and metrics are those of the whole server."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.cluster.machine import by_worker, connect_to, machine
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, wait_until
from tests.support.pusher_socket import PusherSocket
from tests.support.receiver import Receiver, receiving
from tests.support.signing import access_token

COUNT = 24
"""the number of connections; the kernel gives all of them to one worker in one of 2 ** 23 runs"""


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture(scope="module")
def server(port: int, receiver: Receiver) -> Iterator[ServerProcess]:
    """Runs two workers with an MQTT address."""
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "presence"]}
    config = {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "drain": 0}}
    app = merged(APP, {"webhooks": [{"url": receiver.url, "events": ["member_added", "member_removed", "client_event"]}]})
    with machine(2, config, {"app-test": app}) as process:
        yield process


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


def devices(stack: contextlib.ExitStack, port: int, user: str) -> list[PahoClient]:
    """Connects the devices of a user, which are clients of both workers."""
    password = access_token({"app": "app-test", "channel": "*", "sub": user})
    return [
        stack.enter_context(paho_client(port, V5 if number % 2 else V311, f"{user}-{number}", password=password))
        for number in range(COUNT)
    ]


def watchers(server: ServerProcess, stack: contextlib.ExitStack, channel: str) -> list[PusherSocket]:
    """Connects a Pusher client to each worker."""
    found = [connect_to(server, number, stack) for number in (0, 1)]
    for one in found:
        one.subscribe(channel, {"user_id": "watcher"})
    return found


def test_user_with_devices_on_both_workers_is_one_member(
    server: ServerProcess, port: int, stack: contextlib.ExitStack, receiver: Receiver, channel: str
) -> None:
    name = f"presence-{channel}"
    seen = watchers(server, stack, name)
    with contextlib.ExitStack() as connections:
        clients = devices(connections, port, "ann")
        opened = by_worker(server, "push1st_mqtt_sessions")
        assert sum(opened.values()) == COUNT
        assert min(opened.values()) > 0
        for client in clients:
            assert client.subscribe(name) == [0]
        for watcher in seen:
            assert watcher.expect("pusher_internal:member_added", name)["user_id"] == "ann"
        listed = server.signed("GET", f"/apps/app-test/channels/{name}/users").json["users"]
        assert sorted(one["id"] for one in listed) == ["ann", "watcher"]
        clients[0].publish(name, '{"on":true}')
        for client in clients:
            assert client.expect() == (name, b'{"on":true}')
        for watcher in seen:
            assert watcher.expect("message", name) == {"on": True}
    for watcher in seen:
        assert watcher.expect("pusher_internal:member_removed", name) == {"user_id": "ann"}

    def of_ann() -> list[str]:
        return [one["name"] for one in receiver.events if one["channel"] == name and one.get("user_id") == "ann"]

    wait_until(lambda: len(of_ann()) >= 3, "the webhooks")
    assert of_ann() == ["member_added", "client_event", "member_removed"]


def test_terminated_user_is_disconnected_from_both_workers(server: ServerProcess, port: int, stack: contextlib.ExitStack) -> None:
    clients = devices(stack, port, "bob")
    assert server.signed("POST", "/apps/app-test/users/bob/terminate_connections", {}).status == 200
    for number, client in enumerate(clients):
        end = client.expect_end()
        if number % 2:
            assert end == 0x98


def test_multicast_finds_a_device_on_each_worker(
    server: ServerProcess, port: int, stack: contextlib.ExitStack, channel: str
) -> None:
    clients = devices(stack, port, "eve")
    for client in clients:
        client.subscribe(channel)
    for number in range(COUNT):
        server.publish(channel, "e", f"for {number}", options={"delivery": "multicast", "session": f"eve-{number}"})
    server.publish(channel, "e", "end")
    for number, client in enumerate(clients):
        assert [client.expect() for _ in range(2)] == [(channel, f"for {number}".encode()), (channel, b"end")]


def test_limit_of_connections_is_that_of_all_workers() -> None:
    own = free_ports(1)[0]
    config = {"server": {"proto": ["mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{own}"}, "drain": 0}}
    app = merged(APP, {"limits": {"connections": 10}})
    with machine(2, config, {"app-test": app}), contextlib.ExitStack() as connections:
        for number in range(10):
            connections.enter_context(paho_client(own, client_id=f"c{number}"))
        for number in range(10):
            with paho_client(own, client_id=f"late{number}", accepted=False) as late:
                assert late.reason == 0x97
