"""The WebSocket `api/live` of the console, with JSON messages in both directions.

A browser sends `{"watch": NAME, …}` and `{"unwatch": NAME}`, and each part of the console that is `Watchable` answers under its
name. The worker pings a silent browser. It closes a socket if the session has ended or expired (4401), if the browser does not
read its messages (4100), or if the worker already has `MAX_SOCKETS` sockets (1013).
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from push1st.console.endpoints import ConsoleContext, ConsolePart
from push1st.console.sessions import OperatorSession
from push1st.errors import Disconnect, Refused
from push1st.limits import Bucket
from push1st.messages import Response
from push1st.protocols.websocket import (
    PING_FRAME,
    Closed,
    Decoder,
    Event,
    Pinged,
    Text,
    close_frame,
    handshake_answer,
    pong_frame,
    text_frame,
)
from push1st.transports.entries import checked
from push1st.transports.handlers import Handshake, SocketOwner
from push1st.transports.sweep import NEVER

MAX_SOCKETS = 10
"""the maximum number of sockets of a worker"""
MAX_MESSAGE = 16_384
"""the maximum number of bytes of a message from a browser"""
MAX_UNSENT = 1 << 20
"""the number of unsent bytes above which a socket is behind; one message of a large cluster may be longer"""
MAX_WAITING = 4 << 20
"""the number of unsent bytes above which the next message ends the socket"""
UNREAD_SECONDS = 10
"""the seconds after which the worker ends a socket that is behind, and whose browser reads nothing"""
MAX_EVENTS_A_SECOND = 50
PING_SECONDS = 25
"""the seconds without input after which the worker sends a ping; proxies often end connections that are silent for a minute"""
PONG_SECONDS = 15
CLOSE_SECONDS = 3
SESSION_ENDED = 4401


class LiveSocket(SocketOwner):
    """The WebSocket of a browser's tab."""

    __slots__ = (
        "_closing",
        "_context",
        "_decoder",
        "_live",
        "_pinged",
        "_read_at",
        "_seen",
        "_tokens",
        "_transport",
        "_unsent",
        "due_at",
        "ends",
        "is_behind",
        "nonce",
        "watches",
    )

    def __init__(self, live: "Live", context: ConsoleContext, session: OperatorSession, transport: asyncio.Transport) -> None:
        self._live = live
        self._context = context.edge
        self._transport = transport
        self.address = ""
        self.nonce = session.nonce
        self.ends = min(session.expires, session.ends)
        """when the session of the handshake expires, in seconds since 1970"""
        self.watches: dict[str, Watchable] = {}
        """the parts that this socket watches, by name"""
        self._decoder = Decoder(MAX_MESSAGE)
        self._tokens = Bucket(MAX_EVENTS_A_SECOND, self._context.node.clock.monotonic())
        self._seen = self._context.sweep.now
        self._pinged = False
        self._closing = False
        self.is_behind = False
        """whether more than `MAX_UNSENT` bytes are unsent; parts then send no message that a later one would replace"""
        self._unsent = 0
        self._read_at = self._seen
        """the number of unsent bytes at the last check, and the time at which the browser last read some of them"""
        self.due_at = NEVER

    def start(self, switch: bytes) -> None:
        """Takes over the socket. switch: the bytes that must be written first."""
        self._transport.write(switch)
        self._transport.set_protocol(self)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT)
        self._context.open.add(self)
        self._context.sweep.watch(self, self._seen + 1)

    @property
    def closed(self) -> bool:
        return self._closing

    @property
    def unsent(self) -> int:
        """The number of bytes that wait because the browser does not read them."""
        return self._transport.get_write_buffer_size()

    def send(self, message: bytes) -> None:
        """Sends a message, which is JSON."""
        if self._closing or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_WAITING:
            self._end_unread()
        else:
            self._transport.write(text_frame(message))

    def _end_unread(self) -> None:
        self.close(4100, "the browser does not read its messages")

    def pause_writing(self) -> None:
        self.is_behind = True
        self._unsent, self._read_at = self._transport.get_write_buffer_size(), self._context.sweep.now

    def resume_writing(self) -> None:
        self.is_behind = False

    # Input

    def data_received(self, data: bytes) -> None:
        self._context.arrived(self, data)

    def process(self, data: bytes) -> bool:
        self._seen = self._context.sweep.now
        self._pinged = False
        if self._closing:
            return False
        try:
            for event in self._bounded(self._decoder.feed(data)):
                if type(event) is Text:
                    self._live.received(self, event.text)
                elif type(event) is Pinged:
                    self._transport.write(pong_frame(event.payload))
                elif type(event) is Closed:
                    self.close(1000 if event.code == 1005 else event.code, "")
                if self.closed:
                    break
        except Disconnect as end:
            self.close(end.code, end.reason)
        return False

    def _bounded(self, events: Iterator[Event]) -> Iterator[Event]:
        clock = self._context.node.clock
        for event in events:
            if not self._tokens.take(clock.monotonic()):
                raise Disconnect(1008, f"more than {MAX_EVENTS_A_SECOND} messages a second")
            yield event

    def keep(self, data: bytes) -> None:
        """A browser sends only short messages, so a long read ends the socket."""
        self.close(1009, f"a message has at most {MAX_MESSAGE} bytes")

    def hold_reading(self, hold: bool) -> None:
        if hold:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    # The end

    def close(self, code: int, reason: str) -> None:
        """Ends the socket with a close frame."""
        if not self._closing:
            self._forget()
            if not self._transport.is_closing():
                self._transport.write(close_frame(code, reason))
                self._transport.close()
                self._context.sweep.watch(self, self._context.sweep.now + CLOSE_SECONDS)

    def leave(self, code: int, reason: str) -> None:
        self.close(code, reason)

    def abort(self) -> None:
        self._transport.abort()

    def eof_received(self) -> bool:
        self._forget()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._context.addresses.leave(self.address)
        self.address = ""
        self._context.open.discard(self)
        self._context.sweep.forget(self)

    def _forget(self) -> None:
        self._closing = True
        self._live.forget(self)

    def due(self, now: float) -> float | None:
        """Enforces the deadlines of the socket (see `Sweep`)."""
        if self._closing:
            self._transport.abort()
            return None
        if self._context.node.clock.wall() >= self.ends * 1_000_000_000:
            self.close(SESSION_ENDED, "the session has expired")
            return now + CLOSE_SECONDS
        if self.is_behind and self._is_unread(now):
            self._end_unread()
            return now + CLOSE_SECONDS
        silent = now - self._seen
        if silent >= PING_SECONDS + PONG_SECONDS:
            self.close(4201, "no answer to a ping")
            return now + CLOSE_SECONDS
        if silent >= PING_SECONDS and not self._pinged:
            self._pinged = True
            self._transport.write(PING_FRAME)
        return now + 1

    def _is_unread(self, now: float) -> bool:
        """Returns whether the socket is behind, and its browser has read nothing for `UNREAD_SECONDS`."""
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        if self._unsent < before:
            self._read_at = now
        return now - self._read_at >= UNREAD_SECONDS


