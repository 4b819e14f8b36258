"""One connection to a server that speaks RESP3 (Redis since 6, Valkey): sends commands, reads replies and messages.

All commands of one turn of the event loop are one write, and the server replies in the order of the commands. Messages of topics
arrive between the replies as RESP3 push data, in the order in which the server ran PUBLISH and other commands. This module knows
no keys and no scripts. If a connection ends, `connection.py` makes a new connection.

A coroutine that waits for an `ordered` reply resumes before the messages after this reply are delivered. Without this rule a
message would overtake the reply, because asyncio resumes a waiting coroutine only in the next turn of the event loop.
"""

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import hiredis

OnReply = Callable[[Any], None]
"""a function that takes a reply; an error is a `hiredis.ReplyError` or a `ConnectionLost`"""
OnPush = Callable[[bytes], None]
"""a function that takes the data of a message from a topic"""
Argument = str | bytes | int
NOTHING = object()
READ_BYTES = 1 << 16
"""the maximum number of bytes of one read from the socket of a connection that has ended"""


pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]  # its stub allows one item
"""Returns the bytes of a command."""


def _error(text: str) -> hiredis.ReplyError:
    """Returns the error of a command in a script, without the text that Redis before version 7 puts before the error."""
    return hiredis.ReplyError(re.sub(r"^ERR Error running script .*?: -(?=[A-Z])", "", text))


class ConnectionLost(Exception):
    """The connection ended before the reply arrived. The server may have run the command."""


