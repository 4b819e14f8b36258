"""HTTP requests as bytes, and the parsed responses to them."""

import base64
import json
import re
from typing import Any

from push1st import auth
from tests.support.loop import Clock
from tests.support.node import KEY, SECRET


def handshake(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
    given = {header.partition(":")[0].lower() for header in headers}
    if "sec-websocket-version" not in given:
        lines.append("Sec-WebSocket-Version: 13")
    if "sec-websocket-key" not in given:
        lines.append(f"Sec-WebSocket-Key: {base64.b64encode(b'sixteen bytes ok').decode()}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def request(method: str, path: str, body: bytes | str | None = None, *headers: str, version: str = "1.1") -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Answer:
    """The first HTTP response in `data`. `rest` has the bytes after it."""

    def __init__(self, data: bytes, head_only: bool = False) -> None:
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, data
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", first)
        assert found, first
        self.status = int(found[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = 0 if head_only or self.status in (100, 101) else int(self.headers["content-length"])
        assert len(rest) >= size, data
        self.body, self.rest = rest[:size], rest[size:]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def keeps(self) -> bool:
        return self.headers.get("connection") != "close"


def answers(data: bytes) -> list[Answer]:
    """Returns all responses in `data`."""
    found = []
    while data:
        found.append(Answer(data))
        data = found[-1].rest
    return found


def statuses(data: bytes) -> list[int]:
    return [answer.status for answer in answers(data)]


def signed(method: str, path: str, body: bytes = b"", params: dict[str, str] | None = None, clock: Clock | None = None) -> str:
    """Returns the query of a signed API call."""
    now = (clock or Clock()).wall() // 1_000_000_000
    query = auth.sign_request(KEY, SECRET, method, path, params or {}, body, now)
    return "&".join(f"{name}={value}" for name, value in query.items())
