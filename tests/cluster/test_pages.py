"""Pages on a server with several workers: a worker is replaced, killed or suspended."""

import contextlib
import json
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.cluster.machine import MAX_TRIES, by_worker, kill, machine, reload, until_workers, workers
from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, merged
from tests.support.pusher_socket import PusherSocket, dialled

APPS: dict[str, Any] = {
    "app-test": merged(APP, {"history": [{"size": 100, "ttl": 60}], "resume": {"seconds": 60, "acknowledge": 1}})
}


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with machine(2, {"server": {"drain": 2}}, APPS) as one:
        yield one


class Page:
    """A page that answers pings, and connects again when it is disconnected. `worker`: the number of its present worker."""

    def __init__(self, server: ServerProcess, stack: contextlib.ExitStack, channel: str, name: str = "") -> None:
        self.server = server
        self.channel = channel
        self.name = name or secrets.token_hex(16)
        self.worker = -1
        self._stack = stack
        self.client: PusherSocket

    def connect(self, *others: int) -> None:
        """Connects to a worker that is not one of `others`, and subscribes."""
        self.handshake(*others).request_subscription(self.channel)

    def handshake(self, *others: int) -> PusherSocket:
        for _ in range(MAX_TRIES):
            before = by_worker(self.server, "push1st_connections_opened_total")
            client = self._stack.enter_context(dialled(self.server, f"/resume/{self.name}/app/app-key")).established()
            after = by_worker(self.server, "push1st_connections_opened_total")
            self.worker = next(number for number, count in after.items() if count > before.get(number, 0))
            if self.worker not in others:
                self.client = client
                return client
            client.close()
        raise AssertionError(f"no connection to another worker than {others}")

    def until(self, event: str) -> Any:
        while True:
            frame = self.client.receive()
            if frame["event"] == "pusher:ping" and event != "pusher:ping":
                self.client.send("pusher:pong")
            elif frame["event"] == event:
                return json.loads(frame["data"])

    def acknowledge(self) -> None:
        self.until("pusher:ping")
        self.client.send("pusher:pong")
        self.client.round_trip()

    def lost(self) -> None:
        """Reads until the connection has ended."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                if self.client.receive()["event"] == "pusher:ping":
                    self.client.send("pusher:pong")


@pytest.fixture
def page(server: ServerProcess, stack: contextlib.ExitStack, channel: str) -> Page:
    one = Page(server, stack, channel)
    one.connect()
    assert one.until("pusher:resumed")["reason"] == "unknown"
    one.acknowledge()
    return one


def test_page_is_recovered_without_repeats_after_each_reload(server: ServerProcess, page: Page, channel: str) -> None:
    for number in range(3):
        server.publish(channel, "e", number)
        assert page.until("e") == number
        reload(server)
        page.lost()
        server.publish(channel, "e", -number)
        page.connect()
        answer = page.until("pusher:resumed")
        assert (answer["recovered"], answer["replayed"], answer["repeats"]) == (True, 1, False)
        assert page.until("e") == -number


def test_page_is_recovered_after_its_worker_was_killed(server: ServerProcess, page: Page, channel: str) -> None:
    server.publish(channel, "e", 1)
    assert page.until("e") == 1
    page.acknowledge()
    kill(workers(server)[page.worker])
    page.lost()
    until_workers(server, 2)
    server.publish(channel, "e", 2)
    page.connect()
    answer = page.until("pusher:resumed")
    assert (answer["recovered"], answer["replayed"]) == (True, 1)
    assert page.until("e") == 2


def test_page_finds_its_zombie_on_another_worker(page: Page, channel: str) -> None:
    """The first connection stays open, but its client does not answer any more."""
    zombie = page.client
    page.connect(page.worker)
    assert page.until("pusher:resumed")["recovered"]
    assert zombie.close_code(15) == 4201


def test_two_live_connections_on_two_workers_are_shared(
    server: ServerProcess, page: Page, channel: str, stack: contextlib.ExitStack
) -> None:
    twin = Page(server, stack, channel, page.name)
    twin.connect(page.worker)
    page.acknowledge()
    assert twin.until("pusher:resumed")["reason"] == "shared"


def test_page_of_a_suspended_worker_is_recovered(server: ServerProcess, page: Page, channel: str) -> None:
    other = Page(server, page._stack, channel, page.name)
    waiting = other.handshake(page.worker)
    suspended = workers(server)[page.worker]
    kill(suspended, signal.SIGSTOP)
    try:
        waiting.request_subscription(channel)
        assert other.until("pusher:resumed")["recovered"]
    finally:
        kill(suspended, signal.SIGCONT)


def test_fallback_sessions_on_several_workers_keep_their_page(
    server: ServerProcess, stack: contextlib.ExitStack, channel: str
) -> None:
    """The requests of a session arrive at either worker, and the worker of its first request owns the session."""
    name = secrets.token_hex(16)
    where = {"httpHost": "127.0.0.1", "httpPort": server.ws_port, "httpPath": f"/resume/{name}/pusher"}
    options = {"client": {**where, "enabledTransports": ["xhr_polling"]}, "secret": "secret", "authorize": "self"}
    client = NodeProcess("pusher_js.mjs", {"key": "app-key", "api": server.api, **options})
    stack.callback(client.close)
    client.tell("subscribe", channel=channel, events=["pusher:resumed", "e"])
    assert client.next(on="event", event="pusher:resumed")["data"]["reason"] == "unknown"
    for number in range(3):
        server.publish(channel, "e", number)
        assert client.next(on="event", event="e")["data"] == number
        client.next(on="message", event="pusher:ping")
    assert figure_of_all(server, "push1st_acknowledgements_total") >= 2
    client.tell("disconnect")
    client.next(on="state", state="disconnected")
    server.publish(channel, "e", 3)
    client.tell("connect")
    assert client.next(on="event", event="pusher:resumed")["data"]["recovered"]
    while client.next(on="event", event="e")["data"] != 3:
        pass


def figure_of_all(server: ServerProcess, name: str) -> float:
    return sum(by_worker(server, name).values())
