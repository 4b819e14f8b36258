"""Encodes and decodes frames of WebSockets (RFC 6455). The library `websockets` unmasks payloads, and parses close frames.

A decoder is needed only while a frame or a message is incomplete, so an idle connection has no decoder. Frames to clients are
never masked and never fragmented (RFC 6455 §5.1).
"""

import binascii
import hashlib
from codecs import utf_8_decode
from collections.abc import Iterator

import msgspec
from websockets.exceptions import ProtocolError
from websockets.frames import Close, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library `websockets` has no C code for this platform
    from websockets.utils import apply_mask

from push1st.errors import Disconnect


class Text(msgspec.Struct, frozen=True, gc=False):
    text: str


class Binary(msgspec.Struct, frozen=True, gc=False):
    """A part of the payload of a binary message (`BinaryDecoder`)."""

    data: bytes


class Pinged(msgspec.Struct, frozen=True, gc=False):
    payload: bytes


class Ponged(msgspec.Struct, frozen=True, gc=False):
    pass


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """The header of a fragment that is not the last fragment of its message. `size`: the number of bytes of the fragment."""

    size: int


class Closed(msgspec.Struct, frozen=True, gc=False):
    code: int


Event = Text | Binary | Pinged | Ponged | Fragment | Closed
PONGED = Ponged()


_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n%b\r\n"


def handshake_answer(key: str, subprotocol: str = "") -> bytes:
    """Returns the answer that accepts a handshake (RFC 6455 §4.2.2).

    `key`: the header `Sec-WebSocket-Key`. `subprotocol`: the subprotocol that the server has chosen; "" for none.
    """
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    chosen = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode() if subprotocol else b""
    return _SWITCH % (binascii.b2a_base64(digest, newline=False), chosen)


def text_head(size: int) -> bytes:
    """Returns the header of a text message of `size` bytes to a client."""
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big")
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


def binary_frame(payload: bytes) -> bytes:
    """Returns the frame of a binary message to a client."""
    return b"\x82" + text_head(len(payload))[1:] + payload


