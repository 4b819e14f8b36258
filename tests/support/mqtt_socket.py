"""A connection of an MQTT client that sends and receives bytes."""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from push1st.protocols.mqtt.packets import MQTT_5, ConnectPacket, FilterOptions, PublishPacket, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.process import DEADLINE

PINGREQ, PINGRESP = b"\xc0\0", b"\xd0\0"


class Client:
    """A connection that sends and receives bytes."""

    def __init__(self, connection: socket.socket, level: int) -> None:
        self._connection = connection
        self._level = level

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def subscribe(self, filter: str, qos: int, **options: Any) -> None:
        self.send(packets.subscribe(SubscribePacket(1, (FilterOptions(filter, qos, **options),)), self._level))
        self.expect(bytes((0x90, 4, 0, 1, 0, qos)) if self._level == MQTT_5 else bytes((0x90, 3, 0, 1, qos)))

    def publish(self, topic: str, payload: bytes = b"x", qos: int = 0, packet_id: int = 0, **fields: Any) -> None:
        self.send(self.message(topic, payload, qos, packet_id, **fields))

    def message(self, topic: str, payload: bytes = b"x", qos: int = 0, packet_id: int = 0, **fields: Any) -> bytes:
        """Returns a PUBLISH packet."""
        return packets.message(PublishPacket(topic, payload, qos, packet_id=packet_id, **fields), self._level)

    def expect(self, data: bytes) -> None:
        """Expects exactly these bytes, in any number of pieces."""
        found = b""
        while len(found) < len(data) and (piece := self._connection.recv(len(data) - len(found))):
            found += piece
        assert found.hex(" ") == data.hex(" ")

    def read_puback(self) -> int:
        """Reads a PUBACK of MQTT 5.0; returns its reason code."""
        head = self._connection.recv(2, socket.MSG_WAITALL)
        assert head[:1] == b"\x40", head.hex(" ")
        body = self._connection.recv(head[1], socket.MSG_WAITALL)
        return body[2] if len(body) > 2 else 0

    def read_disconnect(self) -> int:
        """Reads a DISCONNECT of MQTT 5.0; returns its reason code."""
        head = self._connection.recv(2, socket.MSG_WAITALL)
        assert head[0] == 0xE0, head
        return self._connection.recv(head[1], socket.MSG_WAITALL)[0]

    def discard(self) -> None:
        """Reads and discards what the server has sent."""
        assert self._connection.recv(65_536)

    def flood(self, data: bytes, end: float, reads: bool) -> None:
        """Sends packets again and again. end: until then, by `time.monotonic`. reads: whether the client reads its input."""
        self._connection.setblocking(False)
        left = memoryview(data)
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                left = left[self._connection.send(left) :] or memoryview(data)
            if reads:
                with contextlib.suppress(BlockingIOError):
                    self._connection.recv(65_536)

    def expect_nothing(self) -> None:
        """Expects that the server has sent nothing else before its answer to a ping."""
        self.send(PINGREQ)
        self.expect(PINGRESP)

    def expect_end(self, data: bytes = b"") -> None:
        """Expects these bytes and the end of the connection."""
        self.expect(data)
        assert self._connection.recv(1) == b""


@contextlib.contextmanager
def connected(port: int, level: int, client_id: str = "", **fields: Any) -> Iterator[Client]:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
        connection.sendall(packets.connect(ConnectPacket(level, client_id or "c", **{"username": "app-key", **fields})))
        connack = connection.recv(4)
        assert (connack[0], connack[3]) == (0x20, 0)
        connection.recv(connack[1] - 2, socket.MSG_WAITALL)
        yield Client(connection, level)
