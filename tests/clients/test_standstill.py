"""A server that stood still for a while: stopped and continued, swapped out, or starved by the machine.

During the standstill deadlines passed, while requests were unread in its sockets. Input that was sent in time counts as in time.
"""

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.process import ServerProcess, running
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.wire import Wire

KEEP_ALIVE = 2
CLIENTS = 50
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POLL = b"POST /app/app-key/1/%b/xhr?protocol=7 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


@contextlib.contextmanager
def stopped(server: ServerProcess) -> Iterator[None]:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    timeouts = {"api": {"keep-alive-timeout": KEEP_ALIVE}, "server": {"pusher": {"activity-timeout": 1}}}
    with running(timeouts) as one:
        yield one


@pytest.mark.parametrize("seconds", [KEEP_ALIVE + 2, pytest.param(15, marks=pytest.mark.long)])
def test_input_sent_during_a_standstill_is_served(server: ServerProcess, seconds: float) -> None:
    """The test has idle kept connections, incomplete heads, fallback sessions between two requests, and WebSockets."""
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Wire(server.api_port)) for _ in range(CLIENTS)]
        begun = [stack.enter_context(Wire(server.ws_port)) for _ in range(CLIENTS)]
        fallbacks = [stack.enter_context(Wire(server.ws_port)) for _ in range(CLIENTS)]
        clients: list[PusherSocket] = [stack.enter_context(pusher_socket(server)) for _ in range(5)]
        for number, (one, other, third) in enumerate(zip(kept, begun, fallbacks, strict=True)):
            one.send(REQUEST)
            other.send(REQUEST[:20])
            third.send(POLL % b"session%d-" % number)
        assert {one.response()[0] for one in (*kept, *fallbacks)} == {200}
        with stopped(server):
            for number, (one, other, third) in enumerate(zip(kept, begun, fallbacks, strict=True)):
                one.send(REQUEST)
                other.send(REQUEST[20:])
                third.send(POLL.replace(b"/xhr?", b"/xhr_send?").replace(b": 0", b": 2") % b"session%d-" % number + b"[]")
            time.sleep(seconds)
        for wire in (*kept, *begun, *fallbacks):
            assert wire.response()[0] == 200
        for client in clients:
            client.send("pusher:ping", {})
            client.expect("pusher:pong")
