"""MQTT over WebSockets [MQTT-6.0.0-1 to -4]: the entry admits handshakes, and the connection adds and removes frames.

The packets of a client may begin and end anywhere in its binary frames. The payloads of the frames are one stream of bytes, as
the input of a TCP connection. Each write to the client is one frame. So the packets that answer one read are one frame, and so
are the messages of one turn. Pings of WebSockets are answered, but pings are no MQTT packets, so they do not restart the time of
the keep alive (§3.1.2.10).
"""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

from push1st.messages import Response
from push1st.protocols.mqtt.packets import ClientPacket
from push1st.protocols.websocket import (
    Binary,
    BinaryDecoder,
    Closed,
    Fragment,
    Pinged,
    Ponged,
    binary_frame,
    close_frame,
    handshake_answer,
    pong_frame,
)
from push1st.transports.admission import origin_allowed
from push1st.transports.answers import error
from push1st.transports.handlers import Handshake, SocketOwner
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.connection import MqttConnection
from push1st.transports.mqtt.identity import MqttPeer
from push1st.transports.mqtt.output import Packets

SUBPROTOCOLS = ("mqtt", "mqttv3.1")
"""the names of MQTT's subprotocol; older versions of the Paho libraries use the second name"""
SMALL_PIECE = 256
"""the number of bytes below which a fragment, or a part of a message that completes no packet, counts as a command without effect
(`Session.charge`)"""


FrameEvent = Binary | Pinged | Ponged | Fragment | Closed
FRAME_EVENTS = (Binary, Pinged, Ponged, Fragment, Closed)


class MqttEntry:
    """Admits MQTT clients to the paths of `server.mqtt.path` (`entries.SocketEntry`)."""

    def __init__(self, clients: MqttClients) -> None:
        self._clients = clients
        server = clients.context.config.server
        self.bases = server.bases("mqtt")
        self._tail = re.compile(f"/?|{re.escape(server.app_path)}([^/]+)/?")

    def open(
        self, handshake: Handshake, tail: str, transport: asyncio.Transport, rest: bytes, before: bytes
    ) -> Response | SocketOwner:
        path = self._tail.fullmatch(tail)
        if path is None:
            return error(404, f"no WebSocket is served at {handshake.path[:200]}")
        offered = [name.strip() for name in handshake.subprotocols.split(",")]
        chosen = next((name for name in SUBPROTOCOLS if name in offered), None)
        if chosen is None:  # [MQTT-6.0.0-3]
            return error(400, "MQTT needs the WebSocket subprotocol mqtt")
        context = self._clients.context
        ip, whitelist = handshake.ip, self._clients.settings.whitelist
        if whitelist and ip and not whitelist.contains(ip):
            return error(403, "this address is not in server.mqtt.whitelist")
        key: str | None = path[1]
        app = None if key is None else context.node.apps.by_key(key)
        if app is not None and not origin_allowed(handshake.client.origin, app.origins):
            return error(403, "this origin is not allowed")
        peer = MqttPeer(ip, handshake.crowded, key, handshake.client)
        connection = MqttWebSocket(self._clients)
        connection.start(transport, before + handshake_answer(handshake.key, chosen), peer)  # [MQTT-6.0.0-4]
        if rest:
            context.arrived(connection, rest)
        return connection


class MqttWebSocket(MqttConnection):
    """A connection of a client over a WebSocket, which owns the socket after the handshake."""

    __slots__ = ()

    def start(self, transport: asyncio.Transport, switch: bytes, peer: MqttPeer) -> None:
        """Takes over the socket from the HTTP connection. switch: the bytes that must be written first."""
        transport.write(switch)
        transport.set_protocol(self)
        self._transport = FramedTransport(transport)
        self._decoder = FramedPackets(self._decoder)
        self._expect_connect(peer)

    def _apply(self, packet: ClientPacket | FrameEvent) -> None:
        if isinstance(packet, FRAME_EVENTS):
            self._handle(packet)
        else:
            super()._apply(packet)

    def _handle(self, event: FrameEvent) -> None:
        """Handles a control frame, a fragment, or a part of a message that completes no packet."""
        match event:
            case Closed(code):
                self._announce(1000 if code == 1005 else code, "")
                self._ended_by_client()
                return
            case Pinged(payload) if isinstance(self._transport, FramedTransport):
                self._transport.write_frame(pong_frame(payload))
            case Fragment(size) if size >= SMALL_PIECE:
                return
            case Binary(data) if len(data) >= SMALL_PIECE:
                return
        if self._session is not None:
            self._session.client.charge()

    def close(self, code: int, reason: str) -> None:
        self._announce(code, reason)
        super().close(code, reason)

    def leave(self, code: int, reason: str) -> None:
        self._announce(code, reason)
        super().leave(code, reason)

    def _close(self, frame: bytes) -> None:
        self._announce(1008, "")
        super()._close(frame)

    def _announce(self, code: int, reason: str) -> None:
        """Sets the close frame, unless an earlier call has set it."""
        if isinstance(self._transport, FramedTransport):
            self._transport.end = self._transport.end or close_frame(code, reason)


class FramedPackets:
    """Decodes the frames of a WebSocket, and the packets in their payloads.

    `feed` yields packets, control frames and fragments. It also yields each part of a message that completes no packet.
    """

    __slots__ = ("_frames", "_packets")

    def __init__(self, packets: Packets) -> None:
        self._packets = packets
        self._frames: BinaryDecoder | None = None
        """the decoder while a frame or a message is incomplete; None for an idle connection, to save memory"""

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields packets and events. Raises Disconnect for a violation of RFC 6455."""
        frames = self._frames = self._frames or BinaryDecoder()
        for event in frames.feed(data):
            if type(event) is not Binary:
                yield event
            elif packets := self._packets.feed(event.data):
                yield from packets
            else:
                yield event
        if frames.is_between_messages:
            self._frames = None


class FramedTransport(asyncio.Transport):
    """A transport that writes binary frames to a socket.

    end: the close frame, which precedes the end of the connection; b"": the connection ends with the code 1000.
    """

    __slots__ = ("_socket", "end")

    def __init__(self, socket: asyncio.Transport) -> None:
        self._socket = socket
        self.end = b""

    def write(self, data: Any) -> None:
        self._socket.write(_framed(data))

    def write_frame(self, frame: bytes) -> None:
        """Writes a frame that is no binary message."""
        self._socket.write(frame)

    def write_eof(self) -> None:
        self._socket.write(self.end)
        self._socket.write_eof()

    def close(self) -> None:
        if not self._socket.is_closing():
            self._socket.write(self.end or close_frame(1000, ""))
        self._socket.close()

    def abort(self) -> None:
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def can_write_eof(self) -> bool:
        return self._socket.can_write_eof()

    def pause_reading(self) -> None:
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)


_last: tuple[bytes, bytes] = b"", b""
"""the last written packets with their frame, because the fan-out writes the same packets to many clients one after another"""


def _framed(data: bytes) -> bytes:
    """Returns the frame of packets. The clients that get the same packets share the frame, so they need no copies."""
    global _last  # one frame, for all connections of the process
    packets, frame = _last
    if packets is not data:
        frame = binary_frame(data)
        _last = data, frame
    return frame
