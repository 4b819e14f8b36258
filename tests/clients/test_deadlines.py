"""Slow clients: unfinished requests and silent connections end after a deadline, so that they hold no connection.

All clients start together, and the tests then wait for them one by one, so that the file takes as long as the longest deadline.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.process import DEADLINE, ServerProcess, running
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.wire import TEXT, Gone, Wire, frame

LONGEST = 45.0
"""seconds after which every deadline is over"""
HEAD = b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
BEGUN = {
    "says nothing": b"",
    "never ends its request line": b"GET /hea",
    "never ends its headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-More: ",
    "never ends its handshake": b"GET /app/app-key?protocol=7 HTTP/1.1\r\nUpgrade: websocket\r\n",
    "never sends its body": HEAD,
    "never ends its body": HEAD + b'{"name":"e"',
    "never ends its chunk": HEAD.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked") + b"50\r\nabc",
}
SILENT = {"pusher": "/app/app-key?protocol=7", "raw": "/ws/app/app-key/c"}


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    """Runs a server that pings a client after one second of silence."""
    timeouts = {"pusher": {"activity-timeout": 1}, "websocket": {"activity-timeout": 1}}
    with running({"server": timeouts}) as server:
        yield server


@pytest.fixture(scope="module")
def begun(impatient: ServerProcess) -> Iterator[dict[str, Wire]]:
    """Opens one connection for each kind of unfinished input."""
    with contextlib.ExitStack() as stack:
        wires = {}
        for port in ("ws_port", "api_port"):
            for name, sent in BEGUN.items():
                wire = stack.enter_context(Wire(getattr(impatient, port), LONGEST))
                wire.send(sent)
                wires[f"{name} {port}"] = wire
        yield wires


@pytest.fixture(scope="module")
def answering(impatient: ServerProcess) -> Iterator[PusherSocket]:
    """Opens a client whose library answers pings in a thread of its own."""
    with pusher_socket(impatient) as client:
        yield client


@pytest.fixture(scope="module")
def old_fashioned(impatient: ServerProcess) -> Iterator[Wire]:
    """Opens a client that ignores WebSocket pings and answers `pusher:ping`."""
    with Wire(impatient.ws_port, LONGEST).greet() as wire:
        yield wire


@pytest.fixture(scope="module")
def silent(impatient: ServerProcess) -> Iterator[dict[str, Wire]]:
    """Opens a silent client of each protocol. It connects after the answering clients, and must be disconnected before them."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Wire(impatient.ws_port, LONGEST).upgrade(path)) for name, path in SILENT.items()}


@pytest.fixture(scope="module")
def dripping(impatient: ServerProcess) -> Iterator[threading.Thread]:
    """Sends a header byte by byte until the server ends the connection."""

    def drip(wire: Wire) -> None:
        wire.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
        wire.socket.settimeout(0.2)
        with contextlib.suppress(Gone, ConnectionError):
            while True:
                with contextlib.suppress(TimeoutError):
                    wire.socket.recv(1)
                    return
                wire.send(b"x")

    with Wire(impatient.api_port) as wire:
        thread = threading.Thread(target=drip, args=[wire])
        thread.start()
        yield thread
        with contextlib.suppress(OSError):
            wire.socket.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module")
def refused(impatient: ServerProcess) -> Iterator[Wire]:
    """Opens a client that the server closes, and that does not answer the close frame."""
    with Wire(impatient.ws_port, LONGEST).upgrade("/app/nobodys-key?protocol=7") as wire:
        assert wire.close_code() == 4001
        yield wire


@pytest.fixture(scope="module")
def closed(
    begun: dict[str, Wire],
    dripping: threading.Thread,
    refused: Wire,
    answering: PusherSocket,
    old_fashioned: Wire,
    silent: dict[str, Wire],
) -> dict[str, int]:
    """Returns the close codes of the silent clients; then the longest deadline is over."""
    while (message := old_fashioned.receive_json())["event"] != "pusher:ping":
        assert message["event"] != "pusher:error", message
    old_fashioned.send(frame(TEXT, b'{"event":"pusher:pong","data":{}}'))
    return {name: wire.close_code() for name, wire in silent.items()}


@pytest.mark.parametrize("name", SILENT)
def test_a_client_that_answers_no_ping_is_closed_with_4201(closed: dict[str, int], name: str) -> None:
    assert closed[name] == 4201


def test_a_client_that_answers_websocket_pings_stays(closed: dict[str, int], answering: PusherSocket) -> None:
    answering.round_trip()


def test_a_client_that_answers_pusher_pings_stays(closed: dict[str, int], old_fashioned: Wire) -> None:
    old_fashioned.send(frame(TEXT, b'{"event":"pusher:ping","data":{}}'))
    while (message := old_fashioned.receive_json())["event"] != "pusher:pong":
        assert message["event"] == "pusher:ping", message


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
@pytest.mark.parametrize("name", BEGUN)
def test_a_connection_is_ended_that(
    closed: dict[str, int], begun: dict[str, Wire], impatient: ServerProcess, name: str, port: str
) -> None:
    wire = begun[f"{name} {port}"]
    with contextlib.suppress(Gone):
        assert wire.response()[0] == 408
    assert wire.is_closed()
    impatient.assert_alive()


def test_a_header_that_comes_byte_by_byte_does_not_move_the_deadline(dripping: threading.Thread, closed: dict[str, int]) -> None:
    dripping.join(DEADLINE)
    assert not dripping.is_alive(), "the connection is still there"


def test_a_client_that_never_answers_the_close_frame_is_disconnected(refused: Wire, closed: dict[str, int]) -> None:
    assert refused.is_closed()


def test_half_closed_connection_is_disconnected(impatient: ServerProcess) -> None:
    with Wire(impatient.ws_port).upgrade("/app/app-key?protocol=7") as wire:
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.close_code() in {1000, 1006}
