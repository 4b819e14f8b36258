"""Floods of one connection: the same frames or requests again and again, as fast as the server accepts them."""

import contextlib
import json
import socket
import threading

from tests.support.process import DEADLINE
from tests.support.wire import HANDSHAKE, PING, PONG, TEXT, frame

FLOODING = 8
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
"""bytes that are sent first, and bytes that are sent repeatedly"""


def flood(port: int, opening: bytes, unit: bytes, over: threading.Event) -> None:
    """Sends until `over` is set; connects again when the server ends the connection."""
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
