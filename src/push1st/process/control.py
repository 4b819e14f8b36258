"""Messages between the supervisor and its workers, over socket pairs. Each worker inherits one end of a socket pair.

A message is a struct, encoded with MessagePack; the length of the encoded message precedes it in four bytes. The connection
closes when one of the two processes ends.
"""

import asyncio
import contextlib
import socket
from typing import Any

import msgspec

from push1st.config.addresses import Listen, Networks
from push1st.config.model import Config
from push1st.process.sockets import Role

MAX_BYTES = 1 << 28


class StartWorker(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker.

    config: the worker's configuration, as `pack` encodes it.
    sockets: role, address and file descriptor of each socket on which the worker listens.
    engine: the path of the embedded engine's socket; "" if the worker uses no embedded engine.
    nodes: the names of the living workers, as in `Workers`; empty if the worker uses no embedded engine.
    is_reload: whether the worker belongs to a reload.
    server: the random name of the supervisor, which all of its workers share.
    """

    number: int
    config: bytes
    sockets: list[tuple[Role, Listen, int]]
    engine: str
    nodes: list[str]
    is_reload: bool = False
    server: str = ""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Reports that a worker listens, and can hold `connections` connections. `node` is the worker's name in the broker."""

    connections: int
    node: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Reports that a worker cannot start. `reason` is a text for people."""

    reason: str


class Retire(msgspec.Struct, frozen=True, tag=True):
    """Makes a worker end gracefully, because a reload has replaced the worker or removed its slot."""


class Workers(msgspec.Struct, frozen=True, tag=True):
    """Contains the names, in the broker, of the living workers that use the embedded engine. Sent after each change of names."""

    nodes: list[str]


class ControlRequest(msgspec.Struct, frozen=True, tag=True):
    """Requests the counters of all other workers, the states of an app's hooks in all other workers, or the state of the server.

    A worker sends the request to the supervisor, and the supervisor then sends a request to every other worker. For the state of
    the server, the supervisor sends the request to all workers, and its own reply is JSON.

    app: the id of the app whose hook states are requested; None: the counters, or the state, are requested.
    status: whether the state is requested.
    """

    id: int
    app: str | None = None
    status: bool = False


class ControlReply(msgspec.Struct, frozen=True, tag=True):
    """The reply to a `ControlRequest`.

    id: the id of the request.
    packed: for each process, its number and its encoded counters or hook states. The supervisor's number is `SUPERVISOR`.
    """

    id: int
    packed: list[tuple[int, bytes]]


class PrepareChange(msgspec.Struct, frozen=True, tag=True):
    """Makes a worker read and check everything that a changed configuration needs, without any effect.

    config: the configuration, as `pack` encodes it.
    """

    id: int
    config: bytes


class ApplyChange(msgspec.Struct, frozen=True, tag=True):
    """Makes a worker apply the configuration that it has prepared last."""

    id: int


class ChangeReply(msgspec.Struct, frozen=True, tag=True):
    """The reply to `PrepareChange` and `ApplyChange`.

    id: the id of the request.
    lines: the effects, for people.
    problem: the reason why the worker cannot use the configuration; "" if it can.
    """

    id: int
    lines: tuple[str, ...] = ()
    problem: str = ""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """A probe that the supervisor sends to a worker. The worker replies with the same message."""


ControlMessage = (
    StartWorker
    | Ready
    | Failed
    | Retire
    | Workers
    | ControlRequest
    | ControlReply
    | PrepareChange
    | ApplyChange
    | ChangeReply
    | Alive
)
_decoder = msgspec.msgpack.Decoder(ControlMessage)


class ControlConnection:
    """One end of the socket pair between the supervisor and a worker."""

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
