"""An operator of the console, over plain HTTP."""

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.support.process import DEADLINE, Answer, ServerProcess, free_ports, merged, running

PASSWORD = "the password of the operators"


class Operator:
    """A client of a console. It keeps the cookie, and sends the headers that the console's own page sends.

    origin: the origin of the console, as the browser sees it.
    trust: the TLS context of the client; None without TLS.
    """

    def __init__(self, port: int, *, origin: str = "", host: str = "", trust: ssl.SSLContext | None = None) -> None:
        scheme = "http" if trust is None else "https"
        self.port = port
        self.origin = origin or f"{scheme}://127.0.0.1:{port}"
        self.host = host or f"127.0.0.1:{port}"
        self.trust = trust
        self.cookie = ""

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None) -> Answer:
        """Sends a request on a connection of its own. headers: further headers; None removes one that the page sends."""
        own: dict[str, str | None] = {"Host": self.host, "Cookie": self.cookie or None, "Sec-Fetch-Site": "same-origin"}
        if method not in ("GET", "HEAD"):
            own |= {"Origin": self.origin, "Push1st-Console": "1"}
        sent = {name: value for name, value in {**own, **(headers or {})}.items() if value is not None}
        if self.trust is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=DEADLINE, context=self.trust)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                connection.putheader(name, value)
            if raw is not None:
                connection.putheader("Content-Length", str(len(raw)))
            connection.endheaders(raw)
            response = connection.getresponse()
            answer = Answer(response.status, response.msg, response.read())
        finally:
            connection.close()
        if cookie := answer.headers.get("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        return answer

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: Any = None, **headers: str | None) -> Answer:
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def sign_in(self, password: str = PASSWORD) -> "Operator":
        answer = self.post("/api/login", {"password": password})
        assert answer.status == 200, answer
        return self


class LivePage:
    """The live channel of a page."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, message: Any) -> None:
        self.socket.send(message if isinstance(message, str) else json.dumps(message))

    def receive(self) -> Any:
        return json.loads(self.socket.recv(timeout=DEADLINE))

    def close_code(self) -> int | None:
        """Returns the close code of the server, after all messages before it."""
        try:
            while True:
                self.receive()
        except ConnectionClosed as end:
            return None if end.rcvd is None else end.rcvd.code

    def until(self, wanted: Callable[[Any], object], seconds: float = DEADLINE) -> Any:
        """Returns the first message that fits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self.receive()
            if wanted(message):
                return message
        raise AssertionError("no such message")


@contextlib.contextmanager
def live(operator: Operator) -> Iterator[LivePage]:
    """Opens the live channel of a signed-in operator."""
    headers = {"Cookie": operator.cookie, "Sec-Fetch-Site": "same-origin"}
    url = f"ws://127.0.0.1:{operator.port}/api/live"
    with connect(url, origin=Origin(operator.origin), additional_headers=headers, compression=None) as socket:
        yield LivePage(socket)


@contextlib.contextmanager
def console(
    config: Mapping[str, Any] | None = None, apps: Mapping[str, Any] | None = None, **keys: Any
) -> Iterator[tuple[ServerProcess, Operator]]:
    """Runs a server with a console, and returns it with an operator who has not signed in. keys: keys of `console`."""
    (port,) = free_ports(1)
    section = {"password": PASSWORD, "listen": f"tcp://127.0.0.1:{port}", **keys}
    with running(merged({"console": section}, config or {}), apps) as server:
        yield server, Operator(port)
