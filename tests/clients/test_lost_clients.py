"""Clients that send and then disconnect: the server processes their messages, although no client reads the answers."""

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from tests.support.process import DEADLINE, ServerProcess, running
from tests.support.pusher_socket import PLAIN
from tests.support.raw_socket import RawSocket
from tests.support.wire import HANDSHAKE, PING, TEXT, frame

COUNT = 900
"""messages: fewer than the rate limit of a raw client, and more than a slice of a turn"""
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module", params=["tcp", "tls"])
def either(request: pytest.FixtureRequest) -> Iterator[tuple[ServerProcess, bool]]:
    secure = request.param == "tls"
    with running({"server": {"ssl": {"enable": secure}}}) as process:
        yield process, secure


def receiver(server: ServerProcess, channel: str) -> contextlib.AbstractContextManager[RawSocket]:
    """Opens a subscriber on the API's port, which has no TLS here."""
    connection = connect(f"ws://127.0.0.1:{server.api_port}/ws/app/app-key/{channel}", **PLAIN)
    return contextlib.nullcontext(RawSocket(connection))


def sender(port: int, secure: bool, channel: str) -> socket.socket:
    """Opens a raw WebSocket and makes its handshake."""
    one = socket.create_connection(("127.0.0.1", port), DEADLINE)
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        one = context.wrap_socket(one)
    one.sendall(f"GET /ws/app/app-key/{channel} HTTP/1.1\r\n".encode() + HANDSHAKE + b"\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        head += one.recv(1)
    return one


def message(channel: str, number: int) -> bytes:
    return frame(TEXT, json.dumps({"channel": channel, "event": "e", "data": number}).encode())


def post(channel: str, number: int) -> bytes:
    body = json.dumps({"name": "e", "channels": [channel], "data": number}).encode()
    return b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("how", ["close", "close_notify"])
def test_messages_before_an_abrupt_close_are_published(either: tuple[ServerProcess, bool], channel: str, how: str) -> None:
    server, secure = either
    channel += how
    with receiver(server, channel) as other, other.connection:
        one = sender(server.ws_port, secure, channel)
        one.sendall(b"".join(message(channel, number) for number in range(COUNT)))
        if how == "close_notify" and isinstance(one, ssl.SSLSocket):
            one.setblocking(False)
            with contextlib.suppress(ssl.SSLError, OSError):
                one.unwrap()
        one.close()
        assert [other.expect("e", channel) for _ in range(COUNT)] == list(range(COUNT))


def test_messages_before_a_reset_are_published(channel: str) -> None:
    """The client leaves pongs unread, so that its kernel resets the connection, and a write of the server fails."""
    with running() as server, receiver(server, channel) as other, other.connection:
        for _ in range(3):
            one = sender(server.ws_port, False, channel)
            one.sendall(b"".join(frame(PING, b"") + message(channel, number) for number in range(COUNT)))
            one.close()
            assert [other.expect("e", channel) for _ in range(COUNT)] == list(range(COUNT))


@pytest.mark.parametrize("road", ["unix", "tcp"])
@pytest.mark.parametrize("reads", [False, True])
def test_requests_before_the_end_of_the_stream_are_served(server: ServerProcess, channel: str, road: str, reads: bool) -> None:
    channel += f"{road}{reads}"
    with receiver(server, channel) as other, other.connection:
        if road == "unix":
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(DEADLINE)
            one.connect(str(server.unix))
        else:
            one = socket.create_connection(("127.0.0.1", server.api_port), DEADLINE)
        with one:
            one.sendall(HEALTH)
            assert one.recv(65_536).startswith(b"HTTP/1.1 200")
            one.sendall(b"".join(post(channel, number) for number in range(COUNT)))
            if reads:
                one.shutdown(socket.SHUT_WR)
                answers = b"".join(iter(lambda: one.recv(65_536), b""))
                assert answers.count(b"HTTP/1.1 200") == COUNT
        assert [other.expect("e", channel) for _ in range(COUNT)] == list(range(COUNT))
