"""Fuzzes HTTP connections: the server answers any bytes, in any chunks, with whole responses or not at all, and never with a 500.

The connections use the real API with the demo app, and real handshakes.
"""

import asyncio
import atexit
import sys
from functools import cache
from random import Random
from typing import Any

import msgspec

from fuzz.runner import cut, main
from push1st.api import Api
from push1st.apps.files import Files
from push1st.auth import access_token
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.config.addresses import Networks
from push1st.config.history import HistorySection
from push1st.config.model import Config, demo
from push1st.core.fanout import Fanout
from push1st.core.node import Node
from push1st.eager import run_eagerly
from push1st.hooks.dispatcher import HookDispatcher
from push1st.metrics import Metrics
from push1st.process.server import handlers
from push1st.protocols.pusher import Pusher
from push1st.protocols.pusher_xhr import PusherXhr
from push1st.protocols.raw import Raw
from push1st.protocols.raw_positions import RawPositions
from push1st.transports.context import EdgeContext
from push1st.transports.http import HttpConnection
from push1st.transports.listener import Listener
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.sweep import Sweep
from push1st.transports.xhr_session import GAP_SECONDS, XhrSession

EVENT = b'{"name":"e","channels":["c"],"data":"x"}'
UPGRADE = (
    b" HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
BLOCK_FIELDS = {b"", b"data", b"event", b"id", b"retry"}
SEEDS = [
    b"GET /apps/app-test/channels/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://h/apps/app-test/channels/c?info=user_count HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT),
    b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nT: x\r\n\r\n"
    % (len(EVENT), EVENT),
    b"POST /apps/app-test/events?auth_key=a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /apps/app-test/events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /apps/app-test/events HTTP/1.1\r\nHost: h\r\nContent-Encoding: br\r\nExpect: maybe\r\nContent-Length: 1\r\n\r\n\x1f",
    b"POST /apps/app-test/events HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n\xef\xbb\xbf%b" % (len(EVENT) + 3, EVENT),
    b"POST /apps/app-test/events HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k\r\nContent-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT),
    b"GET /apps/app-test/channels/c/history?limit=7&since=k3F9aQx2bT:1&reverse=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"DELETE /apps/app-test/channels/c/history HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4, 127.0.0.1\r\nOrigin: null\r\n\r\n",
    b'GET /metrics HTTP/1.1\r\nHost: push1st.internal\r\nForwarded: for="[2001::1]:80";by=x, for=10.0.0.2:1\r\nVia: p\r\n\r\n',
    b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-For: [::9]:443, 127.0.0.1:9\r\nX-Real-IP: 1.2.3.4\r\n\r\n",
    b"GET /app/app-key?protocol=7" + UPGRADE,
    b"GET /ws/app/app-key/c/d%20e?session=p&token=a.b.c" + UPGRADE,
    b"GET /ws/app/app-key/private-c?token=" + access_token("secret", "app-test", "*", "*", 60, 1_700_000_000).encode() + UPGRADE,
    b"GET /ws/app/app-key/c/d?since=k3F9aQx2bT:1,-&rewind=30s" + UPGRADE,
    b"GET /sse/app/app-key/c/d%20e/private-c?since=k3F9aQx2bT:1,-&rewind=9&events=named HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /sse/app/app-key/c HTTP/1.0\r\nLast-Event-ID: k3F9aQx2bT:1042\r\nCookie: a=b; push1st_token=a.b.c\r\n\r\n" + b"x" * 99,
    (
        b"OPTIONS /sse/app/app-key/c HTTP/1.1\r\nHost: h\r\nOrigin: http://o\r\n\r\n"
        b"HEAD /sse/app/app-key/c HTTP/1.1\r\nHost: h\r\n\r\n"
    ),
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
    (
        b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT)
    )
    * 2,
    b"GET /ws/app/app-key/c" + UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket\r\nContent-Length: 0"),
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"POST /app/app-key/1/abcdefgh/xhr_streaming?protocol=7 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    b"POST /app/app-key/1/abcdefgh/xhr?protocol=7 HTTP/1.1\r\nHost: h\r\nOrigin: http://o\r\nContent-Length: 0\r\n\r\n" * 2,
    (
        b"POST /app/app-key/1/abcdefgh/xhr?protocol=7 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        b"POST /pusher/app/app-key/1/abcdefgh/xhr_send HTTP/1.1\r\nHost: h\r\nContent-Length: 65\r\n\r\n"
        b'["{\\"event\\":\\"pusher:subscribe\\",\\"data\\":{\\"channel\\":\\"c\\"}}"]'
    ),
]


