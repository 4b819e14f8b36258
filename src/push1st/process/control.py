"""The messages between a supervisor and its workers, over a socket pair that each worker inherits.

A message is a struct, packed by MessagePack, after its length in four bytes. The connection closes when one of the two
processes ends.
"""

import asyncio
import contextlib
import socket
from typing import Any

import msgspec

from push1st.config.model import Config, Networks
from push1st.process.sockets import Role

MAX_BYTES = 1 << 28


class StartWorker(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker.

    config: the worker's configuration, packed.
    sockets: role, address and file descriptor of each socket to listen on.
    engine: the path of the embedded engine's socket; "" without an engine.
    nodes: as in `Workers`; empty without an engine.
    """

    number: int
    config: bytes
    sockets: list[tuple[Role, str, int]]
    engine: str
    nodes: list[str]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker listens. connections: the number of connections that it can hold. node: the worker's name in the broker."""

    connections: int
    node: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A worker cannot start. reason: a text for people."""

    reason: str


class Retire(msgspec.Struct, frozen=True, tag=True):
    """Makes a worker end gracefully, because another worker listens on its sockets."""


class Workers(msgspec.Struct, frozen=True, tag=True):
    """The names of the living workers in the broker. The supervisor sends them when they change."""

    nodes: list[str]


class ControlRequest(msgspec.Struct, frozen=True, tag=True):
    """Requests counters, or the states of an app's hooks.

    A worker requests the counters of all other workers from the supervisor, which requests them from each worker.

    app: the id of the app; None requests counters.
    """

    id: int
    app: str | None = None


class ControlReply(msgspec.Struct, frozen=True, tag=True):
    """The reply to a request.

    id: of the request.
    packed: for each worker its number, and its packed metrics or states of hooks. The supervisor's number is `SUPERVISOR`.
    """

    id: int
    packed: list[tuple[int, bytes]]


class Alive(msgspec.Struct, frozen=True, tag=True):
    """A probe of the supervisor, and the worker's reply to it."""


ControlMessage = StartWorker | Ready | Failed | Retire | Workers | ControlRequest | ControlReply | Alive
_decoder = msgspec.msgpack.Decoder(ControlMessage)


class ControlConnection:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def on(cls, end: socket.socket) -> "ControlConnection":
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: ControlMessage) -> None:
        """Sends a message without waiting. The message is lost if the other process has ended."""
        packed = msgspec.msgpack.encode(message)
        self._writer.write(len(packed).to_bytes(4) + packed)

    async def receive(self) -> ControlMessage | None:
        """Returns the next message; None if the other process has ended."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4))
            if size > MAX_BYTES:
                return None
            message: ControlMessage = _decoder.decode(await self._reader.readexactly(size))
        except (OSError, asyncio.IncompleteReadError):
            return None
        return message

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
