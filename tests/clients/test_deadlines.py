"""Clients that take their time: what is unfinished ends after a deadline, so that nobody holds a connection for nothing.

All of them begin together and are then waited for one by one: the file takes as long as the longest deadline.
"""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.clients.process import ServerProcess, running
from tests.clients.wire import Gone, Wire

LONGEST = 45.0
"""seconds within which every deadline has passed"""
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
SILENT = {"a pusher client": "/app/app-key?protocol=7", "a raw client": "/ws/app/app-key/c"}


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    """A server that asks after one second of silence whether a client is there."""
    timeouts = {"pusher": {"activity-timeout": 1}, "websocket": {"activity-timeout": 1}}
    with running({"server": timeouts}) as server:
        yield server


@pytest.fixture(scope="module")
def begun(impatient: ServerProcess) -> Iterator[dict[str, Wire]]:
    """One connection for each way of never ending."""
    with contextlib.ExitStack() as stack:
        wires = {}
        for port in ("ws_port", "api_port"):
            for name, sent in BEGUN.items():
                wire = stack.enter_context(Wire(getattr(impatient, port), LONGEST))
                wire.send(sent)
                wires[f"{name} {port}"] = wire
        for name, path in SILENT.items():
            wires[name] = stack.enter_context(Wire(impatient.ws_port, LONGEST).upgrade(path))
        yield wires


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
@pytest.mark.parametrize("name", BEGUN)
def test_a_connection_is_ended_that(begun: dict[str, Wire], impatient: ServerProcess, name: str, port: str) -> None:
    wire = begun[f"{name} {port}"]
    with contextlib.suppress(Gone):
        assert wire.response()[0] == 408
    assert wire.is_closed()
    impatient.assert_alive()


@pytest.mark.parametrize("name", SILENT)
def test_without_an_answer_to_its_pings_the_connection_is_closed_with_4201_of(begun: dict[str, Wire], name: str) -> None:
    assert begun[name].close_code() == 4201


def test_a_header_that_comes_byte_by_byte_does_not_move_the_deadline(impatient: ServerProcess) -> None:
    with Wire(impatient.api_port, LONGEST) as wire:
        started = time.monotonic()
        wire.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
        with contextlib.suppress(Gone):
            wire.socket.settimeout(0.2)
            while time.monotonic() - started < LONGEST:
                wire.send(b"x")
                try:
                    if wire.socket.recv(1000) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        assert time.monotonic() - started < LONGEST
        impatient.assert_alive()


def test_a_client_that_never_answers_the_close_frame_is_disconnected(impatient: ServerProcess) -> None:
    with Wire(impatient.ws_port, LONGEST).upgrade("/app/nobodys-key?protocol=7") as wire:
        assert wire.close_code() == 4001
        assert wire.is_closed()


def test_a_half_closed_connection_is_let_go(impatient: ServerProcess) -> None:
    with Wire(impatient.ws_port, LONGEST).upgrade("/app/app-key?protocol=7") as wire:
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.close_code() in {1000, 1006}
