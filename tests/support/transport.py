"""A transport that stores what is written to it, and a worker whose connections use such transports."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from push1st.api import Api
from push1st.config.model import ApiConfig, AppConfig, Config, ServerConfig
from push1st.eager import spawn
from push1st.messages import Request, Response
from push1st.process.server import handlers
from push1st.transports.context import EdgeContext
from push1st.transports.http import HttpConnection
from push1st.transports.listener import Listener
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.sweep import Sweep
from tests.support.http import handshake
from tests.support.loop import LoopTurns, turns
from tests.support.node import PUSHER, RAW, RAW_POSITIONS, XHR, World


class Numbered:
    """A socket that has a file descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


class Transport(asyncio.Transport):
    """A transport that stores what is written. After its end it sends nothing; `late` stores later writes.

    bound: bytes after which the transport calls `pause_writing` of its protocol, within the write, as uvloop does.
    number: the file descriptor; -1 is one that is not open.
    certificate: the certificate of the client.
    """

    def __init__(
        self, peer: object = ("127.0.0.1", 40_000), secure: bool = False, number: int = -1, certificate: object = None
    ) -> None:
        tls = {"sslcontext": object() if secure else None, "peercert": certificate}
        super().__init__({"peername": peer, "socket": Numbered(number), **tls})
        self.writes: list[bytes] = []
        self.late: list[bytes] = []
        self.closed = False
        self.aborted = False
        self.reading = True
        self.ended = False
        self.high: int | None = None
        self.bound: int | None = None
        self.unsent = 0
        """the number of bytes that the client has not read yet"""
        self.protocol: Any = None

    @property
    def data(self) -> bytes:
        return b"".join(self.writes)

    def take(self) -> bytes:
        """Returns the bytes written since the last call."""
        data = self.data
        self.writes.clear()
        return data

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        if self.closed or self.aborted:
            self.late.append(bytes(data))
            return
        self.writes.append(bytes(data))
        if self.bound is not None and len(self.data) > self.bound:
            self.bound = None
            self.protocol.pause_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def can_write_eof(self) -> bool:
        return self.get_extra_info("sslcontext") is None

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high


class Site:
    """A worker with one listener, the connections made to it, and a sweep moved by the clock.

    serve: replaces the API. All parts use the running loop; `turns()` writes pending output.
    """

    def __init__(
        self,
        *apps: AppConfig,
        serve: Callable[[Request], Coroutine[Any, Any, Response]] | None = None,
        server: ServerConfig | None = None,
        api: ApiConfig | None = None,
        trusting: bool = True,
        slow: bool = False,
    ) -> None:
        self.world = World(*apps, slow=slow, turns=LoopTurns())
        self.node = self.world.node
        self.metrics = self.world.metrics
        self.clock = self.world.clock
        self.failures = self.world.failures
        self.config = Config(server=server or ServerConfig(), api=api or ApiConfig(), apps=self.world.apps)
        self.sweep = Sweep(self.clock.monotonic, self._swept_badly, self._each_second, self.metrics.loop_lag)
        endpoints = Api(self.node, self.config)
        self.serve = serve or endpoints.serve
        codecs: dict[str, Any] = {"pusher": PUSHER, "pusher-xhr": XHR, "websocket": RAW, "websocket-positions": RAW_POSITIONS}
        self.context = EdgeContext(self.node, self.config, codecs, self.sweep, self._failed)
        self.clients = MqttClients(self.context)
        self.handlers = handlers(self.context, self.serve, self.clients, endpoints)
        self.fallbacks: Any = next((handler for _, handler in self.handlers._routes), None)
        self.listener = Listener(
            self.context, self.handlers, trusting, self.config.api.whitelist, self.config.api.keep_alive_timeout
        )

    def _each_second(self) -> None:
        spawn(self.node.tick())
        spawn(self.clients.tick())

    def _failed(self, where: str) -> None:
        self.failures.append(sys.exception())

    def _swept_badly(self) -> None:
        self.failures.append(sys.exception())

    def connect(
        self, peer: object = ("127.0.0.1", 40_000), secure: bool = False, number: int = -1
    ) -> tuple[HttpConnection, Transport]:
        transport = Transport(peer, secure, number)
        connection = HttpConnection(self.listener)
        transport.protocol = connection
        connection.connection_made(transport)
        return connection, transport

    async def ask(self, data: bytes, peer: object = ("127.0.0.1", 40_000)) -> Transport:
        """Opens a connection that sends `data`; returns its transport."""
        connection, transport = self.connect(peer)
        connection.data_received(data)
        await turns()
        return transport

    async def websocket(self, path: str, *headers: str, peer: object = ("127.0.0.1", 40_000)) -> Transport:
        """Opens a connection and its WebSocket; `transport.protocol` is the WebSocket connection."""
        transport = await self.ask(handshake(path, *headers), peer)
        assert transport.data.startswith(b"HTTP/1.1 101 "), transport.data
        return transport

    def pass_seconds(self, seconds: int) -> None:
        """Advances the clock second by second and runs the sweep at each."""
        for _ in range(seconds):
            self.clock.advance(1)
            self.sweep.run()