def text_frame(payload: bytes) -> bytes:
    """Returns the frame of a text message to a client."""
    return text_head(len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """Returns a close frame. A reason of more than 123 bytes is cut to this length (RFC 6455 §5.5)."""
    payload = code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()
    return b"\x88" + len(payload).to_bytes(1, "big") + payload


def pong_frame(payload: bytes) -> bytes:
    return b"\x8a" + len(payload).to_bytes(1, "big") + payload


PING_FRAME = b"\x89\x00"
FIN = 0x80
MAX_SIZE = (1 << 63) - 1
"""the maximum number of bytes of a frame's payload (RFC 6455 §5.2)"""
NOT_UTF8 = "a text message is not UTF-8"


def whole_text(data: bytes) -> Text | None:
    """Returns the message if the bytes are exactly one text frame with less than 126 bytes of payload, else None.

    Most messages of clients are single short frames. Such a frame needs no `Decoder`, unless an earlier message is incomplete.
    Raises Disconnect if the text is not UTF-8.
    """
    size = len(data) - 6
    if size < 126 and size >= 0 and data[0] == 0x81 and data[1] == 0x80 | size:
        return _text(apply_mask(data[6:], data[2:6]))
    return None


class Decoder:
    """Decodes bytes from a client into events.

    `most`: the maximum number of bytes of a message. `binary`: whether binary messages are decoded as text.

    A violation of RFC 6455 is detected at the first invalid byte, and not at the end of the frame or of the message.
    """

    __slots__ = ("_checked", "_fin", "_left", "_mask", "_message", "_most", "_rejected", "_rest")

    def __init__(self, most: int, binary: bool = False) -> None:
        self._most = most
        self._rejected: Opcode | None = None if binary else Opcode.BINARY
        """the opcode of messages that end the connection"""
        self._rest = b""
        """the start of an incomplete header or control frame; a control frame has at most 6 + 125 bytes (header + payload)"""
        self._message: bytearray | None = None
        """the bytes received so far, if a message is fragmented or its frame is incomplete; None between messages"""
        self._checked = 0
        """the number of bytes of the message that have been checked as UTF-8"""
        self._left = 0
        """the number of bytes of the current frame that have not arrived yet"""
        self._mask = b""
        self._fin = False

    @property
    def is_between_messages(self) -> bool:
        """Whether no message, header or control frame is incomplete, so that this decoder is not needed any more."""
        return self._message is None and not self._rest

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yields an event for each complete message or control frame, and for each fragment's header (see `Fragment`).

        The caller must exhaust the returned iterator before it uses the iterator of a later call.

        Raises Disconnect with one of the codes of RFC 6455 §7.4.1: 1002, 1003, 1007, 1009.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                event = self._piece(piece)
                if event is not None:
                    yield event
                continue
            start = at
            at, size = self._head(data, at)
            opcode = data[start] & 15
            if not at or (opcode >= Opcode.CLOSE and at + size > end):
                self._rest = data[start:]
                return
            mask = data[at - 4 : at]
            if opcode >= Opcode.CLOSE:
                yield _control(opcode, apply_mask(data[at : at + size], mask))
                at += size
            elif opcode == Opcode.TEXT and data[start] & FIN and at + size <= end:
                yield _text(apply_mask(data[at : at + size], mask))
                at += size
            else:
                self._fin = bool(data[start] & FIN)
                self._mask = mask
                self._left = size
                if self._message is None:
                    self._message = bytearray()
                if not self._fin:
                    yield Fragment(size)
                if not size and (event := self._piece(b"")) is not None:
                    yield event

    def _head(self, data: bytes, at: int) -> tuple[int, int]:
        """Returns the start and the size of a frame's payload; 0 and 0 if the header is incomplete. Raises Disconnect."""
        if len(data) < at + 2:
            return 0, 0
        first, second = data[at], data[at + 1]
        opcode, size = first & 15, second & 127
        if first & 0x70:
            raise Disconnect(1002, "a reserved bit is set: no extension was negotiated")  # RFC 6455 §5.2
        if not second & 0x80:
            raise Disconnect(1002, "a client must mask its frames")  # RFC 6455 §5.1
        match opcode:
            case Opcode.TEXT | Opcode.BINARY if self._message is not None:
                raise Disconnect(1002, "a new message began before the last one ended")  # RFC 6455 §5.4
            case Opcode.BINARY if self._rejected == opcode:
                raise Disconnect(1003, "binary messages are not supported")
            case Opcode.TEXT if self._rejected == opcode:
                raise Disconnect(1003, "text messages are not supported")
            case Opcode.CONT if self._message is None:
                raise Disconnect(1002, "a continuation of nothing")  # RFC 6455 §5.4
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                pass
            case Opcode.CLOSE | Opcode.PING | Opcode.PONG:
                if size > 125 or not first & FIN:  # RFC 6455 §5.5
                    raise Disconnect(1002, "a control frame has at most 125 bytes and is not fragmented")
            case _:
                raise Disconnect(1002, f"opcode {opcode} is not defined")
        more = 0 if size < 126 else 2 if size == 126 else 8
        at += 2 + more
        if len(data) < at:
            return 0, 0
        if more:
            size = int.from_bytes(data[at - more : at], "big")
            if size < (126 if more == 2 else 65_536):
                raise Disconnect(1002, f"the length {size} is not in its shortest form")  # RFC 6455 §5.2
        if size + len(self._message or b"") > self._most and opcode < Opcode.CLOSE:
            raise Disconnect(1009, f"a message has at most {self._most} bytes")
        return (at + 4, size) if len(data) >= at + 4 else (0, 0)

    def _piece(self, piece: bytes) -> Text | Binary | None:
        """Adds the next bytes of a frame to its message; returns the message if the message is complete. Raises Disconnect."""
        message = self._message
        assert message is not None
        message += apply_mask(piece, self._mask)
        if self._ends_message(piece):
            self._message, self._checked = None, 0
            return _text(message)
        with memoryview(message)[self._checked :] as rest:
            try:
                self._checked += utf_8_decode(rest, "strict", False)[1]  # the bytes of a character may continue in the next piece
            except UnicodeDecodeError as exc:
                raise Disconnect(1007, NOT_UTF8) from exc  # RFC 6455 §8.1
        return None

    def _ends_message(self, piece: bytes) -> bool:
        """Counts the next bytes of a frame; returns whether the message is complete."""
        self._left -= len(piece)
        if not self._left and self._fin:
            return True
        turn = len(piece) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        return False


class BinaryDecoder(Decoder):
    """Decodes the payloads of binary messages in pieces, as they arrive, for a protocol whose packets may begin and end anywhere.

    The decoder keeps no payload, so a message may have any size. A text message is a violation.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MAX_SIZE, binary=True)
        self._rejected = Opcode.TEXT

    def _piece(self, piece: bytes) -> Binary:
        data = apply_mask(piece, self._mask)
        if self._ends_message(piece):
            self._message = None
        return Binary(data)


def _control(opcode: int, payload: bytes) -> Event:
    match opcode:
        case Opcode.PING:
            return Pinged(payload)
        case Opcode.PONG:
            return PONGED
    try:
        return Closed(int(Close.parse(payload).code))
    except ProtocolError as exc:
        raise Disconnect(1002, str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise Disconnect(1007, "the close reason is not UTF-8") from exc


def _text(data: bytes | bytearray | memoryview) -> Text:
    try:
        return Text(str(data, "utf-8"))
    except UnicodeDecodeError as exc:
        raise Disconnect(1007, NOT_UTF8) from exc  # RFC 6455 §8.1
