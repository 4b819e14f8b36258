"""The requests that publish an event to each kind of server."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable

APP, KEY, SECRET = "app-test", "app-key", "secret"
EVENT = "bench"
PAYLOAD = 100

Request = Callable[[str, str], bytes]
"""(channel, data) → a whole HTTP request that publishes it"""


def post(target: str, body: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def event(channel: str, data: str) -> bytes:
    return json.dumps({"name": EVENT, "channels": [channel], "data": data}, separators=(",", ":")).encode()


def frame(channel: str, data: str) -> bytes:
    """Returns the frame that a Pusher subscriber receives; peers without the Pusher protocol deliver this frame unchanged."""
    return json.dumps({"event": EVENT, "channel": channel, "data": data}, separators=(",", ":")).encode()


def unsigned_event(channel: str, data: str) -> bytes:
    return post(f"/apps/{APP}/events", event(channel, data))


def signed_event(channel: str, data: str) -> bytes:
    """Returns a request with Pusher's signature (Pusher HTTP API, Authentication), which is valid for ten minutes."""
    body = event(channel, data)
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    query = f"auth_key={KEY}&auth_timestamp={int(time.time())}&auth_version=1.0&body_md5={digest}"
    text = f"POST\n/apps/{APP}/events\n{query}"
    signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    return post(f"/apps/{APP}/events?{query}&auth_signature={signature}", body)


def nchan_event(channel: str, data: str) -> bytes:
    return post(f"/pub/{channel}", frame(channel, data))


def nchan_kept_event(channel: str, data: str) -> bytes:
    return post(f"/keep/{channel}", frame(channel, data))


def csend_event(channel: str, data: str) -> bytes:
    return post("/", frame(channel, data))
