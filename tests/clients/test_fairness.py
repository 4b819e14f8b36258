"""Floods by eight or a thousand connections: other clients lose no event, and few of their events are late."""

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.process import DEADLINE, ServerProcess, running
from tests.support.raw_socket import raw_socket
from tests.support.wire import HANDSHAKE, PING, PONG, TEXT, frame

FLOODING = 8
MANY = 1000
FLOOD_SECONDS = 1.5
LATE_SECONDS = 1.0
"""for a delivery while the server is flooded. `make bench-fairness` has the exact figures; this machine runs other tests, too"""
CHUNK = 131_072
CONT = 0

PUSHER = b"GET /app/app-key?protocol=7 HTTP/1.1\r\n" + HANDSHAKE + b"\r\n"


def message(event: str, data: object) -> bytes:
    return frame(TEXT, json.dumps({"event": event, "data": data}).encode())


def post(path: str, body: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


FLOODS = {
    "pings": (PUSHER, frame(PING, b"")),
    "pongs": (PUSHER, frame(PONG, b"")),
    "empty fragments": (PUSHER + frame(TEXT, b"{", fin=False), frame(CONT, b"", fin=False)),
    "protocol pings": (PUSHER, message("pusher:ping", {})),
    "subscribing": (PUSHER, message("pusher:subscribe", {"channel": "f"}) + message("pusher:unsubscribe", {"channel": "f"})),
    "requests": (b"", b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"),
    "fallback messages": (
        post("/app/app-key/1/floodflood/xhr?protocol=7", ""),
        post("/app/app-key/1/floodflood/xhr_send", json.dumps(['{"event":"pusher:ping","data":{}}'] * 100)),
    ),
}
"""what is sent first, and what is sent again and again"""


@pytest.fixture(scope="module")
def flooded() -> Iterator[ServerProcess]:
    with running() as process:
        yield process


def flood(port: int, opening: bytes, unit: bytes, over: threading.Event) -> None:
    """Sends until it is over; connects again when the server ends the connection."""
    data = unit * (CHUNK // len(unit))
    while not over.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE) as one:
            one.sendall(opening)
            threading.Thread(target=drain, args=(one,), daemon=True).start()
            while not over.is_set():
                one.sendall(data)


def drain(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while one.recv(CHUNK):
            pass


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_does_not_delay_other_clients(flooded: ServerProcess, stack: contextlib.ExitStack, name: str) -> None:
    other = stack.enter_context(raw_socket(flooded, "others"))
    over = threading.Event()
    threads = [threading.Thread(target=flood, args=(flooded.ws_port, *FLOODS[name], over)) for _ in range(FLOODING)]
    for thread in threads:
        thread.start()
    late = 0.0
    try:
        end = time.monotonic() + FLOOD_SECONDS
        while time.monotonic() < end:
            began = time.monotonic()
            assert flooded.publish("others", "e", began).status == 200
            assert other.expect("e", "others") == began
            late = max(late, time.monotonic() - began)
            time.sleep(0.02)
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
    late = 0.0
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        began = time.monotonic()
        assert flooded.publish("others", "e", began).status == 200
        assert other.expect("e", "others") == began
        late = max(late, time.monotonic() - began)
        time.sleep(0.02)
    sending.join()
    assert late < LATE_SECONDS
