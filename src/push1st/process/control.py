"""What a supervisor and its workers say to each other, over a socket pair that each worker inherits.

Messages are structs, packed, with their length before them. When the socket ends, the other process is gone.
"""

import asyncio
import contextlib
import socket
from typing import Any

import msgspec

from push1st.config.model import Config, Networks
from push1st.process.sockets import Role

_MOST_BYTES = 1 << 28


class StartWorker(msgspec.Struct, frozen=True, tag=True):
    """The first word to a worker: what it is to be.

    config: packed. doors: role, address and file descriptor. engine: the socket of the embedded engine, or "". nodes: as in
    `Workers`; empty without an embedded engine.
    """

    number: int
    config: bytes
    doors: list[tuple[Role, str, int]]
    engine: str
    nodes: list[str]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker listens. connections: how many may be open. node: its name in the broker."""

    connections: int
    node: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A worker cannot start. reason: for people."""

    reason: str


class Retire(msgspec.Struct, frozen=True, tag=True):
    """Another worker has taken a worker's place."""


class Workers(msgspec.Struct, frozen=True, tag=True):
    """The names of the living workers in the broker: sent when they change, and when the embedded engine is ready."""

    nodes: list[str]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """For metrics, or how the hooks of an app do: a worker asks for those of all others, the supervisor for a worker's own."""

    id: int
    app: str | None = None


class ControlReply(msgspec.Struct, frozen=True, tag=True):
    """The answer: numbers of workers (or SUPERVISOR), and packed families or states of hooks."""

    id: int
    packed: list[tuple[int, bytes]]


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Is the other there? It is."""


ControlMessage = StartWorker | Ready | Failed | Retire | Workers | Ask | ControlReply | Alive
_decoder = msgspec.msgpack.Decoder(ControlMessage)


class ControlConnection:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def on(cls, end: socket.socket) -> "ControlConnection":
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, word: ControlMessage) -> None:
        """Never waits. What is said to a process that is gone is lost."""
        packed = msgspec.msgpack.encode(word)
        self._writer.write(len(packed).to_bytes(4) + packed)

    async def receive(self) -> ControlMessage | None:
        """The next word; None when the other process is gone."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4))
            if size > _MOST_BYTES:
                return None
            word: ControlMessage = _decoder.decode(await self._reader.readexactly(size))
        except (OSError, asyncio.IncompleteReadError):
            return None
        return word

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def pack(config: Config) -> bytes:
    return msgspec.msgpack.encode(config, enc_hook=_pack)


def unpack(packed: bytes) -> Config:
    return msgspec.msgpack.decode(packed, type=Config, dec_hook=_unpack)


def _pack(value: Any) -> list[str]:
    if isinstance(value, Networks):
        return [*map(str, value.nets), *(["unix"] if value.unix else [])]
    raise NotImplementedError(type(value))


def _unpack(kind: type, value: Any) -> Networks:
    if kind is Networks:
        return Networks.parse(value)
    raise NotImplementedError(kind)
