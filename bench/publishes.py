"""The requests and packets that publish an event to each kind of server."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable

APP, KEY, SECRET = "app-test", "app-key", "secret"
EVENT = "bench"
PAYLOAD = 100

Request = Callable[[str, str], bytes]
"""(channel, data) → a whole HTTP request or MQTT packet that publishes it"""


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


def mqtt_body(first: int, body: bytes) -> bytes:
    """Returns an MQTT packet: the first byte, the remaining length (§2.1.4), and the rest."""
    left, head = len(body), bytearray((first,))
    while left > 127:
        head.append(left & 127 | 128)
        left >>= 7
    return bytes((*head, left)) + body


def mqtt_packet(level: int, qos: int, topic: str, data: str, packet_id: int = 0) -> bytes:
    """Returns a PUBLISH (§3.3).

    level: 4 for MQTT 3.1.1, 5 for 5.0.
    packet_id: for QoS 1 and 2; load.c replaces it.
    """
    identified = packet_id.to_bytes(2, "big") if qos else b""
    properties = b"\0" * (level == 5)
    name = topic.encode()
    return mqtt_body(0x30 | qos << 1, len(name).to_bytes(2, "big") + name + identified + properties + data.encode())


def access_token(channels: str) -> str:
    """Returns an access token of this server's app for these channels (a trailing `*` makes a prefix), without an end."""

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    claims = {"app": APP, "channel": channels, "origin": "*"}
    text = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest())}"
