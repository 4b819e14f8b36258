"""WebSocket connections after the handshake: decoder → session, session → outbox. `entries` serves the handshakes.

The end of a connection: the session leaves at once, the close frame goes out behind what is due, and the client has
`CLOSE_SECONDS` to answer it; then the socket is destroyed. After a violation of the protocol the server closes its side of the
socket right after the close frame. It discards everything that the client still sends, including a close frame, until the
client ends the connection too (RFC 6455 §7.1.1, §7.1.7).
"""

import asyncio
import math
from collections.abc import Collection, Iterator
from itertools import chain

from push1st.config.model import ProtocolConfig
from push1st.core.hub import Write
from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.messages import Command, Ending, Established, Failure, Ping, Reply
from push1st.protocols import Codec
from push1st.protocols.websocket import (
    PING_FRAME,
    Closed,
    Decoder,
    Event,
    Fragment,
    Pinged,
    Text,
    close_frame,
    pong_frame,
    whole_text,
)
from push1st.transports.admission import AUTHORIZE_SECONDS
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS, EdgeContext
from push1st.transports.handlers import Takeover
from push1st.transports.lost import LOST, unread
from push1st.transports.sweep import NEVER
from push1st.transports.turn import MAX_WAITING, SLICE_SECONDS

CLOSE_SECONDS = 5
PONG_SECONDS = 30
"""from a ping to the end of a client that stays silent (Pusher protocol, section 7)"""
MAX_FRAMES = 32
"""frames in a slice (see `turn`)"""
SMALL_FRAGMENT = 256
"""bytes; the client is charged for a smaller fragment (`Session.charge`)"""
EXPIRED = "access token has expired"


