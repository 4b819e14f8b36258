"""A small client for trying things: what `push1st publish` and `push1st subscribe` do.

It speaks the signed HTTP API and the Pusher protocol as any backend and any browser would.
"""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from push1st import auth
from push1st.channels import kind_of
from push1st.errors import ClientError

Show = Callable[[str, str, str], None]
"""Gets channel, event and data."""


def publish(api: str, app: str, key: str, secret: str, channels: list[str], event: str, data: object) -> str:
    """Publishes an event and returns the server's answer; signed if there is a secret. Raises ClientError."""
    url = urlsplit(api)
    path = f"{url.path.rstrip('/')}/apps/{quote(app, safe='')}/events"
    body = json.dumps({"name": event, "channels": channels, "data": data}).encode()
    target = path
    if secret:
        target = f"{path}?{urlencode(auth.sign_request(key, secret, 'POST', path, {}, body, int(time.time())))}"
    factory = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = factory(url.hostname or "127.0.0.1", url.port, timeout=10)
    try:
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read().decode()
    except (OSError, http.client.HTTPException) as wrong:
        raise ClientError(f"no answer from {api}: {wrong}; is the server running?") from wrong
    finally:
        connection.close()
    if response.status != 200:
        raise ClientError(f"{api} answered {response.status}: {answer}")
    return answer


def subscribe(
    url: str,
    key: str,
    secret: str,
    channels: list[str],
    show: Show,
    ready: Callable[[], None],
    count: int = 0,
) -> None:
    """Shows every event on the channels (channel, event, data), until the server ends or `count` have come.

    ready: called once all channels are subscribed to. Raises ClientError.
    """
    missing = [name for name in channels if kind_of(name).needs_auth and not secret]
    if missing:
        raise ClientError(f"{missing[0]} needs the app's secret: give it with --secret")
    try:
        with connect(f"{url.rstrip('/')}/app/{quote(key, safe='')}?protocol=7&client=push1st", open_timeout=10) as socket:
            _listen(socket, key, secret, channels, show, ready, count)
    except ConnectionClosed as end:
        close = end.rcvd
        raise ClientError(
            f"the server closed the connection: {close.code} {close.reason}" if close else "the connection broke"
        ) from end
    except BrokenPipeError:  # of standard output; a broken connection is a ConnectionClosed
        raise
    except (OSError, InvalidHandshake) as wrong:
        raise ClientError(f"no connection to {url}: {wrong}; is the server running?") from wrong


def _listen(
    socket: ClientConnection,
    key: str,
    secret: str,
    channels: list[str],
    show: Show,
    ready: Callable[[], None],
    count: int,
) -> None:
    waiting = set(channels)
    for text in socket:
        frame: dict[str, Any] = json.loads(text)
        event, channel, data = frame["event"], frame.get("channel", ""), frame.get("data", "")
        if event == "pusher:connection_established":
            for name in dict.fromkeys(channels):
                socket.send(
                    json.dumps({"event": "pusher:subscribe", "data": _wanted(json.loads(data)["socket_id"], key, secret, name)})
                )
        elif event == "pusher_internal:subscription_succeeded":
            waiting.discard(channel)
            if not waiting:
                ready()
        elif event == "pusher:error" and 4000 <= (data["code"] or 0) < 4300:
            continue  # the close frame that follows says the same
        elif event in ("pusher:error", "pusher:subscription_error"):
            raise ClientError(f"the server refused {channel}: {data}" if channel else f"the server said: {data}")
        elif event == "pusher:ping":
            socket.send('{"event":"pusher:pong"}')
        elif event != "pusher:pong":
            show(channel, event, data)
            count -= 1
            if count == 0:
                return


def _wanted(socket_id: str, key: str, secret: str, name: str) -> dict[str, str]:
    kind = kind_of(name)
    wanted = {"channel": name}
    if kind.needs_auth:
        if kind.presence:
            wanted["channel_data"] = json.dumps({"user_id": f"push1st-{socket_id}"})
        wanted["auth"] = f"{key}:{auth.channel_signature(secret, socket_id, name, wanted.get('channel_data', ''))}"
    return wanted
