"""Writes to the connection of an MQTT client, enforces its deadlines, and ends the connection. `connection` reads the input.

When the server ends a connection, the session ends at once. The server sends the last packet after all queued output, and then
discards input until the client closes the socket, for at most `LINGER_SECONDS`.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator
from typing import Protocol

from push1st.limits import Bucket
from push1st.messages import Reply
from push1st.metrics import NO_CLOSE_FRAME
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.packets import ClientPacket, ConnackPacket, ConnectPacket, ReasonCode
from push1st.transports.admission import token_seconds
from push1st.transports.client_socket import ClientSocket
from push1st.transports.context import LINGER_BYTES, EdgeContext
from push1st.transports.lost import LOST, detach
from push1st.transports.mqtt import reasons
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.identity import MqttPeer
from push1st.transports.mqtt.session import MqttSession
from push1st.transports.sweep import NEVER

CONNECT_SECONDS = 10
"""seconds in which a whole CONNECT must arrive"""
LINGER_SECONDS = 1
"""maximum seconds from the last packet of the server to the end of the connection"""


class Packets(Protocol):
    """Decodes the input of a connection; `PacketDecoder` is such a decoder."""

    def feed(self, data: bytes) -> Iterable[ClientPacket]:
        """Returns the packets that are complete now."""


class MqttOutput(ClientSocket):
    """The output of a connection, and the outlet of its session (`core.app.Outlet`)."""

    __slots__ = (
        "_bucket",
        "_clients",
        "_decoder",
        "_eof",
        "_is_admitted",
        "_is_full",
        "_is_piece_over",
        "_keep_alive",
        "_owes",
        "_packet",
        "_packets",
        "_peer",
        "_pending",
        "_seen",
        "_session",
        "_waits",
        "began",
    )

    def __init__(self, clients: MqttClients) -> None:
        self._clients = clients
        self._context = clients.context
        self._transport: asyncio.Transport = LOST
        settings = clients.settings
        self._decoder: Packets = PacketDecoder(settings.max_payload, settings.topic_aliases)
        self._packets: Iterator[ClientPacket] | None = None
        """packets of the input that are not applied yet"""
        self._packet: ConnectPacket | None = None
        """the CONNECT while the server decides about it"""
        self._session: MqttSession | None = None
        self._is_admitted = False
        """whether the server has accepted the client with CONNACK"""
        self._bucket: Bucket | None = None
        self._is_piece_over = False
        """whether the slice must read the clock, because another piece of the input was decoded"""
        self._keep_alive = 0.0
        """maximum seconds between two packets of the client; 0 stands for no maximum"""
        self.began = 0.0
        """see `ClientConnection`"""
        self._seen = 0.0
        self._waits = False
        """whether a packet waits for an answer or for the rate limit; no further packet is handled before this one"""
        self._pending = 0
        """the number of messages that wait for the broker and that no Receive Maximum limits"""
        self._is_full = False
        """whether the connection reads no further packet until one of the `_pending` messages is published"""
        self._owes = False
        """whether the client has exceeded `server.mqtt.publishes`, so that further packets must wait"""
        self._eof = False
        """whether the client has closed the socket for writing"""
        self._slow = False
        self._closing = False
        self._linger = 0
        self._peer: MqttPeer | None = None
        """the properties of the connection until the server accepts the client; then None, to save memory"""
        self.address = ""
        """the address or network for which `EdgeContext.addresses` counts the connection; "" if the connection is not counted"""
        self.due_at = NEVER

    def _cut(self) -> None:
        if not self._closing:
            self._context.node.metrics.cut_offs["slow"] += 1
            self._end(ReasonCode.QUOTA_EXCEEDED, "this client does not read its messages")

    @property
    def _has_input(self) -> bool:
        """Whether some input of the client is not applied yet."""
        return self._waits or self._packets is not None

    @property
    def flow(self) -> tuple[int, int]:
        """See `ClientConnection`."""
        sender = None if self._session is None else self._session.sender
        return (0, 0) if sender is None else sender.flow

    # Methods that the core's session calls

    def send(self, reply: Reply) -> None:
        """Does nothing: the replies of the core's session have no packets in MQTT."""

    def close(self, code: int, reason: str) -> None:
        """Ends the connection with a close code."""
        self._end(reasons.of_disconnect(code) if self._is_admitted else reasons.of_connect(code), reason)

    def fail(self) -> None:
        if not self._closing:
            self._context.failed("connection")
            self._context.node.metrics.cut_offs["internal-error"] += 1
            self._end(ReasonCode.UNSPECIFIED_ERROR, "internal error")

    def take_over(self) -> None:
        """See `ClientConnection`."""
        self._context.node.metrics.mqtt_takeovers += 1
        if self._is_admitted:
            self._end(ReasonCode.SESSION_TAKEN_OVER, "another connection has the client id")
        else:
            self._end(ReasonCode.SERVER_UNAVAILABLE, "another connection has the client id")

    # The end

    def _end(self, reason: ReasonCode, text: str) -> None:
        """Ends the session, and sends the last packet: CONNACK before the client is admitted, DISCONNECT afterwards."""
        if self._closing:
            return
        session, packet = self._session, self._packet
        frame = b""
        if session is not None:
            session.answer()
            self._context.node.fanout.flush_subscriber(session.client)
            if packet is not None:
                frame = rejection(packet, reason, text)
            elif self._is_admitted:
                frame = session.disconnect_frame(reason)
        if session is None or self._is_admitted:
            self._leave(reason, text)
        else:
            client = session.client
            count_refusal(self._context, reason, text, client.app.config.id, session.client_id, client.ip)
            self._leave()
        self._close(frame)

    def _leave(self, reason: ReasonCode | None = None, text: str = "", disconnect: ReasonCode | None = None) -> None:
        """Ends the session, or stores it if it outlives the connection. The will of an accepted client is published, unless the
        client has sent a DISCONNECT with the reason code 0.

        reason, text: why the server ends the connection; None if the client ends the connection.
        disconnect: the reason code in the client's DISCONNECT; None if the client sent none.
        """
        session, self._session = self._session, None
        if session is None:
            return
        client = session.client
        if reason is not None:
            client.log_end(reason, text)
        if self.began:
            code = reason if reason is not None else disconnect
            name = NO_CLOSE_FRAME if code is None else reasons.end_label(code)
            node = self._context.node
            seconds = node.clock.monotonic() - self.began
            if self._is_admitted:
                node.metrics.end(client.wire.name, name, seconds)
            if node.tap is not None:
                node.tap.disconnected(client.app, client, code or 0, seconds)
        self._clients.release(client.app.config.id, session.client_id, self)
        session.leave(disconnect != ReasonCode.SUCCESS and self._is_admitted, reason == ReasonCode.SESSION_TAKEN_OVER)

    def _close(self, frame: bytes) -> None:
        """Sends the last packet, closes the socket for writing, and begins to discard input."""
        self._closing = True
        self._packets = self._packet = None
        self._linger = LINGER_BYTES
        transport = self._transport
        if transport is LOST:
            self._release()
            return
        if not transport.is_closing():
            if frame:
                transport.write(frame)
            if transport.can_write_eof():
                transport.write_eof()
                transport.resume_reading()
            else:
                transport.close()
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + LINGER_SECONDS)

    def _ended_by_client(self, disconnect: ReasonCode | None = None) -> None:
        """Ends the connection after DISCONNECT, or after the end of the client's input. disconnect: see `_leave`."""
        if self._session is not None:
            self._context.node.fanout.flush_subscriber(self._session.client)
        self._leave(disconnect=disconnect)
        self._closing = True
        self._packets = None
        self._linger = LINGER_BYTES
        if self._transport is LOST:
            self._release()
        else:
            self._transport.close()
            sweep = self._context.sweep
            sweep.watch(self, sweep.now + LINGER_SECONDS)

    def _outlive(self) -> None:
        """Begins to discard output, because the connection was lost before all input was applied.

        The rate limit of the client does not delay its input any more, so that the worker soon removes the connection.
        """
        detach(self._transport)
        self._transport = LOST
        self._bucket = None
        self._owes = False
        if self._session is not None:
            self._session.mute()

    def _release(self) -> None:
        """Ends the session, and removes the connection from all counts."""
        self._closing = True
        self._linger = 1
        self._packets = self._packet = None
        self._leave()
        self._context.addresses.leave(self.address)
        self.address = ""
        self._context.open.discard(self)
        self._context.sweep.forget(self)

    def leave(self, code: int, reason: str) -> None:
        """Ends the connection because the server stops (`context.Open`)."""
        if self._session is None and not self._closing:
            self._close(b"")
        else:
            self.close(code, reason)

    def abort(self) -> None:
        """Ends the connection at once (`context.Open`)."""
        self._transport.abort()
        if self._transport is LOST:
            self._release()

    # Deadlines

    def due(self, now: float) -> float | None:
        """Enforces the deadlines of the connection (see `Sweep`)."""
        if self._closing:
            self._transport.abort()
            return None
        session = self._session
        if session is None and self._has_input:  # the CONNECT waits for its turn, so the client is not silent
            return now + 1
        if session is None:
            self._context.node.metrics.cut_offs["silent"] += 1
            self._close(b"")
            return now + LINGER_SECONDS
        if not self._is_admitted:  # the broker or the app's backend has a deadline of its own
            return now + CONNECT_SECONDS
        if token_seconds(session.client) <= 0:
            self._context.node.metrics.cut_offs["token-expired"] += 1
            self._end(ReasonCode.MAXIMUM_CONNECT_TIME, "access token has expired")
            return now + LINGER_SECONDS
        if self._has_input:  # the server does not read, so the client is not silent
            self._seen = now
        if self._keep_alive and now >= self._silent_at:
            self._context.node.metrics.cut_offs["silent"] += 1
            self._end(ReasonCode.KEEP_ALIVE_TIMEOUT, "no packet within the keep alive")
            return now + LINGER_SECONDS
        at = self._next(now)
        return None if at == math.inf else at

    @property
    def _silent_at(self) -> float:
        """The time at which a client without further packets is disconnected [MQTT-3.1.2-22].

        `_seen` is the time of a tick of the sweep, which is up to a second before the packet.
        """
        return self._seen + self._keep_alive + 1 if self._keep_alive else math.inf

    def _next(self, now: float) -> float:
        """Returns the time of the next deadline; infinity without one."""
        assert self._session is not None
        return min(self._silent_at, now + token_seconds(self._session.client))

    def _watch(self, now: float) -> None:
        sweep, at = self._context.sweep, self._next(now)
        if at == math.inf:
            sweep.forget(self)
        else:
            sweep.watch(self, at)


def rejection(packet: ConnectPacket, reason: ReasonCode, text: str) -> bytes:
    """Returns the CONNACK that rejects a client.

    A rejected authentication method needs no text, and the tests of other projects compare the bytes.
    """
    needs_text = reason != ReasonCode.BAD_AUTHENTICATION_METHOD
    shown = text if needs_text and packet.wants_reasons else None  # §3.1.2.11.7
    frame = encode.connack(ConnackPacket(reason, reason_string=shown), packet.version)
    most = packet.maximum_packet_size or len(frame)
    if len(frame) > most:  # [MQTT-3.2.2-19]
        frame = encode.connack(ConnackPacket(reason), packet.version)
    return frame if len(frame) <= most else b""


def count_refusal(context: EdgeContext, reason: ReasonCode, text: str, app: str, client_id: str, ip: str) -> None:
    """Counts and logs a rejected CONNECT. app: the id of the client's app; "" if the CONNECT names none."""
    node = context.node
    node.metrics.refusals[reasons.label(reason)] += 1
    if app:
        node.metrics.of(app).refusals += 1
    node.refusals.log("connection refused", reason, text, app=app, client_id=client_id[:64], ip=ip)
