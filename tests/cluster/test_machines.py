"""Two machines with two workers each, on one Valkey: they act as one server, even if processes die.

Machines are servers on ports of their own. Each has two workers, and shares only the broker with the other.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.cluster.machine import GONE_SECONDS, ROOM, by_worker, children, connect_to, exists, machine, supervisor, users_of
from tests.support.nodejs import NodeProcess
from tests.support.process import ServerProcess, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.valkey import Valkey

MAX_CLIENTS = 16
"""clients of one machine until each of its workers has one; by chance too few in one of 2 ** 15 runs"""


class Cluster(NamedTuple):
    valkey: Valkey
    one: ServerProcess
    two: ServerProcess


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    valkey = Valkey()
    try:
        broker = {"broker": f"{valkey.url}?prefix=shop"}
        with machine(config=broker) as one, machine(config=broker) as two:
            yield Cluster(valkey, one, two)
    finally:
        valkey.close()


def pusher_js(server: ServerProcess, user: str, stack: contextlib.ExitStack) -> NodeProcess:
    client = {"wsHost": "127.0.0.1", "wsPort": server.ws_port}
    options = {
        "key": "app-key",
        "client": client,
        "authorize": "self",
        "secret": "secret",
        "user": {"user_id": user, "user_info": {}},
    }
    process = NodeProcess("pusher_js.mjs", options)
    stack.callback(process.close)
    process.next(on="state", state="connected")
    process.tell("subscribe", channel=ROOM, events=["e"])
    process.next(on="subscribed", channel=ROOM)
    return process


def on_every_worker(server: ServerProcess, name: str, stack: contextlib.ExitStack) -> dict[str, NodeProcess]:
    """Connects clients until each worker has one; returns them by their users."""
    clients: dict[str, NodeProcess] = {}
    while len(clients) < MAX_CLIENTS:
        user = f"{name}{len(clients)}"
        clients[user] = pusher_js(server, user, stack)
        counts = by_worker(server, "push1st_connections")
        if len(counts) == 2 and all(counts.values()):
            return clients
    raise AssertionError("all clients are on one worker")


def sees(client: NodeProcess, users: set[str]) -> bool:
    return set(client.ask("members", channel=ROOM)["members"]) == users


def test_pusher_js_clients_on_four_workers_of_two_machines_see_one_presence_channel(
    cluster: Cluster, stack: contextlib.ExitStack
) -> None:
    clients = on_every_worker(cluster.one, "a", stack) | on_every_worker(cluster.two, "b", stack)
    for client in clients.values():
        wait_until(lambda c=client: sees(c, set(clients)), "the client sees all members")  # type: ignore[misc]
    for server in (cluster.one, cluster.two):
        for _ in range(4):  # any worker may answer
            assert users_of(server) == set(clients)
        server.publish(ROOM, "e", server.ws_port)
        for client in clients.values():
            assert client.next(on="event")["data"] == server.ws_port
    cluster.valkey.kill()
    cluster.valkey.start()
    for server in (cluster.one, cluster.two):
        wait_until(lambda s=server: users_of(s) == set(clients), "all members are registered again", 20)  # type: ignore[misc]
    cluster.one.publish(ROOM, "e", "last")
    for client in clients.values():
        client.next(on="event", data="last")
        assert sees(client, set(clients))
        assert not [seen for seen in client.seen if seen["on"] == "member_removed"], "a false leave"
        came = [seen["member"]["id"] for seen in client.seen if seen["on"] == "member_added"]
        assert len(came) == len(set(came)), "a false join"


def test_connections_of_an_app_are_those_of_all_machines(cluster: Cluster, stack: contextlib.ExitStack) -> None:
    for server in (cluster.one, cluster.one, cluster.two):
        stack.enter_context(pusher_socket(server))
    for server in (cluster.one, cluster.two):
        for _ in range(4):  # any worker may answer
            assert server.get("/apps/app-test/connections").json == {"connections": 3}
            assert server.signed("GET", "/apps/app-test/connections", port=server.ws_port).json == {"connections": 3}


def test_clients_of_a_killed_machine_are_removed_on_the_other_in_time(cluster: Cluster, stack: contextlib.ExitStack) -> None:
    staying = [connect_to(cluster.one, number, stack) for number in (0, 1)]
    leaving = [connect_to(cluster.two, number, stack) for number in (0, 1)]
    for number, client in enumerate([*staying, *leaving]):
        client.subscribe(ROOM, {"user_id": str(number)})
    for server in (cluster.one, cluster.two):
        assert users_of(server) == {"0", "1", "2", "3"}
    there = children(supervisor(cluster.two))
    cluster.two.signal(signal.SIGKILL)
    cluster.two.wait()
    killed = time.monotonic()
    wait_until(lambda: not any(map(exists, there)), "its workers have ended", 2)
    while time.monotonic() < killed + 3:  # the other machine serves on in this time
        started = time.monotonic()
        cluster.one.publish("other", "e", 1)
        assert time.monotonic() - started < 1
    wait_until(lambda: users_of(cluster.one) == {"0", "1"}, "its members are gone", GONE_SECONDS + 1)
    assert time.monotonic() - killed < GONE_SECONDS + 1
    cluster.one.publish(ROOM, "last", 1)
    for client in staying:
        gone = []
        while (frame := client.receive())["event"] != "last":
            if frame["event"] == "pusher_internal:member_removed":
                gone.append(frame["data"])
        assert len(gone) == 2, gone
    cluster.two.start()
