"""A Pusher client that returns each frame unchanged, over `websockets`.

Pusher's libraries hide some frames from their users; this client shows all frames.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.process import DEADLINE, ServerProcess
from tests.support.signing import channel_auth, hmac_hex

# The client reads all frames at once, so that a test can close without reading them. Only tests send pings.
PLAIN: dict[str, Any] = {"compression": None, "max_queue": None, "ping_interval": None}
QUERY = "protocol=7&client=js&version=8.6.0&flash=false"


class PusherSocket:
    """One connection: established, or about to be closed."""

    def __init__(self, connection: ClientConnection, key: str) -> None:
        self.connection = connection
        self.key = key
        self.socket_id = ""
        self.frames: list[dict[str, Any]] = []
        """all received frames, in order"""

    def established(self) -> "PusherSocket":
        """Reads the greeting."""
        frame = self.receive()
        assert frame["event"] == "pusher:connection_established", frame
        self.socket_id = json.loads(frame["data"])["socket_id"]
        return self

    def send(self, event: str, data: Any = None, channel: str | None = None, **more: Any) -> None:
        frame = {"event": event, "data": {} if data is None else data, **more}
        if channel is not None:
            frame["channel"] = channel
        self.connection.send(json.dumps(frame))

    def receive(self, deadline: float = DEADLINE) -> dict[str, Any]:
        """Returns the next frame."""
        frame = json.loads(self.connection.recv(deadline))
        self.frames.append(frame)
        return frame  # type: ignore[no-any-return]  # JSON

    def expect(self, event: str, channel: str | None = None) -> Any:
        """Returns the decoded `data` of the next frame; fails if it is another event."""
        frame = self.receive()
        assert frame["event"] == event, frame
        assert frame.get("channel") == channel, frame
        assert isinstance(frame["data"], str), f"data is a string in every frame but pusher:error: {frame}"
        return json.loads(frame["data"])

    def expect_error(self) -> dict[str, Any]:
        """Returns `data` of the next frame; fails if it is not a `pusher:error`."""
        frame = self.receive()
        assert frame["event"] == "pusher:error", frame
        data = frame["data"]
        assert isinstance(data, dict), f"data of pusher:error is an object: {frame}"
        return data

    def expect_refusal(self, channel: str | None = None) -> dict[str, Any]:
        """Returns the data of the next frame, which must reject a subscription; an error frame with the same text must follow."""
        frame = self.receive()
        if frame["event"] == "pusher:error":
            assert channel is None, frame
            return frame["data"]  # type: ignore[no-any-return]  # JSON
        assert frame["event"] == "pusher:subscription_error", frame
        assert channel is None or frame["channel"] == channel, frame
        data: dict[str, Any] = json.loads(frame["data"])
        error = self.receive()
        assert error["event"] == "pusher:error", error
        assert error["data"] == {"code": None, "message": data["error"]}
        assert error.get("channel", "") == frame["channel"]
        return data

    def subscribe(self, channel: str, user: dict[str, Any] | None = None) -> Any:
        """Subscribes, with a signature if the kind of the channel needs one; returns the decoded `data` of the reply."""
        self.request_subscription(channel, user)
        return self.expect("pusher_internal:subscription_succeeded", channel)

    def request_subscription(self, channel: str, user: dict[str, Any] | None = None, secret: str = "secret") -> None:
        data: dict[str, Any] = {"channel": channel}
        if user is not None:
            data["channel_data"] = json.dumps(user)
        if channel.startswith(("private-", "presence-", "protected-")):
            data["auth"] = channel_auth(self.socket_id, channel, data.get("channel_data", ""), self.key, secret)
        self.send("pusher:subscribe", data)

    def round_trip(self) -> list[dict[str, Any]]:
        """Sends a ping and returns the frames before the pong. An empty list shows that no other frame was sent."""
        self.send("pusher:ping")
        before = []
        while (frame := self.receive())["event"] != "pusher:pong":
            before.append(frame)
        return before

    def close_code(self, deadline: float = DEADLINE) -> int:
        """Returns the close code of the server; skips other frames."""
        try:
            while True:
                self.receive(deadline)
        except ConnectionClosed:
            assert self.connection.close_code is not None
            return self.connection.close_code

    def close(self) -> None:
        self.connection.close()


@contextlib.contextmanager
def dialled(server: ServerProcess, path: str = "/app/app-key", query: str = QUERY, **options: Any) -> Iterator[PusherSocket]:
    """Opens a connection, without reading its greeting."""
    with connect(f"{server.ws}{path}?{query}", **{**PLAIN, **options}) as connection:
        yield PusherSocket(connection, path.partition("/app/")[2])


@contextlib.contextmanager
def pusher_socket(server: ServerProcess, key: str = "app-key", **options: Any) -> Iterator[PusherSocket]:
    """Opens an established connection."""
    with dialled(server, f"/app/{key}", **options) as socket:
        yield socket.established()


def ask_to_sign_in(client: PusherSocket, user_data: Any, secret: str = "secret", socket_id: str | None = None) -> None:
    """Sends a sign-in. user_data: a text is sent unchanged, other values as JSON."""
    text = user_data if isinstance(user_data, str) else json.dumps(user_data)
    signature = hmac_hex(secret, f"{client.socket_id if socket_id is None else socket_id}::user::{text}")
    client.send("pusher:signin", {"auth": f"{client.key}:{signature}", "user_data": text})


def sign_in(client: PusherSocket, id: str, **more: Any) -> None:
    user_data = json.dumps({"id": id, **more})
    ask_to_sign_in(client, user_data)
    assert client.expect("pusher:signin_success") == {"user_data": user_data}


def statuses(client: PusherSocket) -> dict[str, list[str]]:
    """Returns the user ids of each event in the next frame, which must be a watchlist event."""
    return {event["name"]: event["user_ids"] for event in client.expect("pusher_internal:watchlist_events")["events"]}
