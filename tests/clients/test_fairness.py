"""Floods by eight or a thousand connections: other clients lose no event, and few of their events are late."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.floods import CHUNK, FLOODING, FLOODS, flood
from tests.support.process import DEADLINE, ServerProcess, running
from tests.support.raw_socket import RawSocket, raw_socket

MANY = 1000
FLOOD_SECONDS = 1.5
LATE_SECONDS = 1.0
"""maximum delay of an event while the server is flooded; other tests run on this machine, and `make bench-fairness` is exact"""


@pytest.fixture(scope="module")
def flooded() -> Iterator[ServerProcess]:
    with running() as process:
        yield process


def longest_delay(server: ServerProcess, other: RawSocket) -> float:
    """Publishes for `FLOOD_SECONDS` to a client; returns the longest delay of an event."""
    late = 0.0
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        began = time.monotonic()
        assert server.publish("others", "e", began).status == 200
        assert other.expect("e", "others") == began
        late = max(late, time.monotonic() - began)
        time.sleep(0.02)
    return late


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_does_not_delay_other_clients(flooded: ServerProcess, stack: contextlib.ExitStack, name: str) -> None:
    other = stack.enter_context(raw_socket(flooded, "others"))
    over = threading.Event()
    threads = [threading.Thread(target=flood, args=(flooded.ws_port, *FLOODS[name], over)) for _ in range(FLOODING)]
    for thread in threads:
        thread.start()
    try:
        late = longest_delay(flooded, other)
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert late < LATE_SECONDS


def test_a_thousand_connections_that_flood_at_once_do_not_delay_other_clients(
    flooded: ServerProcess, stack: contextlib.ExitStack
) -> None:
    opening, unit = FLOODS["subscribing"]
    data = unit * (CHUNK // len(unit))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
    other = stack.enter_context(raw_socket(flooded, "others"))
    many = [stack.enter_context(socket.create_connection(("127.0.0.1", flooded.ws_port), DEADLINE)) for _ in range(MANY)]
    for one in many:
        one.sendall(opening)
    for one in many:
        assert one.recv(4096).startswith(b"HTTP/1.1 101")
        one.setblocking(False)

    def send() -> None:
        for one in many:
            with contextlib.suppress(OSError):
                one.send(data)

    sending = threading.Thread(target=send)
    sending.start()
    late = longest_delay(flooded, other)
    sending.join()
    assert late < LATE_SECONDS
