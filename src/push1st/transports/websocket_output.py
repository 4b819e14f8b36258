"""Writes the replies of sessions to WebSockets, pings silent clients, and ends connections. `websocket` reads the input.

When the server ends a connection, the session ends at once. The server sends a close frame after all queued output, and gives
the client `CLOSE_SECONDS` to answer with a close frame. Then the server destroys the socket. If a client violates the protocol,
the server also closes the socket for writing. The server then discards all input, including a close frame, until the client ends
the connection too (RFC 6455 §7.1.1, §7.1.7).
"""

import asyncio
import math
from collections.abc import Iterator

from push1st.config.model import ProtocolConfig
from push1st.core.pages import PageConnection
from push1st.core.resuming import ping
from push1st.core.session import Session
from push1st.messages import Ending, Established, Failure, Reply
from push1st.metrics import NO_CLOSE_FRAME
from push1st.protocols import Codec
from push1st.protocols.websocket import PING_FRAME, Decoder, Event, close_frame
from push1st.transports.admission import AUTHORIZE_SECONDS, EXPIRED, token_seconds
from push1st.transports.client_socket import ClientSocket
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS, EdgeContext
from push1st.transports.lost import LOST, detach
from push1st.transports.sweep import NEVER

CLOSE_SECONDS = 5
PONG_SECONDS = 30
"""seconds from a ping until the server disconnects a client that has sent nothing since the ping (Pusher protocol, section 7)"""


