"""Fuzzes the WebSocket decoder: any bytes, in any chunks, are events, or end the connection with a code of RFC 6455 §7.4.1."""

import contextlib
from random import Random

from websockets.frames import Frame, Opcode

from fuzz.runner import among, cut, main
from push1st.errors import Disconnect
from push1st.protocols.websocket import (
    Binary,
    BinaryDecoder,
    Closed,
    Decoder,
    Pinged,
    Ponged,
    Text,
    close_frame,
    pong_frame,
    whole_text,
)

MOST = 1000
MAX_REST = 131
"""bytes of an incomplete header or control frame"""
CODES = {1002, 1003, 1007, 1009}


def masked(opcode: Opcode, payload: bytes, fin: bool = True) -> bytes:
    """Returns a client's frame; the mask is always the same."""
    head = bytes(Frame(opcode, payload, fin).serialize(mask=False))
    at = 2 if len(payload) < 126 else 4 if len(payload) < 65_536 else 10
    mask = b"\x01\x02\x03\x04"
    body = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return head[:1] + bytes((head[1] | 128,)) + head[2:at] + mask + body


SEEDS = [
    masked(Opcode.TEXT, b'{"event":"pusher:ping","data":{}}'),
    masked(Opcode.TEXT, "жук 😀".encode()),
    masked(Opcode.TEXT, b"x" * 300) + masked(Opcode.PONG, b""),
    masked(Opcode.TEXT, b"one ", False)
    + masked(Opcode.PING, b"p")
    + masked(Opcode.CONT, b"two", False)
    + masked(Opcode.CONT, b""),
    masked(Opcode.PING, b"x" * 125) + masked(Opcode.CLOSE, b"\x03\xe8bye"),
    masked(Opcode.CLOSE, b""),
    masked(Opcode.BINARY, b"\x00\x01"),
    masked(Opcode.BINARY, b"x" * 300, False) + masked(Opcode.PING, b"p") + masked(Opcode.CONT, b"") + masked(Opcode.TEXT, b"x"),
    masked(Opcode.TEXT, b"x" * (MOST + 1)),
    masked(Opcode.TEXT, "жук".encode()[:3], False) + masked(Opcode.CONT, "жук".encode()[3:]),
    masked(Opcode.TEXT, b"a\xff", False) + masked(Opcode.CONT, b"b"),
    b"\x89\xff" + (65_536).to_bytes(8, "big"),
    b"\x81\xfe\x00\x05\0\0\0\0short",
    b"\x81\xff\0\0\0\0\0\0\x01\x00\0\0\0\0" + b"x" * 256,
]


def run(data: bytes, random: Random) -> None:
    assert events_of(list(cut(data, random))) == events_of([data]), "chunks change what is read"
    assert payloads_of(list(cut(data, random))) == payloads_of([data]), "chunks change the payloads of binary messages"
    with contextlib.suppress(Disconnect):
        if (text := whole_text(data)) is not None:
            assert events_of([data]) == [text], "the short way changes what is read"


def payloads_of(chunks: list[bytes]) -> list[object]:
    """Returns what `BinaryDecoder` reads: the events, with consecutive parts of payloads joined."""
    decoder = BinaryDecoder()
    events: list[object] = []
    for chunk in chunks:
        try:
            for event in decoder.feed(chunk):
                if isinstance(event, Binary) and events and isinstance(events[-1], bytes):
                    events[-1] += event.data
                else:
                    events.append(event.data if isinstance(event, Binary) else event)
        except Disconnect as end:
            among(end.code, CODES)
            events.append(end.code)
            break
        assert len(decoder._rest) <= MAX_REST
        assert not decoder._message
    return events


def whole(frame: bytes) -> None:
    """A control frame has at most 125 bytes after its header (RFC 6455 §5.5)."""
    assert len(frame) - 2 == frame[1] <= 125


def events_of(chunks: list[bytes]) -> list[object]:
    decoder = Decoder(MOST)
    events: list[object] = []
    for chunk in chunks:
        try:
            for event in decoder.feed(chunk):
                events.append(event)
                match event:
                    case Text(text):
                        assert len(text.encode()) <= MOST
                    case Pinged(payload):
                        assert pong_frame(payload)
                    case Closed(code):
                        whole(close_frame(code, "bye"))
                    case Ponged():
                        pass
        except Disconnect as end:
            among(end.code, CODES)
            whole(close_frame(end.code, end.reason))
            events.append(end.code)
            break
        assert len(decoder._rest) <= MAX_REST
        assert len(decoder._message or b"") <= MOST
    return events


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
