"""HTTP and WebSocket bytes on a TCP connection, for input that no well-behaved client sends."""

import json
import os
import socket
import struct
from typing import Any, Self

from tests.support.process import DEADLINE

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HANDSHAKE = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Returns a client's frame (RFC 6455 §5.2), or an invalid one."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, mask_bit | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    if not masked:
        return head + payload
    key = os.urandom(4)
    mask = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)


class Gone(Exception):
    """The server ended the TCP connection."""


class Wire:
    """One connection. Each wait has a deadline."""

    def __init__(self, port: int, deadline: float = DEADLINE, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(deadline)
        self.socket.connect(("127.0.0.1", port))
        self.reader = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reader.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Gone from error

    def _read(self, size: int) -> bytes:
        try:
            data = self.reader.read(size)
        except ConnectionError as error:
            raise Gone from error
        if len(data) < size:
            raise Gone
        return data

    # HTTP

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """Returns the next response; Content-Length frames its body."""
        try:
            first = self.reader.readline()
        except ConnectionError as error:
            raise Gone from error
        if not first:
            raise Gone
        headers: dict[str, str] = {}
        while line := self.reader.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(first.split()[1])
        return status, headers, self._read(int(headers.get("content-length", 0)))

    def is_closed(self) -> bool:
        """Returns whether the server ends the connection before the deadline, without another byte."""
        try:
            return self.reader.read(1) == b""
        except ConnectionError:
            return True

    # WebSocket

    def upgrade(self, path: str) -> Self:
        """Opens the WebSocket at `path`."""
        self.send(b"GET " + path.encode() + b" HTTP/1.1\r\n" + HANDSHAKE + b"\r\n")
        status, _, _ = self.response()
        assert status == 101, status
        return self

    def greet(self) -> Self:
        """Opens a Pusher connection and reads its greeting."""
        self.upgrade("/app/app-key?protocol=7")
        opcode, payload = self.receive()
        assert opcode == TEXT
        assert b"connection_established" in payload
        return self

    def receive(self) -> tuple[int, bytes]:
        """Returns opcode and payload of the next frame, which must be whole and unmasked."""
        first, second = self._read(2)
        assert first & 0xF0 == 0x80, "a server's frame is final and has no extension"
        assert second & 0x80 == 0, "a server's frame is not masked"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._read(8))
        return first & 0x0F, self._read(size)

    def receive_json(self) -> Any:
        """Returns the next text frame; skips other frames."""
        while True:
            opcode, payload = self.receive()
            if opcode == TEXT:
                return json.loads(payload)

    def close_code(self) -> int:
        """Returns the code of the server's close frame; skips other frames. 1006: the server sends none."""
        try:
            while True:
                opcode, payload = self.receive()
                if opcode == CLOSE:
                    return int(struct.unpack("!H", payload[:2])[0]) if payload else 1005
        except Gone:
            return 1006
