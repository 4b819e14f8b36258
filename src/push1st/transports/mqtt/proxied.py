"""Reads the PROXY header of a connection, and then hands over the connection to the protocol of MQTT clients.

The server accepts such connections from the addresses in `server.proxies` only. TLS begins after the header. So this module never
reads a byte beyond the header. Each read has at most as many bytes as the shortest possible rest of the header.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from push1st.eager import spawn
from push1st.protocols.proxy import ProxyError, missing_bytes, read_proxy_header
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.connection import MqttConnection
from push1st.transports.sweep import NEVER

HEADER_SECONDS = 10
"""seconds in which a whole header must arrive"""


class ProxyConnection(asyncio.BufferedProtocol):
    """A connection of a proxy, until the header is complete and the TLS handshake has ended.

    make: a function that returns the connection of the proxy's client.
    tls: a function that returns the TLS context of the address; None for an address without TLS.
    handshake_seconds: the time limit for the TLS handshake, in seconds.
    """

    __slots__ = ("_buffer", "_clients", "_data", "_handshake_seconds", "_make", "_peer", "_tls", "_transport", "due_at")

    _transport: asyncio.Transport

    def __init__(
        self,
        clients: MqttClients,
        make: Callable[[], MqttConnection],
        tls: Callable[[], ssl.SSLContext] | None,
        handshake_seconds: float,
    ) -> None:
        self._clients = clients
        self._make = make
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._data = b""
        self._buffer = bytearray()
        self._peer = ""
        """the address of the proxy"""
        self.due_at = NEVER

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's classes do not inherit `asyncio.Transport`
        context, peer = self._clients.context, transport.get_extra_info("peername")
        if peer is None:  # the peer has already reset the connection
            self.abort()
            return
        self._peer = peer[0]
        if not context.config.server.proxies.contains(self._peer):
            self._reject("this address is not in server.proxies")
        elif context.descriptors.room(self._descriptor, len(context.open), False) == "none":
            context.refuse_crowded("server")
            self.abort()
        else:
            context.open.add(self)
            context.sweep.watch(self, context.sweep.now + HEADER_SECONDS + 1)

    def _descriptor(self) -> int:
        number: int = self._transport.get_extra_info("socket").fileno()
        return number

    def get_buffer(self, sizehint: int) -> bytearray:
        self._buffer = bytearray(missing_bytes(self._data))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport.is_closing():
            return
        self._data += self._buffer[:nbytes]
        try:
            header = read_proxy_header(self._data)
        except ProxyError as exc:
            self._reject(str(exc))
            return
        if header is not None:
            self._clients.context.sweep.forget(self)
            ip = header.ip or self._peer
            if self._tls is None:
                self._release()
                self._hand_over(self._transport, ip)
            else:
                spawn(self._start_tls(self._tls(), ip))

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()

    # The end of this object

    def _hand_over(self, transport: asyncio.Transport, ip: str) -> MqttConnection:
        connection = self._make()
        transport.set_protocol(connection)
        connection.begin(transport, ip)
        return connection

    async def _start_tls(self, context: ssl.SSLContext, ip: str) -> None:
        """Hands over the connection after the TLS handshake."""
        early = EarlyInput()
        loop, transport, secure = asyncio.get_running_loop(), self._transport, None
        with suppress(OSError):  # the client ends the connection, exceeds the time limit, or has no valid certificate
            secure = await loop.start_tls(
                transport, early, context, server_side=True, ssl_handshake_timeout=self._handshake_seconds
            )
        self._release()
        if secure is None:
            transport.abort()
        elif not early.is_lost:
            connection = self._hand_over(secure, ip)
            if early.data:
                connection.data_received(early.data)

    def _reject(self, text: str) -> None:
        node = self._clients.context.node
        node.metrics.cut_offs["proxy-header"] += 1
        node.refusals.log("connection closed", 403, text, ip=self._peer)
        self.abort()

    def _release(self) -> None:
        context = self._clients.context
        context.open.discard(self)
        context.sweep.forget(self)

    def due(self, now: float) -> None:
        """Ends the connection, because the header has not arrived in time (`Sweep`)."""
        self._clients.context.node.metrics.cut_offs["silent"] += 1
        self.abort()

    @property
    def unsent(self) -> int:
        """See `context.Open`."""
        return 0  # the server writes only after the PROXY header

    def leave(self, code: int, reason: str) -> None:
        """Ends the connection because the server stops (`context.Open`)."""
        self.abort()

    def abort(self) -> None:
        """Ends the connection at once (`context.Open`)."""
        self._transport.abort()


class EarlyInput(asyncio.Protocol):
    """Keeps the input that arrives between the end of the TLS handshake and the hand-over.

    data: the input. is_lost: whether the connection has ended.
    """

    __slots__ = ("data", "is_lost")

    def __init__(self) -> None:
        self.data = b""
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
