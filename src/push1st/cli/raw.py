"""Subscribes to channels by the raw WebSocket protocol, which lets a client name the position at which it resumes."""

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from websockets.sync.client import ClientConnection

from push1st import auth
from push1st.channels import kind_of
from push1st.errors import ClientError, Rejected

Show = Callable[[str, str, str, str], None]
"""A function that takes the position, the channel, the name and the data of an event, and prints them."""
Report = Callable[[str, dict[str, Any]], None]
"""A function that takes a channel and the data of `resumed`: whether the client gets all messages since its position."""


def raw_path(base: str, app: str, key: str, secret: str, channels: list[str], since: list[str] | None, rewind: str | None) -> str:
    """Returns path and query of the URL, with an access token for the channels that need one.

    base: the part of the path before the app's key, such as /ws/app/.
    app: the app's id.
    since: a position for each channel, or `-` for a channel without a position.
    rewind: the number of the latest events, or their maximum age such as 30s.
    """
    if since and len(since) != len(channels):
        raise ClientError(f"--since has {len(since)} positions for {len(channels)} channels: give one for each, or - for none")
    query = {"positions": "1"}
    if since:
        query["since"] = ",".join(since)
    if rewind:
        query["rewind"] = rewind
    private = [name for name in channels if kind_of(name).needs_auth]
    if private:
        query["token"] = auth.access_token(secret, app, "*", private, 60, int(time.time()))
    return f"{base}{'/'.join(quote(part, safe='') for part in (key, *channels))}?{urlencode(query, safe=':,')}"


def receive(
    connection: ClientConnection,
    channels: list[str],
    show: Show,
    report: Report,
    ready: Callable[[], None],
    count: int,
) -> None:
    """Reads frames until the server ends the connection, or until `count` events were shown; 0: there is no limit.

    ready: a function that is called once, when `report` has been called for all channels.
    """
    unconfirmed = set(channels)
    for text in connection:
        try:
            frame: dict[str, Any] = json.loads(text)
            event, channel, data = frame["event"], frame.get("channel", ""), frame.get("data")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ClientError(f"the server does not speak Push1st's raw protocol: it sent {text[:100]!r}") from None
        if "#msg-id" in frame:
            show(str(frame.get("#msg-pos", "-")), channel, event, data if isinstance(data, str) else json.dumps(data))
            count -= 1
            if count == 0:
                return
        elif event == "resumed" and isinstance(data, dict):
            report(channel, data)
            if channel in unconfirmed:
                unconfirmed.discard(channel)
                if not unconfirmed:
                    ready()
        elif event == "error":
            code = data.get("code") if isinstance(data, dict) else None
            raise Rejected(f"the server reported an error: {json.dumps(data)}", code if isinstance(code, int) else 0)