class WebSocketConnection(Takeover):
    """One client. It owns the socket from the handshake on. switch: what goes out first, the handshake's answer."""

    __slots__ = (
        "_authorize_by",
        "_closing",
        "_context",
        "_decoder",
        "_events",
        "_linger",
        "_pinged",
        "_protocol",
        "_seen",
        "_session",
        "_slow",
        "_switch",
        "_transport",
        "codec",
        "due_at",
    )

    def __init__(
        self, context: EdgeContext, transport: asyncio.Transport, codec: Codec, protocol: ProtocolConfig, switch: bytes
    ) -> None:
        self._context = context
        self._transport = transport
        self.codec = codec
        self.address = ""
        """the name under which `EdgeContext.addresses` counts the connection; "" if it does not"""
        self._protocol = protocol
        self._decoder: Decoder | None = None
        """None while no frame and no message is incomplete, so that an idle connection takes no memory for a decoder"""
        self._events: Iterator[Event] | None = None
        """events of the input that are not handled yet"""
        self._session: Session | None = None
        self._seen = context.sweep.now
        self._pinged = 0
        self._linger = 0
        self._slow = False
        self._closing = False
        self._switch = switch
        self._authorize_by = 0.0
        self.due_at = NEVER

    @property
    def write(self) -> Write:
        return self._transport.write

    def established(self, activity_timeout: int) -> None:
        """The first frame of a Pusher connection."""
        assert self._session is not None
        self.send(Established(self._session.id, activity_timeout))

    def open(self, session: Session) -> None:
        """The client has been let in."""
        self._session = session
        node = self._context.node
        node.fanout.direct(session, self._switch)
        self._switch = b""
        metrics = node.metrics
        metrics.connections[self.codec.name] += 1
        metrics.opened[self.codec.name] += 1

    def take_over(self) -> None:
        """The socket is this connection's now."""
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
            # Spread over the last tenth, so that clients that came together are not looked at together.
            first = self._protocol.activity_timeout * (1 - (id(self) >> 4) % 100 / 1000)
            context.sweep.watch(self, self._seen + min(first, self._token_seconds()))

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._context.arrived(self, data)

    def process(self, data: bytes) -> bool:
        context = self._context
        self._seen = context.sweep.now
        self._pinged = 0
        context.node.metrics.bytes_in += len(data)
        if self._linger:
            self._events = None
            self._discard(len(data))
            return False
        left, until = MAX_FRAMES, 0.0
        try:
            events = self._events
            if events is not None:
                self._events = None
                if data:
                    events = chain(events, self._feed(data))
            elif self._decoder is None and (text := whole_text(data)) is not None:
                events = iter((text,))
            else:
                events = self._feed(data)
            for event in events:
                left -= 1
                if type(event) is Closed:
                    if self._session is not None and self._session.is_busy(self._resume):
                        self._wait(chain((event,), events))
                    else:
                        self._closed_by_client(event.code)
                    return False
                if self._closing or self._slow:
                    pass
                elif type(event) is Text:
                    waiting = self._text(event.text)
                    if waiting and len(waiting) >= MAX_WAITING:
                        assert self._session is not None
                        self._session.is_busy(self._resume)
                        self._wait(events)
                        return False
                elif self._session is not None:
                    self._without_text(self._session, event)
                if not until:
                    until = context.turn.clock() + SLICE_SECONDS
                elif not left or context.turn.clock() > until:
                    self._events = events
                    return True
            if self._decoder is not None and self._decoder.is_between_messages:
                self._decoder = None
        except Disconnect as end:
            self.close(end.code, end.reason)
            self._half_close()
        except Exception:
            self.fail()
            self._half_close()
        return False

    def _feed(self, data: bytes) -> Iterator[Event]:
        """Returns the events of these bytes, which are decoded as the iterator goes on."""
        decoder = self._decoder
        if decoder is None:
            most = self._protocol.max_payload
            if self._session is not None:
                most = self._context.most_message(self._protocol, self._session.app.config.limits)
            decoder = self._decoder = Decoder(most, self.codec.binary)
        return decoder.feed(data)

    def _without_text(self, session: Session, event: Event) -> None:
        """Handles a control frame or a fragment."""
        if type(event) is Pinged:
            self._context.node.fanout.direct(session, pong_frame(event.payload))
        if type(event) is not Fragment or event.size < SMALL_FRAGMENT:
            session.charge()

    def keep(self, data: bytes) -> None:
        self._context.node.metrics.bytes_in += len(data)
        if self._linger:
            self._discard(len(data))
        else:
            self._events = self._feed(data) if self._events is None else chain(self._events, self._feed(data))

    def hold_reading(self, hold: bool) -> None:
        if hold:
            self._transport.pause_reading()
        elif self._events is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _wait(self, events: Iterator[Event]) -> None:
        """Works on `events` when the session has applied the commands before them. Until then nothing is read."""
        self._events = events
        self._transport.pause_reading()

    def _resume(self) -> None:
        if self._events is not None:
            self._context.turn.resume(self)

    def _text(self, text: str) -> Collection[Command] | None:
        """Handles a message; returns the commands that wait."""
        session = self._session
        assert session is not None
        try:
            command = self.codec.decode(text)
        except Refused as refused:
            session.refuse(refused)
        else:
            session.handle(command)
        return session.waiting

    def eof_received(self) -> bool:
        """Handles the end of the client's input: the connection ends when all input is applied.

        Output that the client does not read in time is discarded. With TLS uvloop closes the socket at once.
        """
        self._context.turn.catch_up()
        is_secure = self._transport.get_extra_info("sslcontext") is not None
        if self._has_input():
            if is_secure:
                self._outlive()
            self._wait_for_end()
            return not is_secure
        if not self._closing:
            self._closing = True
            self._leave()
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + CLOSE_SECONDS)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        turn = self._context.turn
        turn.catch_up()
        if not self._closing and turn.keeps_lost():
            if self._transport is LOST:
                return
            if data := unread(self._transport):
                self.keep(data)
            if self._has_input():
                self._outlive()
                self._wait_for_end()
                return
        self._release()

    def _has_input(self) -> bool:
        """Whether input is not applied yet."""
        session = self._session
        return session is not None and (session.is_busy(self._resume) or self._events is not None)

    def _wait_for_end(self) -> None:
        """Ends the connection when its input is applied."""
        self._wait(chain(self._events or (), (Closed(1006),)))
        if self._session is not None and not self._session.is_busy(self._resume):
            self._resume()

    def _outlive(self) -> None:
        """Discards output from now on, because the connection is lost before its input is applied."""
        self._transport = LOST
        if self._session is not None:
            self._session.mute(LOST.write)

    def _release(self) -> None:
        """Ends the session, drops the rest of the input, and removes the connection from all counts."""
        self._closing = True
        self._linger = 1
        self._events = None
        self._leave()
        self._context.addresses.leave(self.address)
        self.address = ""
        self._context.open.discard(self)
        self._context.sweep.forget(self)

    def pause_writing(self) -> None:
        """The outbox passed its bound. This may be in the midst of a flush, so the cut waits for the end of the turn."""
        self._slow = True
        asyncio.get_running_loop().call_soon(self._cut)

    def resume_writing(self) -> None:
        pass

    def _cut(self) -> None:
        if not self._closing:
            self._context.node.metrics.cut_offs["slow"] += 1
            self._end(*self.codec.slow())

    # Outlet: what the session needs

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
                self._context.node.fanout.settle(self._session)
            self._end(code, reason, announced)
            if code == 1008:  # the client broke a rule, so the rest of its input is discarded
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

        announced: whether the protocol's error frame, if it has one for the code, precedes the close frame.
        """
        self._closing = True
        if self._session is not None:
            self._session.log_end(code, reason)
        self._leave()
        if not self._transport.is_closing():
            notice = self.codec.reply(Ending(code, reason)) if announced else b""
            self._transport.write(notice + close_frame(code, reason))
        self._resume()
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + CLOSE_SECONDS)
        if self._transport is LOST:
            self._release()

    def _half_close(self) -> None:
        """Closes the server's side of the socket, and begins to discard the client's input."""
        if self._linger:
            return
        self._linger = LINGER_BYTES
        sweep = self._context.sweep
        sweep.watch(self, sweep.now + LINGER_SECONDS)
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def _discard(self, size: int) -> None:
        self._linger -= size
        if self._linger <= 0:
            self._linger = 1
            self._transport.abort()

    def _closed_by_client(self, code: int) -> None:
        self._close(code if code not in (1005, 1006) else 1000, "", announced=False)
        self._transport.close()

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._context.node.metrics.connections[self.codec.name] -= 1
            session.detach()

    def leave(self, code: int, reason: str) -> None:
        """Closes the connection because the server stops. Sends no error frame, because a restart is not an error for clients."""
        self._close(code, reason, announced=False)

    def abort(self) -> None:
        self._transport.abort()
        if self._transport is LOST:
            self._release()

    def due(self, now: float) -> float | None:
        """Keepalive: a ping frame after silence, the protocol's own ping after half the wait, then the end."""
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
        """Returns the seconds until the client's access token expires; infinity if no token expires."""
        claims = None if self._session is None else self._session.claims
        if claims is None or claims.exp is None:
            return math.inf
        return claims.exp - self._context.node.clock.wall() / 1_000_000_000

    def _keep_alive(self, now: float) -> float:
        """Pings or disconnects a silent client, if one of these is due; returns when to look next."""
        if self._authorize_by:
            session = self._session
            if session is not None and not session.authorized:
                if self._authorize_by > now:
                    return self._authorize_by
                self._context.node.metrics.cut_offs["not-authorized"] += 1
                self.close(4009, "Connection not authorized within timeout")
                return now + CLOSE_SECONDS
            self._authorize_by = 0
        if self._events is not None:  # the client waits for the server
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
                self.send(Ping())
                return now + PONG_SECONDS / 2
        self._context.node.metrics.cut_offs["silent"] += 1
        self.close(4201, "no answer to a ping")
        return now + CLOSE_SECONDS
