"""The client of an HTTP fallback: its requests, and the frames in the responses."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

from tests.support.process import DEADLINE
from tests.support.pusher_socket import QUERY

XHR = "/pusher/app/app-key/7/01234567"
SUBSCRIBE = json.dumps([json.dumps({"event": "pusher:subscribe", "data": {"channel": "c"}})])


@contextlib.contextmanager
def request(port: int, endpoint: str, body: str = "") -> Iterator[http.client.HTTPConnection]:
    """Sends a request of an HTTP fallback session, without waiting for the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("POST", f"{XHR}/{endpoint}?{QUERY}", body, {"Content-Type": "text/plain"})
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def xhr(port: int, endpoint: str, body: str = "") -> Iterator[http.client.HTTPResponse]:
    """Sends a request of an HTTP fallback session, and waits for the head of the answer."""
    with request(port, endpoint, body) as connection:
        yield connection.getresponse()


def poll(port: int) -> list[bytes]:
    """Returns the lines of one poll."""
    with xhr(port, "xhr") as response:
        return response.read().splitlines()


def open_session(port: int) -> None:
    lines: list[bytes] = []
    while len(lines) < 2:
        lines += poll(port)
    assert lines[0] == b"o"
    assert frames(lines[1])[0]["event"] == "pusher:connection_established"


def frames(line: bytes) -> list[dict[str, Any]]:
    """Returns the Pusher frames in a line of an HTTP fallback."""
    assert line.startswith(b"a"), line
    return [json.loads(text) for text in json.loads(line[1:])]
