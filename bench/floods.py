"""Floods: each kind of input that a client can send without a pause, and the process that sends it.

    python bench/floods.py NAME WEBSOCKET_PORT API_PORT TLS_PORT MQTT_PORT [CONNECTIONS]

The process keeps `CONNECTIONS` connections open (a flood may need more), sends on each as fast as the server reads, and replaces
a connection as soon as the server ends it. On SIGTERM the process prints one line of JSON: bytes sent, connections opened. It
sends to 127.0.0.1 only. `fairness.py` starts the process and measures the latency of other clients.
"""

import contextlib
import hashlib
import hmac
import json
import os
import selectors
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from publishes import mqtt_body, mqtt_packet
from servers import raise_file_limit

KEY, SECRET, APP = "app-key", "secret", "app-test"
CONNECTIONS = 8
HELD = 500
"""connections of a flood that sends nothing and only holds them"""
CHUNK = 131_072
"""bytes of repeated messages in one write"""
RECORDS = 200
"""TLS records encrypted at once; the buffer of OpenSSL copies its whole content whenever it grows"""
MASK = b"\x01\x02\x03\x04"


def frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A client's WebSocket frame (RFC 6455 §5.2)."""
    size = len(payload)
    head = bytes((opcode | (0x80 if fin else 0),))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65_536:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    repeated = MASK * (size // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:size], "big")
    return head + MASK + masked.to_bytes(size, "big")


def text(event: str, data: Any, **more: str) -> bytes:
    return frame(1, json.dumps({"event": event, "data": data, **more}).encode())


def handshake(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def signature(text: str) -> str:
    return f"{KEY}:{hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()}"


def mqtt_text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


def mqtt_connect(level: int = 4, client: str = "", password: str = "", will: str = "") -> bytes:
    """Returns a CONNECT (§3.1) with a clean session and the app's key as the user name.

    level: 4 for MQTT 3.1.1, 5 for 5.0. will: the topic of a will.
    """
    flags = 0x82 | (0x40 if password else 0) | (0x04 if will else 0)
    properties = b"\0" * (level == 5)
    body = mqtt_text("MQTT") + bytes((level, flags, 0, 0)) + properties + mqtt_text(client)
    if will:
        body += properties + mqtt_text(will) + mqtt_text("gone")
    return mqtt_body(0x10, body + mqtt_text(KEY) + (mqtt_text(password) if password else b""))


def mqtt_subscribe(*filters: str) -> bytes:
    return mqtt_body(0x82, b"\0\1" + b"".join(mqtt_text(one) + b"\1" for one in filters))


def mqtt_unsubscribe(*filters: str) -> bytes:
    return mqtt_body(0xA2, b"\0\1" + b"".join(mqtt_text(one) for one in filters))


PUSHER = handshake(f"/app/{KEY}?protocol=7")
RAW = handshake(f"/ws/app/{KEY}/flood")


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind of flood.

    opening: sent first. repeated: returns the bytes to repeat, from the connection's socket id ("" if it has none).
    port: of the WebSockets, the API, TLS, or MQTT. connections: kept open. reads: whether the client reads the answers.
    """

    what: str
    opening: bytes = b""
    repeated: Callable[[str], bytes] = lambda _: b""
    port: str = "websocket"
    connections: int = CONNECTIONS
    reads: bool = True
    start: bytes = field(default=b"", repr=False)
    """sent once before the first repetition, when the socket id is known"""


def joins(socket_id: str) -> bytes:
    data = json.dumps({"user_id": socket_id})
    auth = signature(f"{socket_id}:presence-flood:{data}")
    join = text("pusher:subscribe", {"channel": "presence-flood", "auth": auth, "channel_data": data})
    return join + text("pusher:unsubscribe", {"channel": "presence-flood"})


def sign_ins(socket_id: str) -> bytes:
    data = json.dumps({"id": socket_id})
    return text("pusher:signin", {"auth": signature(f"{socket_id}::user::{data}"), "user_data": data})


def client_events(socket_id: str) -> bytes:
    subscribe = text("pusher:subscribe", {"channel": "private-flood", "auth": signature(f"{socket_id}:private-flood")})
    return subscribe + text("client-e", {"a": 1}, channel="private-flood") * 200


def of(data: bytes) -> Callable[[str], bytes]:
    return lambda _: data


EVENT = json.dumps({"name": "e", "channels": ["flood"], "data": "x" * 100}).encode()
SUBSCRIBE = text("pusher:subscribe", {"channel": "counted"}) + text("pusher:unsubscribe", {"channel": "counted"})
TINY = frame(1, b"{", False) + frame(0, b"}", False) * 200 + frame(0, b"")
RAW_EVENT = frame(1, json.dumps({"event": "e", "channel": "flood", "data": "x" * 50}).encode())
OFFER = b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
CHUNKED = f"POST /apps/{APP}/events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
FALLBACK = f"/app/{KEY}/1/floodflood"
DEVICE, DEVICE_5 = mqtt_connect(), mqtt_connect(5)
PINGREQ, DISCONNECT = b"\xc0\0", b"\xe0\0"
READING = mqtt_packet(4, 0, "flood", "x" * 100)
FILTERS = [f"flood/{number}" for number in range(1000)]
RETAINED = b"".join(b"\x31" + mqtt_packet(4, 0, f"flood/{number}", "x" * 1000)[1:] for number in range(100))
PROPERTIES = b"".join(b"\x26" + mqtt_text("k") + mqtt_text("v") for _ in range(1000))
PROPERTIES = bytes((len(PROPERTIES) & 127 | 128, len(PROPERTIES) >> 7)) + PROPERTIES  # §1.5.5


def device(what: str, unit: bytes, opening: bytes = DEVICE, start: bytes = b"", reads: bool = True) -> Flood:
    """A flood of a connected MQTT client."""
    return Flood(f"MQTT: {what}", opening, of(unit), "mqtt", reads=reads, start=start)


MQTT_FLOODS: dict[str, Flood] = {
    "mqtt-pings": device("PINGREQ", PINGREQ),
    "mqtt-no-reader": device("PINGREQ of a client that reads nothing", PINGREQ, reads=False),
    "mqtt-publishes-0": device("publishes, QoS 0", READING),
    "mqtt-publishes-1": device("publishes, QoS 1, with the same packet id", mqtt_packet(4, 1, "flood", "x" * 100, 1)),
    "mqtt-publishes-2": device(
        "publishes, QoS 2, each with its PUBREL", mqtt_packet(4, 2, "flood", "x" * 100, 1) + b"\x62\2\0\1"
    ),
    "mqtt-repeats-2": device("repetitions of a publish, QoS 2", b"\x3c" + mqtt_packet(4, 2, "flood", "x" * 100, 1)[1:]),
    "mqtt-retained": device("publishes that are retained, on 100 topics", RETAINED),
    "mqtt-large-publishes": device("publishes of 60 KB", mqtt_packet(4, 0, "flood", "x" * 60_000)),
    "mqtt-too-large": device("publishes above the limit", mqtt_packet(4, 0, "flood", "x" * 100_000)),
    "mqtt-properties": device("publishes with 1,000 user properties", mqtt_body(0x30, mqtt_text("flood") + PROPERTIES), DEVICE_5),
    "mqtt-pubacks": device("PUBACK of an unknown packet id", b"\x40\2\0\1"),
    "mqtt-pubrecs": device("PUBREC of an unknown packet id", b"\x50\2\0\1"),
    "mqtt-pubrels": device("PUBREL of an unknown packet id", b"\x62\2\0\1"),
    "mqtt-pubcomps": device("PUBCOMP of an unknown packet id", b"\x70\2\0\1"),
    "mqtt-subscribes": device("subscribe and unsubscribe", mqtt_subscribe("counted") + mqtt_unsubscribe("counted")),
    "mqtt-wildcards": device(
        "subscribe to wildcards and unsubscribe", mqtt_subscribe("+/" * 16 + "#") + mqtt_unsubscribe("+/" * 16 + "#")
    ),
    "mqtt-filters": device(
        "SUBSCRIBE with 1,000 filters, and UNSUBSCRIBE", mqtt_subscribe(*FILTERS) + mqtt_unsubscribe(*FILTERS)
    ),
    "mqtt-shared": device(
        "subscribe to a shared group and leave it", mqtt_subscribe("$share/g/c") + mqtt_unsubscribe("$share/g/c")
    ),
    "mqtt-retained-storm": device("subscribe to 100 retained messages again and again", mqtt_subscribe("#"), start=RETAINED),
    "mqtt-own-publishes": device("publishes that return to the publisher", READING, start=mqtt_subscribe("flood")),
    "mqtt-auth": device("AUTH packets", b"\xf0\0", DEVICE_5),
    "mqtt-connects": Flood("MQTT: connect, subscribe, disconnect", b"", of(DEVICE + mqtt_subscribe("c") + DISCONNECT), "mqtt"),
    "mqtt-connect-twice": device("a second CONNECT", DEVICE),
    "mqtt-takeovers": device("connections that take over one session", PINGREQ, mqtt_connect(client="flood")),
    "mqtt-wills": device("connections that end with a will", b"\0\0", mqtt_connect(will="flood")),
    "mqtt-wrong-passwords": Flood("MQTT: connect with a wrong password", b"", of(mqtt_connect(password="wrong")), "mqtt"),
    "mqtt-malformed": device("packets of type 0", b"\0\0"),
    "mqtt-first-256-mb": Flood("MQTT: a first packet of 256 MB", b"", of(b"\0" * 1000), "mqtt", start=b"\x10\xff\xff\xff\x7f"),
    "mqtt-no-mqtt": Flood("MQTT: HTTP requests on the MQTT port", b"", of(b"GET / HTTP/1.1\r\n\r\n"), "mqtt"),
    "mqtt-half": Flood("MQTT: connections with half a CONNECT", DEVICE[:9], port="mqtt", connections=HELD),
    "mqtt-silent": Flood("MQTT: connections that send nothing", port="mqtt", connections=HELD),
}
FLOODS: dict[str, Flood] = {
    "pings": Flood("empty WebSocket pings", PUSHER, of(frame(9, b""))),
    "pongs": Flood("empty WebSocket pongs", PUSHER, of(frame(10, b""))),
    "empty-fragments": Flood("empty fragments", PUSHER, of(frame(0, b"", False)), start=frame(1, b"{", False)),
    "tiny-fragments": Flood("messages in fragments of 1 byte", PUSHER, of(TINY)),
    "protocol-pings": Flood("pusher:ping messages", PUSHER, of(text("pusher:ping", {}))),
    "bad-messages": Flood("messages that are not JSON", PUSHER, of(frame(1, b"?"))),
    "subscribe-loop": Flood("subscribe and unsubscribe, with subscription counts", PUSHER, of(SUBSCRIBE)),
    "presence-joins": Flood("join and leave a presence channel", PUSHER, joins),
    "sign-ins": Flood("sign in again and again", PUSHER, sign_ins),
    "client-events": Flood("client events", PUSHER, client_events),
    "large-messages": Flood("messages of 60 KB", PUSHER, of(text("pusher:ping", "x" * 60_000))),
    "too-large": Flood("frames above the limit", PUSHER, of(frame(1, b"x" * 100_000))),
    "raw-publishes": Flood("raw publishes", RAW, of(RAW_EVENT)),
    "no-reader": Flood("pings of a client that reads nothing", PUSHER, of(frame(9, b"x" * 125)), reads=False),
    "connects": Flood(
        "connect, subscribe, close", PUSHER, of(text("pusher:subscribe", {"channel": "c"}) + frame(8, b"\x03\xe8"))
    ),
    "health": Flood("pipelined GET /health", b"", of(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")),
    "not-found": Flood("pipelined requests for a path that does not exist", b"", of(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")),
    "unsigned": Flood("pipelined publishes to the API, which are allowed", b"", of(post(f"/apps/{APP}/events", EVENT)), "api"),
    "bad-signatures": Flood(
        "pipelined publishes with a wrong signature", b"", of(post(f"/apps/{APP}/events?auth_key={KEY}", EVENT))
    ),
    "upgrades": Flood("pipelined requests that offer h2c", b"", of(OFFER)),
    "large-heads": Flood("heads of 15 KB", b"", of(b"GET /x HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 2500 + b"\r\n")),
    "tiny-chunks": Flood(
        "bodies in chunks of 1 byte",
        b"",
        of(CHUNKED + b"1\r\nx\r\n" * 8000 + b"0\r\n\r\n"),
    ),
    "large-bodies": Flood("bodies of 200 KB", b"", of(post(f"/apps/{APP}/events", b"[" * 200_000)), "api"),
    "fallback-sends": Flood(
        "messages over HTTP fallbacks, 100 a request",
        post(f"{FALLBACK}/xhr?protocol=7", b""),
        of(post(f"{FALLBACK}/xhr_send", json.dumps(['{"event":"pusher:ping","data":{}}'] * 100).encode())),
    ),
    "half-heads": Flood("connections with half a request", b"GET /app/", connections=HELD),
    "silent": Flood("connections that send nothing", connections=HELD),
    "silent-tls": Flood("TLS handshakes that stop in the middle", b"\x16\x03\x01\x02\x00\x01\x00", port="tls", connections=HELD),
    "tls-handshakes": Flood("TLS handshakes without a pause", port="tls"),
    "tls-pings": Flood("empty pings, one a TLS record", PUSHER, of(frame(9, b"")), "tls"),
    "tls-requests": Flood("pipelined GET /health over TLS", b"", of(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"), "tls"),
    **MQTT_FLOODS,
}


class Sender:
    """The process: all connections of one flood."""

    def __init__(self, flood: Flood, ports: dict[str, int]) -> None:
        self.flood = flood
        self.address = "127.0.0.1", ports[flood.port]
        self.sent = 0
        self.opened = 0
        self.over = False

    def run(self) -> None:
        if self.flood is FLOODS["tls-handshakes"]:
            threads = [threading.Thread(target=self._tls_handshakes, daemon=True) for _ in range(self.flood.connections)]
            for thread in threads:
                thread.start()
            while not self.over:
                time.sleep(0.1)
            return
        selector = selectors.DefaultSelector()
        for _ in range(self.flood.connections):
            self._open(selector)
        while not self.over:
            for key, events in selector.select(0.1):
                if not key.data.ready(key.fileobj, events):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    self._open(selector)

    def _open(self, selector: selectors.BaseSelector) -> None:
        if self.flood.port == "tls" and self.flood.repeated(""):
            stream = TlsStream(self, self.flood)
            selector.register(stream.connect(), selectors.EVENT_WRITE | selectors.EVENT_READ, stream)
            return
        one = socket.socket()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(self.address)
        self.opened += 1
        events = selectors.EVENT_WRITE | (selectors.EVENT_READ if self.flood.reads else 0)
        selector.register(one, events, Stream(self, self.flood))

    def _tls_handshakes(self) -> None:
        while not self.over:
            with contextlib.suppress(OSError), socket.create_connection(self.address, 5) as plain:
                TlsStream.context().wrap_socket(plain).close()
                self.opened += 1


class Stream:
    """One connection: the next bytes to send, and whether the socket id that a flood needs has arrived."""

    def __init__(self, sender: Sender, flood: Flood) -> None:
        self.sender = sender
        self.flood = flood
        self.due = memoryview(flood.opening)
        self.heard = b""
        self.repeated: bytes | None = None

    def ready(self, one: Any, events: int) -> bool:
        """Sends and receives; returns whether the connection is still open."""
        try:
            if events & selectors.EVENT_READ:
                data = one.recv(262_144)
                if not data:
                    return False
                if self.repeated is None:
                    self.heard += data
            if events & selectors.EVENT_WRITE:
                if not self.due:
                    self.due = memoryview(self._next())
                if self.due:
                    count = one.send(self.due)
                    self.sender.sent += count
                    self.due = self.due[count:]
                else:
                    time.sleep(0.001)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _next(self) -> bytes:
        if self.repeated is not None:
            return self.repeated
        if self.flood.port == "mqtt" and self.flood.opening and self.flood.repeated("") and self.flood.reads and not self.heard:
            return b""  # before CONNACK
        socket_id = ""
        if self.flood.opening == PUSHER and self.flood.reads:
            _, found, rest = self.heard.partition(b'socket_id\\":\\"')
            if not found or b'\\"' not in rest:
                return b""
            socket_id = rest.partition(b'\\"')[0].decode()
        unit = self.flood.repeated(socket_id)
        self.repeated = unit * max(1, CHUNK // len(unit)) if unit else b""
        return self.flood.start + self.repeated


class TlsStream:
    """One TLS connection. Encrypts each repetition as a record of its own, and discards the answers without decrypting them."""

    def __init__(self, sender: Sender, flood: Flood) -> None:
        self.sender = sender
        self.unit = flood.repeated("")
        self.opening = flood.opening
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = self.context().wrap_bio(self.incoming, self.outgoing)
        self.due = memoryview(b"")

    @staticmethod
    def context() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def connect(self) -> socket.socket:
        """Returns the socket after the handshake."""
        plain = socket.create_connection(self.sender.address, 5)
        self.sender.opened += 1
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                plain.sendall(self.outgoing.read())
                self.incoming.write(plain.recv(65_536))
            else:
                break
        if self.opening:
            self.tls.write(self.opening)
        self.due = memoryview(self.outgoing.read())
        plain.setblocking(False)
        return plain

    def ready(self, one: Any, events: int) -> bool:
        """Sends and receives; returns whether the connection is still open."""
        try:
            if events & selectors.EVENT_READ and not one.recv(262_144):
                return False
            if events & selectors.EVENT_WRITE:
                if not self.due:
                    for _ in range(RECORDS):
                        self.tls.write(self.unit)
                    self.sender.sent += RECORDS * len(self.unit)
                    self.due = memoryview(self.outgoing.read())
                self.due = self.due[one.send(self.due) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def yield_cores() -> None:
    """Lets the flood use only the CPU time that the server and the other clients leave.

    A flood comes from other machines, so its own CPU time is not what the bench measures. Linux compares the priorities of
    processes only inside a session if autogroups are enabled (sched(7)), so the session gets the lowest priority too.
    """
    os.nice(19)
    with contextlib.suppress(OSError):  # already the leader of a session
        os.setsid()
    with contextlib.suppress(OSError):  # not Linux, or no autogroups
        Path("/proc/self/autogroup").write_text("19")


def main() -> None:
    name, websocket, api, tls, mqtt, *connections = sys.argv[1:]
    yield_cores()
    flood = replace(FLOODS[name], connections=int(connections[0])) if connections else FLOODS[name]
    raise_file_limit()
    sender = Sender(flood, {"websocket": int(websocket), "api": int(api), "tls": int(tls), "mqtt": int(mqtt)})

    def stop(*_: object) -> None:
        sender.over = True

    signal.signal(signal.SIGTERM, stop)
    sender.run()
    print(json.dumps({"sent": sender.sent, "opened": sender.opened}), flush=True)
    os._exit(0)  # threads may be blocked in sends


if __name__ == "__main__":
    main()
