"""A raw WebSocket client of Push1st's kind, over `websockets`."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.process import DEADLINE, ServerProcess
from tests.support.pusher_socket import PLAIN


class RawSocket:
    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def receive(self, deadline: float = DEADLINE) -> dict[str, Any]:
        """Returns the next message."""
        return json.loads(self.connection.recv(deadline))  # type: ignore[no-any-return]  # JSON

    def expect(self, event: str, channel: str) -> Any:
        """Returns `data` of the next message; fails if it is another event."""
        message = self.receive()
        assert (message["event"], message["channel"]) == (event, channel), message
        return message["data"]

    def expect_error(self) -> dict[str, Any]:
        """Returns `data` of the next message; fails if it is not an error."""
        message = self.receive()
        assert message["event"] == "error", message
        assert isinstance(message["data"]["code"], int), message
        assert isinstance(message["data"]["message"], str), message
        return message["data"]  # type: ignore[no-any-return]  # JSON

    def publish(self, channel: str, event: str, data: Any, **options: Any) -> None:
        frame = {"channel": channel, "event": event, "data": data}
        if options:
            frame["options"] = options
        self.connection.send(json.dumps(frame))

    def close_code(self) -> int:
        """Returns the close code of the server; skips other messages."""
        try:
            while True:
                self.receive()
        except ConnectionClosed:
            assert self.connection.close_code is not None
            return self.connection.close_code

    def round_trip(self) -> list[dict[str, Any]]:
        """Sends a ping and returns the messages before the pong. An empty list shows that no message was sent."""
        assert self.connection.ping().wait(DEADLINE), "no pong"
        before = []
        with contextlib.suppress(TimeoutError):
            while True:
                before.append(self.receive(0))
        return before


@contextlib.contextmanager
def raw_socket(
    server: ServerProcess, *channels: str, query: str = "", key: str = "app-key", **options: Any
) -> Iterator[RawSocket]:
    """Opens a connection with `channels` in its path, percent-encoded if necessary."""
    path = "/".join(["ws", "app", key, *channels])
    with connect(f"{server.ws}/{path}{query and '?'}{query}", **{**PLAIN, **options}) as connection:
        yield RawSocket(connection)