class RespConnection(asyncio.Protocol):
    """A RESP3 connection. `on_push` takes each message of the subscribed topics; `lost` is called when the connection ends."""

    def __init__(self, on_push: OnPush, lost: Callable[[], None]) -> None:
        self._on_push = on_push
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=NOTHING)
        self._transport: asyncio.Transport
        self._waiting: deque[OnReply | PendingSubscription] = deque()
        self._out: list[bytes] = []
        self._out_size = 0
        self._held: hiredis.PushNotification | None = None
        self._resuming = 0
        """the number of ordered replies that have arrived, but whose waiting coroutines have not resumed yet"""
        self.alive = False
        self.run_id = ""
        """the id of this run of the server process; "" if the broker's user may not read it"""
        self._ended = False
        """whether the connection has ended; `_end` runs after all received messages are delivered"""
        self.received_at = 0.0
        """the time (loop's clock) at which the server last sent data"""
        self._owed_since = 0.0
        """the time (loop's clock) of the most recent command that was sent while no other command waited for a reply"""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.alive = True
        self.received_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        self.received_at = self._loop.time()
        self._reader.feed(data)
        if self._held is None:
            self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.alive:
            self._read_rest()
            self._ended = True
            if self._held is None:
                self._end()

    def _read_rest(self) -> None:
        """Reads the data that the server sent before the connection ended.

        If a write fails because the server's process has ended, asyncio ends the connection before all received data is read. The
        unread data may contain events that the server has already confirmed to their publishers.
        """
        connection = self._transport.get_extra_info("socket")
        if connection is None or self._transport.get_extra_info("sslcontext") is not None:
            return  # the bytes in the socket are encrypted, and the TLS layer has ended
        with contextlib.suppress(OSError):
            while data := os.read(connection.fileno(), READ_BYTES):
                self.data_received(data)

    def _end(self) -> None:
        if self.alive:
            self.alive = False
            waiting, self._waiting = self._waiting, deque()
            wrong = ConnectionLost("the connection to the broker is lost")
            for one in waiting:
                (one.on_reply if isinstance(one, PendingSubscription) else one)(wrong)
            self._lost()

    def abort(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()
        self._end()

    def close(self) -> None:
        """Sends the queued commands, then ends the connection."""
        self.flush()
        self._transport.close()

    # Reading

    def _read(self) -> None:
        gets, waiting, on_push = self._reader.gets, self._waiting, self._on_push
        while self.alive:
            try:
                item = gets()
            except hiredis.ProtocolError:
                self.abort()
                return
            if item is NOTHING:
                return
            if type(item) is not hiredis.PushNotification:
                one = waiting.popleft()
                (one.on_reply if type(one) is PendingSubscription else cast(OnReply, one))(item)
            elif item[0] == b"message" or item[0] == b"smessage":
                if self._resuming:
                    self._held = item
                    return
                on_push(item[2])
            else:
                self._confirm(item)

    def _confirm(self, item: list[Any]) -> None:
        """Handles the confirmation of SUBSCRIBE or UNSUBSCRIBE, which the server sends as push data instead of a reply."""
        if item[0] not in (b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"):
            return  # other push data, such as a cache invalidation, is ignored
        one = self._waiting[0] if self._waiting else None
        if not isinstance(one, PendingSubscription) or one.kind != item[0]:
            self.abort()  # a Redis cluster ends subscriptions when it moves their slot to another server
            return
        one.count -= 1
        if not one.count:
            self._waiting.popleft()
            one.on_reply(None)

    def _resume(self) -> None:
        self._resuming -= 1
        if self._resuming:
            return
        held, self._held = self._held, None
        if held is not None and self.alive:
            self._on_push(held[2])
            self._read()
        if self._ended and self._held is None:
            self._end()

    # Writing

    @property
    def peer(self) -> str:
        """The address of the server: `HOST:PORT`, or the path of its Unix socket."""
        peer = self._transport.get_extra_info("peername")
        if not isinstance(peer, tuple):
            return str(peer or "")
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def queued(self) -> int:
        """The number of bytes that wait to be sent to the server."""
        return self._out_size + self._transport.get_write_buffer_size()

    def silent(self, now: float) -> float:
        """Returns the seconds for which a command has waited while the server sent no data; 0 if no command waits."""
        return now - max(self.received_at, self._owed_since) if self._waiting else 0

    def send(self, command: bytes, on_reply: "OnReply | PendingSubscription") -> None:
        """Queues a packed command. The function `on_reply` takes the reply, or a ConnectionLost."""
        if not self._out:
            self._loop.call_soon(self.flush)
        if not self._waiting:
            self._owed_since = self._loop.time()
        self._out.append(command)
        self._out_size += len(command)
        self._waiting.append(on_reply)

    def flush(self) -> None:
        out, self._out, self._out_size = self._out, [], 0
        if out and self.alive:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def call(self, *command: Argument, ordered: bool = False) -> "asyncio.Future[Any]":
        """Queues a command; the future returns the reply, or raises ReplyError or ConnectionLost. `ordered`: see the module."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self.alive:
            future.set_exception(ConnectionLost("the connection to the broker is lost"))
            return future

        (self.send_ordered if ordered else self.send)(pack(command), partial(_resolve, future))
        return future

    def send_ordered(self, command: bytes, on_reply: OnReply) -> None:
        """Works like `send`. Coroutines that `on_reply` resumes run before the messages after the reply are delivered."""

        def on_ordered_reply(reply: Any) -> None:
            on_reply(reply)
            self._resuming += 1
            self._loop.call_soon(self._resume)  # runs after the coroutines that `on_reply` resumes

        self.send(command, on_ordered_reply)

    def topics(self, verb: str, names: list[bytes]) -> "asyncio.Future[None]":
        """Subscribes to topics, or unsubscribes from topics; the future is done when the server has confirmed all topics.

        verb: SUBSCRIBE, UNSUBSCRIBE, SSUBSCRIBE or SUNSUBSCRIBE.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        if not self.alive:
            future.set_exception(ConnectionLost("the connection to the broker is lost"))
            return future

        self.send(pack((verb, *names)), PendingSubscription(verb.lower().encode(), len(names), partial(_resolve, future)))
        return future


def _resolve(future: "asyncio.Future[Any]", reply: Any) -> None:
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
        future.exception()  # without this call, asyncio logs the exception if the caller was cancelled
    else:
        future.set_result(reply)


class PendingSubscription:
    """A SUBSCRIBE or UNSUBSCRIBE command that waits until the server has confirmed `count` more topics."""

    __slots__ = ("count", "kind", "on_reply")

    def __init__(self, kind: bytes, count: int, on_reply: OnReply) -> None:
        self.kind = kind
        self.count = count
        self.on_reply = on_reply
