"""A server that does exactly what a test prescribes, for behaviour that a real server shows only by chance.

A test accepts each connection of a client, reads what the client has sent, and sends frames, over a WebSocket or over a stream of
server-sent events. Tests use it only for rules of clients; how the real server behaves is tested with the real server.
"""

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.support.process import DEADLINE

Road = Literal["ws", "sse"]


class Peer(Protocol):
    """The server's side of one connection. path: the path and the query. token: the access token; "" without one."""

    path: str
    token: str

    def frame(self, frame: Any) -> None:
        """Sends one frame."""

    def end(self) -> None:
        """Ends the connection without an error."""

    def wait_closed(self) -> None:
        """Waits until the client has ended the connection."""


def since(peer: Peer) -> str:
    """Returns the positions that the client has sent."""
    return parse_qs(urlsplit(peer.path).query)["since"][0]


def message(peer: Peer, channel: str, event: str, data: Any = None, position: str = "") -> None:
    """Sends an event."""
    fields: dict[str, Any] = {"event": event, "channel": channel, "data": data}
    if isinstance(peer, SocketPeer):
        fields |= {"#msg-id": 1795480000000000000, "#msg-from": "api"} | ({"#msg-pos": position} if position else {})
    else:
        fields["pos"] = position or None
    peer.frame(fields)


def resumed(peer: Peer, channel: str, position: str = "", *, reason: str = "", replayed: int = 0) -> None:
    """Sends the answer to a subscription. reason: why the client does not get all messages; "": the client gets all of them."""
    data: dict[str, Any] = {"recovered": False, "reason": reason} if reason else {"recovered": True, "repeats": False}
    if replayed or not reason:
        data["replayed"] = replayed
    peer.frame({"event": "resumed", "channel": channel, "data": data | ({"position": position} if position else {})})


class SocketPeer:
    """A WebSocket."""

    def __init__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.path = connection.request.path
        self.token = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        self._connection = connection

    def frame(self, frame: Any) -> None:
        self._connection.send(json.dumps(frame))

    def received(self) -> Any:
        """Returns the next frame of the client."""
        return json.loads(self._connection.recv(DEADLINE))

    def close(self, code: int, reason: str = "") -> None:
        self._connection.close(code, reason)

    def end(self) -> None:
        self._connection.socket.shutdown(socket.SHUT_RDWR)

    def wait_closed(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._connection.recv(DEADLINE)


class StreamPeer:
    """A request for a stream of server-sent events."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.path = handler.path
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.token = self.headers.get("authorization", "").removeprefix("Bearer ")
        self.is_answered = False
        self.done = threading.Event()
        self._handler = handler

    def answer(self, status: int, body: bytes = b"") -> None:
        """Answers with a complete response."""
        self._handler.send_response(status)
        self._handler.send_header("Content-Length", str(len(body)))
        self._handler.end_headers()
        self._handler.wfile.write(body)
        self.done.set()

    def write(self, text: bytes) -> None:
        """Sends a part of the stream; before the first part, the head of the response."""
        if not self.is_answered:
            self.is_answered = True
            self._handler.send_response(200)
            self._handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self._handler.end_headers()
        self._handler.wfile.write(text)
        self._handler.wfile.flush()

    def frame(self, frame: Any) -> None:
        self.write(f"data: {json.dumps(frame, ensure_ascii=False)}\n\n".encode())

    def end(self) -> None:
        self.done.set()

    def wait_closed(self) -> None:
        connection = self._handler.connection
        connection.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""


class ScriptedServer:
    """The server. base: the URL of an app. The server accepts every path."""

    def __init__(self, base: str, peers: "queue.Queue[Peer]") -> None:
        self.base = base
        self._peers = peers

    def accept(self) -> Any:
        """Returns the peer of the next connection."""
        return self._peers.get(timeout=DEADLINE)


@contextlib.contextmanager
def scripted(road: Road) -> Iterator[ScriptedServer]:
    """Runs a scripted server for the length of a `with` block."""
    peers: queue.Queue[Peer] = queue.Queue()
    with _sockets(peers) if road == "ws" else _streams(peers) as base:
        yield ScriptedServer(base, peers)


@contextlib.contextmanager
def _sockets(peers: "queue.Queue[Peer]") -> Iterator[str]:
    ended = threading.Event()

    def handle(connection: ServerConnection) -> None:
        peers.put(SocketPeer(connection))
        ended.wait()

    with serve(handle, "127.0.0.1", 0, ping_interval=None, close_timeout=1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws/app/app-key"
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _streams(peers: "queue.Queue[Peer]") -> Iterator[str]:
    accepted: list[StreamPeer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            peer = StreamPeer(self)
            accepted.append(peer)
            peers.put(peer)
            peer.done.wait()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/sse/app/app-key"
        finally:
            for peer in accepted:
                peer.done.set()
            server.shutdown()
            thread.join()