class WebSocketOutput(ClientSocket):
    """Writes the output to one client, and ends the client's connection.

    switch: the answer to the WebSocket handshake; the connection writes this answer before all other output.
    """

    __slots__ = (
        "_authorize_by",
        "_decoder",
        "_events",
        "_page",
        "_pinged",
        "_protocol",
        "_seen",
        "_session",
        "_switch",
        "began",
        "codec",
    )

    def __init__(
        self, context: EdgeContext, transport: asyncio.Transport, codec: Codec, protocol: ProtocolConfig, switch: bytes
    ) -> None:
        self._context = context
        self._transport = transport
        self.codec = codec
        self.address = ""
        """the address or network for which `EdgeContext.addresses` counts the connection; "" if the connection is not counted"""
        self._protocol = protocol
        self._decoder: Decoder | None = None
        """the decoder while a frame or a message is incomplete; None for an idle connection, to save memory"""
        self._events: Iterator[Event] | None = None
        """events in the input that the connection has not processed yet"""
        self._session: Session | None = None
        self._page: PageConnection | None = None
        """the connection of a page, which is notified when the client answers a close frame; None if the URL names no page"""
        self.began = context.node.clock.monotonic()
        self._seen = context.sweep.now
        self._pinged = 0
        self._linger = 0
        self._slow = False
        self._closing = False
        self._switch = switch
        self._authorize_by = 0.0
        self.due_at = NEVER

    def established(self, activity_timeout: int) -> None:
        """Sends the socket id and the activity timeout, in the first message of a Pusher connection."""
        assert self._session is not None
        self.send(Established(self._session.id, activity_timeout))

    def open(self, session: Session, page: PageConnection | None = None) -> None:
        """Assigns a session to this connection, and queues the answer to the handshake before all output of the session.

        page: the connection of a page, which is notified when the client answers a close frame; None if the URL names no page.
        """
        self._session = session
        self._page = page
        node = self._context.node
        node.fanout.direct(session, self._switch)
        self._switch = b""
        node.metrics.opened[self.codec.name] += 1
        if node.tap is not None:
            node.tap.connected(session.app, session)

    def take_over(self) -> None:
        """Takes over the socket from the HTTP connection, and starts the deadlines of the WebSocket."""
        context = self._context
        if self._switch:
            self._transport.write(self._switch)
        self._transport.set_protocol(self)
        self._transport.set_write_buffer_limits(high=context.config.server.outbox)
        context.open.add(self)
        if self._session is not None and self._session.app.config.authorized_only and self._session.push is None:
            self._authorize_by = self._seen + AUTHORIZE_SECONDS
            context.sweep.watch(self, self._authorize_by)
        elif self.due_at == NEVER:
            # If many clients connect at the same time, their first checks are spread over a tenth of the activity timeout.
            first = self._protocol.activity_timeout * (1 - (id(self) >> 4) % 100 / 1000)
            context.sweep.watch(self, self._seen + min(first, self._token_seconds()))

    def _cut(self) -> None:
        if not self._closing:
            self._context.node.metrics.cut_offs["slow"] += 1
            self._end(*self.codec.slow())

    # Methods that the session calls

    def send(self, reply: Reply) -> None:
        if not self._closing and self._session is not None:
            frame = self.codec.reply(reply)
            if frame:
                self._context.node.fanout.direct(self._session, frame)

    def close(self, code: int, reason: str) -> None:
        self._close(code, reason)

    def _close(self, code: int, reason: str, announced: bool = True) -> None:
        if not self._closing:
            if self._session is not None:
                self._context.node.fanout.flush_subscriber(self._session)
                if self._page is not None:
                    self._page.closing(code)
            self._end(code, reason, announced)
            if code == 1008:  # the client broke a rule, so all further input is discarded
                self._half_close()

    def fail(self) -> None:
        if self._closing:
            return
        self._context.failed("connection")
        self._context.node.metrics.cut_offs["internal-error"] += 1
        self.close(1011, "internal error")

    # The end

    def _end(self, code: int, reason: str, announced: bool = True) -> None:
        """Ends the session, and sends a close frame.

        reason: why the server ends the connection; "" if the client ends it.
        announced: whether an error message precedes the close frame; ignored if the client's protocol has no error messages.
        """
        self._closing = True
        if self._session is not None and reason:
            self._session.log_end(code, reason)
        self._leave(code)
        if not self._transport.is_closing():
            notice = self.codec.reply(Ending(code, reason)) if announced else b""
            self._transport.write(notice + close_frame(code, reason))
        self._resume()
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + CLOSE_SECONDS)
        if self._transport is LOST:
            self._release()

    def _resume(self) -> None:
        if self._events is not None:
            self._context.turn.resume(self)

    def _half_close(self) -> None:
        """Closes the socket for writing, and begins to discard the client's input."""
        if self._linger:
            return
        self._linger = LINGER_BYTES
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + LINGER_SECONDS)
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def _leave(self, code: int = NO_CLOSE_FRAME) -> None:
        session, self._session = self._session, None
        if session is not None:
            node = self._context.node
            seconds = node.clock.monotonic() - self.began
            node.metrics.end(self.codec.name, code, seconds)
            if node.tap is not None:
                node.tap.disconnected(session.app, session, code, seconds)
            session.detach()

    def _release(self) -> None:
        """Ends the session, discards the remaining input, and removes the connection from all counts."""
        self._closing = True
        self._linger = 1
        self._events = None
        self._leave()
        if self._page is not None:
            self._page.finish()
            self._page = None
        self._context.addresses.leave(self.address)
        self.address = ""
        self._context.open.discard(self)
        self._context.sweep.forget(self)

    def _outlive(self) -> None:
        """Begins to discard output, because the connection was lost before the session applied all input."""
        detach(self._transport)
        self._transport = LOST
        if self._session is not None:
            self._session.mute(LOST.write)

    def leave(self, code: int, reason: str) -> None:
        """Closes the connection because the server stops. A restart is not an error for clients, so they get no error message."""
        self._close(code, reason, announced=False)

    def abort(self) -> None:
        self._transport.abort()
        if self._transport is LOST:
            self._release()

    # Deadlines

    def due(self, now: float) -> float | None:
        """Enforces the deadlines of the connection (see `Sweep`).

        A silent client gets a ping frame, and later a ping message of its protocol. The server disconnects a client that answers
        neither of these pings.
        """
        if self._closing:
            if self._linger and not self._transport.is_closing():
                self._transport.close()
                return now + CLOSE_SECONDS
            self._transport.abort()
            return None
        if self._token_seconds() <= 0:
            self._context.node.metrics.cut_offs["token-expired"] += 1
            self.send(Failure(401, EXPIRED))
            self.close(1008, EXPIRED)
            return self.due_at
        return min(self._keep_alive(now), now + self._token_seconds())

    def _token_seconds(self) -> float:
        """Returns the seconds until the client's access token expires; infinity if the client has no token that expires."""
        return math.inf if self._session is None else token_seconds(self._session)

    def _keep_alive(self, now: float) -> float:
        """Pings or disconnects a client that has been silent for too long; returns the time of the next check."""
        if self._authorize_by:
            session = self._session
            if session is not None and not session.authorized:
                if self._authorize_by > now:
                    return self._authorize_by
                self._context.node.metrics.cut_offs["not-authorized"] += 1
                self.close(4009, "Connection not authorized within timeout")
                return now + CLOSE_SECONDS
            self._authorize_by = 0
        if self._events is not None:  # the server has input to process, so the client is not silent
            self._seen = now
        step_at = self._seen + self._protocol.activity_timeout + self._pinged * PONG_SECONDS / 2
        if step_at > now:
            return step_at
        self._pinged += 1
        match self._pinged:
            case 1:
                if self._session is not None:
                    self._context.node.fanout.direct(self._session, PING_FRAME)
                return now + PONG_SECONDS / 2
            case 2:
                if self._session is not None:
                    ping(self._session)
                return now + PONG_SECONDS / 2
        self._context.node.metrics.cut_offs["silent"] += 1
        self.close(4201, "no answer to a ping")
        return now + CLOSE_SECONDS