@runtime_checkable
class Watchable(Protocol):
    """A part of the console that a tab can watch. name: the value of `watch` in the tab's message."""

    name: str

    def watch(self, socket: LiveSocket, request: Mapping[str, Any]) -> None:
        """Begins to send messages to a socket, or changes what it sends. Raises Refused for a request that is not valid."""

    def unwatch(self, socket: LiveSocket) -> None:
        """Stops sending messages to a socket. Called once for each socket that watches, also at its end."""


class Live:
    """The WebSockets of a worker's console. `parts`: all parts of the console."""

    def __init__(self, context: ConsoleContext, parts: Sequence[ConsolePart]) -> None:
        self._context = context
        self._parts = {part.name: part for part in parts if isinstance(part, Watchable)}
        self._sockets: set[LiveSocket] = set()

    def upgrade(
        self, handshake: Handshake, session: OperatorSession, transport: asyncio.Transport, rest: bytes, before: bytes
    ) -> Response | SocketOwner:
        """Serves the handshake of a signed-in operator (see `transports.handlers.UpgradeHandler`).

        session: the session of the operator. The socket ends with 4401 when the session expires (`OperatorSession.expires`).
        """
        refusal = checked(handshake)
        if refusal is not None:
            return refusal
        socket = LiveSocket(self, self._context, session, transport)
        socket.start(before + handshake_answer(handshake.key))
        if len(self._sockets) >= MAX_SOCKETS:
            # A browser's script can read the code and the reason of a close frame, but not the status of a rejected handshake.
            socket.close(1013, f"this worker has {MAX_SOCKETS} live connections already, which is the limit")
            return socket
        self._sockets.add(socket)
        if rest:
            self._context.edge.arrived(socket, rest)
        return socket

    def end_session(self, nonce: str) -> None:
        """Closes the sockets of a session that has ended, with 4401."""
        for socket in [one for one in self._sockets if one.nonce == nonce]:
            socket.close(SESSION_ENDED, "the session has ended")

    def received(self, socket: LiveSocket, text: str) -> None:
        """Handles a message of a browser."""
        try:
            self._apply(socket, text)
        except Refused as exc:
            socket.send(msgspec.json.encode({"error": exc.text}))

    def _apply(self, socket: LiveSocket, text: str) -> None:
        try:
            message = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            raise Refused(400, "a message must be a JSON object") from None
        watched, unwatched = message.get("watch"), message.get("unwatch")
        if isinstance(watched, str) and watched in self._parts:
            part = self._parts[watched]
            part.watch(socket, message)
            socket.watches[watched] = part
        elif isinstance(unwatched, str) and unwatched in self._parts:
            if socket.watches.pop(unwatched, None) is not None:
                self._parts[unwatched].unwatch(socket)
        else:
            names = " or ".join(self._parts)
            raise Refused(400, f'a message must be {{"watch": NAME}} or {{"unwatch": NAME}}, with the name {names}')

    def forget(self, socket: LiveSocket) -> None:
        """Ends all watches of a socket that ends."""
        self._sockets.discard(socket)
        watches, socket.watches = socket.watches, {}
        for part in watches.values():
            part.unwatch(socket)
