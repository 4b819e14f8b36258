"""A backend that receives webhooks. A test makes it answer, fail, stall, reset, redirect, or send a false response.

The backend is an HTTP server in a thread, on a free port. It stores all requests in their order.
"""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.process import wait_until

STALL_SECONDS = 20
"""time after which a stalled request ends, unless the receiver ends before"""


@dataclass(frozen=True)
class Got:
    """A request. at: its time on the monotonic clock, in seconds. connection: the client's port. all: names of headers."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    connection: int
    all: tuple[str, ...]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Returns the events of a body in Pusher's format."""
        found: list[dict[str, Any]] = self.json["events"]
        return found

    @property
    def delivery(self) -> str:
        return self.headers["x-push1st-delivery"]


Act = Callable[[Got], int | str | bytes | dict[str, Any]]
"""a status, JSON that is sent with status 200, or one of `stall`, `reset`, `flood`, `redirect:URL`"""


class Receiver:
    """act: returns the response to a request; a test may replace it at any time."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.act: Act = lambda _: 200
        self.got: list[Got] = []
        self.accepted: list[Got] = []
        """requests that were answered with 200"""
        self._end = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                body, names = self.rfile.read(length), tuple(name.lower() for name in self.headers)
                got = Got(self.path, headers, body, time.monotonic(), self.client_address[1], names)
                receiver.got.append(got)
                receiver._do(self, got)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None: ...  # the client has ended the connection

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._scheme = "https" if context else "http"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://localhost:{self._server.server_address[1]}/hook"

    def _do(self, handler: BaseHTTPRequestHandler, got: Got) -> None:
        what = self.act(got)
        if what == "stall":
            self._end.wait(STALL_SECONDS)
            handler.close_connection = True
        elif what == "reset":
            with contextlib.suppress(OSError):
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                handler.connection.close()
            handler.close_connection = True
        elif what == "flood":
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            with contextlib.suppress(OSError):
                while not self._end.is_set():
                    handler.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            handler.close_connection = True
        elif isinstance(what, str) and what.startswith("redirect:"):
            handler.send_response(307)
            handler.send_header("Location", what.partition(":")[2])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            status, body = (
                (what, b"ok") if isinstance(what, int) else (200, what if isinstance(what, bytes) else json.dumps(what).encode())
            )
            if 200 <= status < 300:
                self.accepted.append(got)
            handler.send_response(status)
            if status != 204:
                handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(b"" if status == 204 else body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Returns the events of all accepted bodies in Pusher's format."""
        return [event for got in list(self.accepted) for event in got.events]

    def until(self, count: int, deadline: float = 10) -> list[Got]:
        """Waits for at least this number of requests; returns all."""
        wait_until(lambda: len(self.got) >= count, f"{count} requests to the receiver", deadline)
        return list(self.got)

    def until_events(self, *names: str, deadline: float = 10) -> list[dict[str, Any]]:
        """Waits for as many accepted events as names; fails if they are not these events in this order."""
        wait_until(lambda: len(self.events) >= len(names), f"events {names}, got {self.events}", deadline)
        assert [event["name"] for event in self.events] == list(names)
        return self.events

    def close(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver(context)
    try:
        yield receiver
    finally:
        receiver.close()
