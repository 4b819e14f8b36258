"""WebSocket framing (RFC 6455), without I/O: the `websockets` library's frame parser, put together to messages.

A decoder holds a buffer only while a frame is incomplete, so an idle connection costs none. Frames to clients are
never masked and never fragmented (RFC 6455 §5.1).
"""

from collections.abc import Generator, Iterator

import msgspec
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the library's C code
    from websockets.utils import apply_mask

from push1st.errors import Disconnect


class Text(msgspec.Struct, frozen=True, gc=False):
    text: str


class Pinged(msgspec.Struct, frozen=True, gc=False):
    payload: bytes


class Ponged(msgspec.Struct, frozen=True, gc=False):
    pass


class Closed(msgspec.Struct, frozen=True, gc=False):
    code: int


Event = Text | Pinged | Ponged | Closed
PONGED = Ponged()


def text_head(size: int) -> bytes:
    """The header of a text message of `size` bytes to a client."""
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big")
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


def text_frame(payload: bytes) -> bytes:
    """A text message to a client: header and payload."""
    return text_head(len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to the 123 bytes that fit (RFC 6455 §5.5)."""
    payload = code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()
    return b"\x88" + len(payload).to_bytes(1, "big") + payload


def pong_frame(payload: bytes) -> bytes:
    return b"\x8a" + len(payload).to_bytes(1, "big") + payload


PING_FRAME = b"\x89\x00"


class Decoder:
    """Bytes from a client → events. most: bytes a message may have."""

    __slots__ = ("_message", "_most", "_parse", "_reader")

    def __init__(self, most: int) -> None:
        self._most = most
        self._reader: StreamReader | None = None
        self._parse: Generator[None, None, Frame] | None = None
        self._message: bytearray | None = None

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yields what is complete. Raises Disconnect where RFC 6455 §7.4.1 says so: 1002, 1003, 1007, 1009."""
        reader = self._reader
        if reader is None:
            # Most of what clients send is one short, whole text frame, alone: that takes no parser.
            size = len(data) - 6
            if size < 126 and size >= 0 and data[0] == 0x81 and data[1] == 0x80 | size and self._message is None:
                yield _text(apply_mask(data[6:], data[2:6]))
                return
            reader = StreamReader()
        reader.feed_data(data)
        self._reader = reader
        while True:
            parse = self._parse
            if parse is None:
                if not reader.buffer:
                    self._reader = None
                    return
                parse = Frame.parse(reader.read_exact, mask=True, max_size=self._most)
            try:
                next(parse)
            except StopIteration as done:
                self._parse = None
                event = self._frame(done.value)
                if event is not None:
                    yield event
            except PayloadTooBig as error:
                self._parse = None
                raise Disconnect(1009, f"a message has at most {self._most} bytes") from error
            except ProtocolError as error:
                self._parse = None
                raise Disconnect(1002, str(error)) from error
            else:
                self._parse = parse
                return

    def _frame(self, frame: Frame) -> Event | None:
        match frame.opcode:
            case Opcode.TEXT:
                if self._message is not None:
                    raise Disconnect(1002, "a new message began before the last one ended")  # RFC 6455 §5.4
                if frame.fin:
                    return _text(frame.data)
                self._message = bytearray(frame.data)
            case Opcode.CONT:
                if self._message is None:
                    raise Disconnect(1002, "a continuation of nothing")  # RFC 6455 §5.4
                if len(self._message) + len(frame.data) > self._most:
                    raise Disconnect(1009, f"a message has at most {self._most} bytes")
                self._message += frame.data
                if frame.fin:
                    whole, self._message = self._message, None
                    return _text(whole)
            case Opcode.PING:
                return Pinged(bytes(frame.data))
            case Opcode.PONG:
                return PONGED
            case Opcode.CLOSE:
                try:
                    return Closed(int(Close.parse(frame.data).code))
                except ProtocolError as error:
                    raise Disconnect(1002, str(error)) from error
                except UnicodeDecodeError as error:
                    raise Disconnect(1007, "the close reason is not UTF-8") from error
            case _:
                raise Disconnect(1003, "binary messages are not supported")
        return None


def _text(data: bytes | bytearray | memoryview) -> Text:
    try:
        return Text(str(data, "utf-8"))
    except UnicodeDecodeError as error:
        raise Disconnect(1007, "a text message is not UTF-8") from error  # RFC 6455 §8.1
