"""WebSocket frames as a client sends and reads them."""

import json
from typing import Any

from websockets.frames import Frame, Opcode

from push1st.messages import Message


class Wire:
    """A codec whose frames are the data itself."""

    def __init__(self, name: str = "plain") -> None:
        self.name = name
        self.encoded = 0

    def message(self, message: Message, now: int) -> bytes:
        self.encoded += 1
        return message.data


def masked(opcode: Opcode, data: bytes | str, fin: bool = True) -> bytes:
    """Returns a frame as a client sends it."""
    payload = data.encode() if isinstance(data, str) else data
    return bytes(Frame(opcode, payload, fin).serialize(mask=True))


def text(data: str | object) -> bytes:
    """Returns a text frame of a client; a string is sent unchanged, other values as JSON."""
    return masked(Opcode.TEXT, data if isinstance(data, str) else json.dumps(data))


def close(code: int = 1000, reason: str = "") -> bytes:
    return masked(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode())


def frames(data: bytes) -> list[tuple[Opcode, bytes]]:
    """Returns opcode and payload of each frame that a client reads. The frames must be whole, unmasked and unfragmented."""
    found = []
    while data:
        opcode, size, at = Opcode(data[0] & 15), data[1], 2
        assert data[0] & 0xF0 == 0x80
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        assert size < 126 or at > 2
        assert len(data) >= at + size
        found.append((opcode, data[at : at + size]))
        data = data[at + size :]
    return found


def text_of(data: bytes) -> str:
    """Returns the text of the only frame."""
    ((opcode, payload),) = frames(data)
    assert opcode is Opcode.TEXT
    return payload.decode()


def texts(data: bytes) -> list[Any]:
    """Returns the text messages that a client reads, decoded from JSON."""
    return [json.loads(payload) for opcode, payload in frames(data) if opcode is Opcode.TEXT]


def close_of(data: bytes) -> tuple[int, str]:
    """Returns code and reason of the close frame that a client reads; it must be the last frame."""
    *_, (opcode, payload) = frames(data)
    assert opcode is Opcode.CLOSE, opcode
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()
