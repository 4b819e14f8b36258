"""Two machines restart and reload, one after the other, while backends publish to both and clients reconnect."""

import contextlib
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.cluster.machine import again_and_again, copy, machine, reload, until_workers
from tests.support.nodejs import NodeProcess
from tests.support.process import DEADLINE, ServerProcess, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.valkey import Valkey

SUBSCRIBERS = 6
MARGIN = 0.1
"""seconds before the end of a connection in which a confirmed event may still have been on its way to it"""


class Stay:
    """The time of a subscriber on one connection, and the events that it received."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ended = float("inf")
        self.received: list[str] = []


class Subscriber:
    """A client that reconnects like pusher-js: at once after 4200 to 4299, to the other machine, as with a load balancer."""

    def __init__(self, servers: list[ServerProcess], channel: str, first: int) -> None:
        self.stays: list[Stay] = []
        self.codes: list[int] = []
        self._servers = itertools.islice(itertools.cycle(servers), first, None)
        self._channel = channel
        self.over = threading.Event()

    def __call__(self) -> None:
        with contextlib.suppress(OSError, InvalidHandshake), pusher_socket(next(self._servers)) as client:
            client.request_subscription(self._channel)
            while client.receive()["event"] != "pusher_internal:subscription_succeeded":
                pass
            stay = Stay()
            self.stays.append(stay)
            try:
                while True:
                    try:
                        stay.received.append(client.receive(0.2)["data"])
                    except TimeoutError:
                        if self.over.is_set():  # no event is on its way any more
                            return
            except ConnectionClosed:
                stay.ended = time.monotonic()
                self.codes.append(client.connection.close_code or 0)


class Backend:
    """A backend that publishes to one machine on a kept connection, and records the acknowledged events with their times."""

    def __init__(self, server: ServerProcess, channel: str, name: str) -> None:
        self.name = name
        self.acknowledged: list[tuple[str, float, float]] = []
        self.statuses: set[int] = set()
        self._numbers = itertools.count()
        self._server = server
        self._channel = channel
        self._connection = HTTPConnection("127.0.0.1", server.api_port, timeout=DEADLINE)

    def __call__(self) -> None:
        data = f"{self.name}{next(self._numbers)}"
        body = json.dumps({"name": "e", "channels": [self._channel], "data": data})
        began = time.monotonic()
        try:
            self._connection.request("POST", "/apps/app-test/events", body)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, HTTPException):  # the machine is restarting
            self._connection.close()
            time.sleep(0.05)
            return
        self.statuses.add(answer.status)
        if answer.status == 200:
            self.acknowledged.append((data, began, time.monotonic()))
        time.sleep(0.005)

    def close(self) -> None:
        self._connection.close()


class Balancer:
    """A load balancer that alternates between the machines that accept connections."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._turn = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = self._connected()
                for source, sink in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=copy, args=(source, sink)))
                    self._threads[-1].start()

    def _connected(self) -> socket.socket:
        for _ in range(100):
            self._turn += 1
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", self._ports[self._turn % len(self._ports)]))
        raise AssertionError("nobody takes connections")

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(DEADLINE)


@contextlib.contextmanager
def pusher_js(servers: list[ServerProcess], channel: str) -> Iterator[NodeProcess]:
    with contextlib.closing(Balancer([server.ws_port for server in servers])) as between:
        client = {"wsHost": "127.0.0.1", "wsPort": between.port}
        with contextlib.closing(NodeProcess("pusher_js.mjs", {"key": "app-key", "client": client})) as process:
            process.next(on="state", state="connected")
            process.tell("subscribe", channel=channel, events=["e"])
            process.next(on="subscribed", channel=channel)
            yield process


def in_order(received: list[str], backends: list[Backend]) -> bool:
    """Returns whether the events of each backend arrived in order, and each once."""
    for backend in backends:
        numbers = [int(data.removeprefix(backend.name)) for data in received if data.startswith(backend.name)]
        if numbers != sorted(set(numbers)):
            return False
    return True


def test_a_rolling_restart_loses_no_acknowledged_publish(channel: str, stack: contextlib.ExitStack) -> None:
    valkey = stack.enter_context(contextlib.closing(Valkey()))
    servers = [stack.enter_context(machine(config={"broker": valkey.url})) for _ in range(2)]
    subscribers = [Subscriber(servers, channel, first) for first in range(SUBSCRIBERS)]
    backends = [
        stack.enter_context(contextlib.closing(Backend(server, channel, name)))
        for server, name in zip(servers, "ab", strict=True)
    ]
    failures: list[str] = []
    library = stack.enter_context(pusher_js(servers, channel))
    with contextlib.ExitStack() as busy:
        for subscriber in subscribers:
            busy.enter_context(again_and_again(subscriber, failures))
            busy.callback(subscriber.over.set)
        for backend in backends:
            busy.enter_context(again_and_again(backend, failures))
        wait_until(lambda: all(subscriber.stays for subscriber in subscribers), "all have subscribed")
        time.sleep(0.3)
        for server in servers:
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            server.start()
            until_workers(server, 2)
            time.sleep(0.3)
        restarted = time.monotonic()
        for server in servers:
            reload(server)
        wait_until(lambda: all(backend.acknowledged[-1][1] > restarted for backend in backends), "both publish")
        time.sleep(0.5)
    servers[0].publish(channel, "e", "last")
    library.next(on="event", data="last")
    seen = [report["data"] for report in library.seen if report["on"] == "event"]
    assert failures == []
    assert in_order(seen, backends)
    codes = [code for subscriber in subscribers for code in subscriber.codes]
    assert set(codes) <= {4200}, codes
    assert len(codes) >= SUBSCRIBERS, "somebody was never sent away"
    assert all(backend.statuses <= {200, 503} for backend in backends)
    assert all(len(backend.acknowledged) > 200 for backend in backends)
    for subscriber in subscribers:
        for stay in subscriber.stays:
            assert in_order(stay.received, backends)
            due = {
                data
                for backend in backends
                for data, began, ended in backend.acknowledged
                if stay.began < began and ended < stay.ended - MARGIN
            }
            assert due <= set(stay.received), sorted(due - set(stay.received))
        both = [data for stay in subscriber.stays for data in stay.received]
        assert len(both) == len(set(both)), "an event came on two connections"