class Socket(asyncio.Transport):
    """Stores what a connection writes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.data = b""
        self.ended = False
        self.said_all = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        assert not self.said_all, "written behind the end"
        if not self.ended:
            self.data += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.said_all = True

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Clock:
    seconds = 1.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> int:
        return 1_700_000_000_000_000_000


class Server:
    """A worker without sockets. failed: what it would have logged."""

    def __init__(self, config: Config) -> None:
        self.loop = asyncio.new_event_loop()
        atexit.register(self.loop.close)
        self.failures: list[BaseException | None] = []
        self.clock = clock = Clock()
        metrics = Metrics()
        fanout = Fanout(self.loop, clock, self.note)
        numbers = Random(1)  # noqa: S311 - ids of connections, in a fuzzer
        self.node = Node(Files(config.apps), fanout, metrics, clock, numbers.getrandbits)
        history = MemoryHistory(config.server.history, clock.wall, numbers.getrandbits, metrics)
        sessions = MemorySessions(clock.wall, numbers.getrandbits, metrics, config.server.mqtt)
        memory = Memory(self.node.stamp, self.node.local_roster, history, sessions)
        hooks = HookDispatcher(
            config.apps,
            config.hooks,
            "",
            clock,
            numbers.getrandbits,
            metrics.hook_events,
            metrics.hook_attempts,
            metrics.decisions,
            metrics.hook_seconds,
        )
        run_eagerly(self.node.open(memory, memory, memory, memory, memory, hooks))
        sweep = Sweep(clock.monotonic, self.note, lambda: None)
        codecs: dict[str, Any] = {
            "pusher": Pusher(),
            "pusher-xhr": PusherXhr(),
            "websocket": Raw(),
            "websocket-positions": RawPositions(),
        }
        self.context = EdgeContext(self.node, config, codecs, sweep, self.failed)
        table = handlers(self.context, Api(self.node, config).serve, MqttClients(self.context))
        self.listener = Listener(self.context, table, True, config.api.whitelist, 10)

    def failed(self, where: str) -> None:
        self.note()

    def note(self) -> None:
        self.failures.append(sys.exception())

    async def converse(self, chunks: list[bytes]) -> bytes:
        socket = Socket()
        connection = HttpConnection(self.listener)
        socket.protocol = connection
        connection.connection_made(socket)
        for chunk in chunks:
            if not socket.ended:
                socket.protocol.data_received(chunk)
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        socket.protocol.connection_lost(None)
        await asyncio.sleep(0)
        for client in list(self.context.open):
            if isinstance(client, XhrSession):  # it outlives its connection: until it did not come back
                self.clock.seconds += GAP_SECONDS + 1
                client.due(self.clock.seconds)
        await asyncio.sleep(0)
        return socket.data


@cache
def server() -> Server:
    """Makes a worker with the demo app, which keeps histories, and a proxy that forwards the address of the client."""
    config = demo()
    apps = tuple(msgspec.structs.replace(app, history=(HistorySection(),)) for app in config.apps)
    config = msgspec.structs.replace(config, apps=apps)
    proxied = msgspec.structs.replace(config.server, proxies=Networks.parse(["127.0.0.1"]))
    return Server(msgspec.structs.replace(config, server=proxied))


def run(data: bytes, random: Random) -> None:
    one = server()
    answer = one.loop.run_until_complete(one.converse(list(cut(data, random))))
    if one.failures:
        failure = one.failures.pop()
        raise AssertionError("a defect was logged") from failure
    check(answer, b"HEAD" in data)
    assert not one.context.open, "a connection was left behind"
    assert not one.node.app(one.context.config.apps[0]).tenant.sessions, "a session was left behind"


def check(answer: bytes, head: bool) -> None:
    """Checks that all responses are whole, up to a 101; WebSocket frames follow a 101."""
    while answer:
        lines, found, rest = answer.partition(b"\r\n\r\n")
        assert found, "half a head"
        first, *headers = lines.split(b"\r\n")
        version, status, _ = first.split(b" ", 2)
        assert version == b"HTTP/1.1"
        assert status != b"500"
        if status == b"101":
            return
        if status == b"100":
            answer = rest
            continue
        sizes = [int(header[16:]) for header in headers if header.startswith(b"Content-Length: ")]
        if not sizes:  # a stream has no length
            assert b"Connection: close" in headers
            if b"Content-Type: text/event-stream; charset=utf-8" in headers:
                assert rest.endswith(b"\n\n")
                assert {line.partition(b":")[0] for line in rest.split(b"\n")} <= BLOCK_FIELDS
            return
        (size,) = sizes
        if head and (not rest or rest.startswith(b"HTTP/1.1 ")):
            size = 0
        assert len(rest) >= size, "half a body"
        answer = rest[size:]


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
