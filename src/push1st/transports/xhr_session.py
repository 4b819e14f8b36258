"""Keeps the HTTP fallback session of a client from one request to the next (Pusher protocol, section 10).

The core's `Session` is attached to the current poll or stream, and detached between two requests. While the session is detached,
its outbox keeps up to `server.outbox` bytes. After `GAP_SECONDS` without a request the session expires. A new request displaces
the current request.

This module has the rules of the fallbacks: heartbeats, deadlines, and the frames that end a session. If a session ends between
two requests, the session leaves its channels at once. For `GAP_SECONDS` after the end, the registry keeps the session, and
answers the session's next request with the final frames.

The client of a page must not acknowledge frames that it has not received. So the session of a page ends if frames may not have
arrived: a stream ended early, or a request was repeated (`xhr_stream.PageDelivery`). The page then reconnects and recovers its
events.
"""

import asyncio
from operator import attrgetter
from typing import Protocol

from push1st.core.app import App
from push1st.core.outbox import Outbox, OutboxPolicy
from push1st.core.pages import PageConnection
from push1st.core.session import MAX_WAITING_COMMANDS, Session
from push1st.errors import Refused
from push1st.messages import ClientRequest, Established, Reply, Response
from push1st.metrics import NO_CLOSE_FRAME
from push1st.protocols.pusher_xhr import HEARTBEAT, OPEN_FRAME, decode_messages, end_frames
from push1st.transports.admission import AUTHORIZE_SECONDS
from push1st.transports.context import EdgeContext
from push1st.transports.forwarding import StreamWriter
from push1st.transports.handlers import Exchange
from push1st.transports.places import Places
from push1st.transports.sweep import NEVER
from push1st.transports.xhr_input import XhrInput
from push1st.transports.xhr_stream import HEADERS, TYPE, OpenPoll, OpenStream, PageDelivery, replace_frames, take_response

GAP_SECONDS = 10
"""the maximum seconds between the end of a request and the next request; a client that takes longer is disconnected"""
HEARTBEAT_SECONDS = 25
"""the seconds without output after which the server sends a heartbeat; half of the activity timeout, if this is shorter"""
QUIET_SECONDS = 5
"""the seconds without output after which the server answers an empty `xhr_send` with a heartbeat. An earlier empty
`xhr_send` may be the client's answer to a heartbeat; if the server answered it with a heartbeat, this would never end."""
PONG_SECONDS = 30
"""the seconds in which a silent client must answer a heartbeat"""
FULL_SECONDS = 60
"""the seconds in which a client must read a full response completely, and send its next request"""
LOSSY = "Some frames may not have arrived, reconnect"
MAX_MESSAGES = 100
"""the maximum number of messages in an `xhr_send`; pusher-js sends one message"""

SessionName = tuple[str, str | None, str]
"""the app key, the origin (None if the client is not a browser), and the session id"""


class SessionRegistry(Protocol):
    """The registry of a worker's fallback sessions.

    `detached`: the bounds for sessions that wait for their next request. `policy`: the policy of the sessions' outboxes.
    """

    detached: Places
    policy: OutboxPolicy[bytes]

    def forget(self, client: "XhrSession") -> None:
        """Removes a session. The next request with the session's name begins a new session."""


class XhrSession:
    """A client's session. `name`: the key of the session in the registry. `place`: the app id and address for `detached`."""

    __slots__ = (
        "_authorize_by",
        "_beat_at",
        "_context",
        "_outbox",
        "_period",
        "_registry",
        "_seen",
        "_session",
        "_timeout",
        "address",
        "began",
        "codec",
        "current",
        "delivery",
        "due_at",
        "has_room",
        "input",
        "is_slow",
        "name",
        "place",
        "wrote_at",
    )

    def __init__(self, registry: SessionRegistry, context: EdgeContext, name: SessionName, place: tuple[str, str]) -> None:
        self._registry = registry
        self._context = context
        self.name = name
        self.place = place
        self.address = ""
        """the address for which `EdgeContext.addresses` counts the session; "" if the session is not counted"""
        self.codec = context.codecs["pusher-xhr"]
        self.due_at = NEVER
        self._timeout = context.config.server.pusher.activity_timeout
        self._period = min(HEARTBEAT_SECONDS, self._timeout / 2)
        self._session: Session
        self._outbox: Outbox[bytes] = Outbox(registry.policy, self)
        self.has_room = self._outbox.has_room
        self.current: OpenPoll | OpenStream | None = None
        """the request to which the session is attached; None between two requests"""
        self.input: XhrInput | None = None
        """the queue of messages that are not applied yet; None if no message waits"""
        self.is_slow = False
        self.delivery = PageDelivery()
        self._authorize_by = 0.0
        self.began = context.node.clock.monotonic()
        self._seen = self.wrote_at = context.sweep.now
        self._beat_at = 0.0
        """the time of the heartbeat that the client must answer; 0 if there is no such heartbeat"""

    def open(self, app: App, client: ClientRequest, ip: str, page: PageConnection | None) -> None:
        """Begins the session. The app's backend may still reject the client. Raises Disconnect."""
        context = self._context
        node = context.node
        self._session = session = Session(
            node, app, self, self.codec, self._outbox.write, ip, outbox=self._outbox, resumption=page
        )
        if page is not None:
            page.begin(session)
            self.delivery.begin()
        self._detach()
        node.metrics.opened[self.codec.name] += 1
        if node.tap is not None:
            node.tap.connected(app, session)
        node.fanout.direct(session, OPEN_FRAME)
        context.open.add(self)
        if app.config.authorized_only:
            self._authorize_by = self._seen + AUTHORIZE_SECONDS
        session.connect(client, lambda: self.send(Established(session.id, self._timeout)))

    @property
    def closing(self) -> bool:
        """Whether the session has ended, and only waits for a request that reads the session's last frames."""
        return self._session.closed

    # Requests that read

    def poll(self, exchange: Exchange) -> "Response | XhrSession":
        """Returns the response to a poll. If no frames wait for the client, returns this session, which responds later."""
        current = OpenPoll(self, exchange)
        self._displace(current)
        self._session.attach(current)
        return self._take_response() if self._outbox else self

    def stream(self, stream: StreamWriter) -> None:
        """Attaches the session to a new stream."""
        current = OpenStream(self, self._context, stream)
        self._displace(current)
        self._session.attach(current)
        if self.closing:
            self._end_stream()

    def _displace(self, current: OpenPoll | OpenStream) -> None:
        """Makes a new request the current request, and ends the old request.

        The old request ends in a later turn, because its end may start the next pipelined request of its connection. If that
        request belongs to this session, it must not displace a request during this call.
        """
        if self.current is None:
            self._registry.detached.leave(*self.place)
        else:
            self.delivery.ended(self.current)
            asyncio.get_running_loop().call_soon(self.current.displace)
        if self.delivery.is_lossy:
            if not self.closing:
                self._session.log_end(4200, LOSSY)
            self._expire(4200)
            replace_frames(self._outbox, end_frames(4200, LOSSY))
        self.current = current
        self._seen = self._context.sweep.now
        self._beat_at = 0.0

    def lost(self, request: object) -> None:
        """Handles a request whose socket has closed."""
        current = self.current
        if current is None or current.request is not request:
            return
        self._detach()
        self.delivery.ended(current)
        if self.delivery.is_lossy and not self.closing:
            self._context.node.metrics.cut_offs["gone"] += 1
            self._expire(4200)
            replace_frames(self._outbox, end_frames(4200, LOSSY))

    def _detach(self) -> None:
        """Detaches the session, because its current request has ended."""
        self.current = None
        self._registry.detached.take(*self.place)
        until = self._context.node.clock.monotonic() + GAP_SECONDS
        self._session.detach(until)
        sweep = self._context.sweep
        if self.closing and not self._outbox:
            self._registry.forget(self)
        elif self.due_at > sweep.now + GAP_SECONDS + 1:
            sweep.watch(self, until)

    def answer(self, poll: OpenPoll) -> None:
        """Answers the current poll with the frames of this turn.

        If one item alone exceeds the outbox's bound, the poll gets only the frames that end the session (`_cut`).
        """
        outbox = self._outbox
        if poll is self.current and outbox and not (outbox.is_full and len(outbox) == 1):
            poll.request.finish(self._take_response())

    def _take_response(self) -> Response:
        """Returns the response to a poll, and detaches the session."""
        self.wrote_at = self._context.sweep.now
        body = take_response(self._outbox)
        self._detach()
        return Response(200, body, TYPE, HEADERS)

    def too_slow(self, request: object) -> None:
        """Ends the session, because its client does not read the stream."""
        if self.current is not None and self.current.request is request:
            self.on_full()

    def on_full(self) -> None:
        """Ends the session at the end of the turn, because too many frames wait for the client (`outbox.OutboxOwner`)."""
        if not self.is_slow:
            self.is_slow = True
            asyncio.get_running_loop().call_soon(self._cut)

    def _cut(self) -> None:
        if not self.closing:
            self._context.node.metrics.cut_offs["slow"] += 1
            self._outbox.clear()
            self._end(*self.codec.slow())

    # Requests that send

    def receive(self, body: bytes) -> None:
        """Applies the messages of an `xhr_send`. Raises Refused."""
        context = self._context
        if self.delivery.is_lossy:
            self.close(4200, LOSSY)
        if self.closing:
            return
        texts = decode_messages(body)
        if len(texts) > MAX_MESSAGES:
            raise Refused(413, f"a request has at most {MAX_MESSAGES} messages")
        most = context.max_message(context.config.server.pusher, self._session.app.config.limits)
        if any(len(text) > most for text in texts):
            raise Refused(413, f"a message has at most {most} bytes")
        context.node.metrics.bytes_in += len(body)
        self._seen = context.sweep.now
        self._beat_at = 0.0
        if not texts and self._seen - self.wrote_at >= min(QUIET_SECONDS, self._period):
            self._beat()
        if self.input is not None:
            if self.input.add(texts):
                context.node.metrics.cut_offs["queue-full"] += 1
                self.close(4100, f"more than {MAX_WAITING_COMMANDS} commands are waiting")
        elif texts:
            self.input = XhrInput(self, self._session, context.turn, texts)
            self.input.start()

    # The outlet of the session (`app.Outlet`)

    def send(self, reply: Reply) -> None:
        if not self.closing:
            self._context.node.fanout.direct(self._session, self.codec.reply(reply))

    def close(self, code: int, reason: str, announced: bool = True) -> None:
        """Ends the session after its pending frames are written. `announced`: whether an error frame precedes the close frame."""
        if not self.closing:
            self._context.node.fanout.flush_subscriber(self._session)
            self._end(code, reason, announced)

    def fail(self) -> None:
        if not self.closing:
            self._context.failed("connection")
            self._context.node.metrics.cut_offs["internal-error"] += 1
            self.close(1011, "internal error")

    # The end

    def _end(self, code: int, reason: str, announced: bool = True) -> None:
        """Ends the session, and sends the last frames in the response to the current request, or to the next request."""
        self._session.log_end(code, reason)
        self._expire(code)
        frames = end_frames(code, reason, announced)
        if isinstance(self.current, OpenStream) and self.current.is_full:
            self.current.write_after_end(frames)  # the client may drop these frames, so the next request gets them too
        self._outbox.is_full = False
        self._outbox.write(frames)
        self._end_stream()

    def _end_stream(self) -> None:
        """Ends the current stream. The outbox keeps the frames for which the stream had no room."""
        if isinstance(self.current, OpenStream):
            self.current.request.close()
            self._detach()

    def _expire(self, code: int = NO_CLOSE_FRAME) -> None:
        if self.input is not None:
            self.input.drop()
        self._context.open.discard(self)
        if not self.closing:
            node = self._context.node
            seconds = node.clock.monotonic() - self.began
            node.metrics.end(self.codec.name, code, seconds)
            if node.tap is not None:
                node.tap.disconnected(self._session.app, self._session, code, seconds)
            self._context.addresses.leave(self.address)
            self._session.expire()

    def leave(self, code: int, reason: str) -> None:
        self.close(code, reason, announced=False)

    def abort(self) -> None:
        self._expire()

    unsent = property(attrgetter("_outbox.size"), doc="See `context.Open`.")

    def due(self, now: float) -> float | None:
        """Sends a heartbeat if it is due, and disconnects a client that is gone, silent or slow (`sweep.Watched`)."""
        if self.current is None:
            if self._outbox.until > now:
                return self._outbox.until
            if not self.closing:
                self._context.node.metrics.cut_offs["gone"] += 1
                self._expire()
            self._registry.forget(self)
            return None
        if self.closing:
            return now + GAP_SECONDS
        if self._authorize_by:
            if self._session.authorized:
                self._authorize_by = 0
            elif self._authorize_by <= now:
                return self._cut_off("not-authorized", 4009, "Connection not authorized within timeout")
        if self._beat_at and self._beat_at + PONG_SECONDS <= now:
            return self._cut_off("silent", 4201, "no answer to a heartbeat")
        if isinstance(self.current, OpenStream) and self.current.is_full and self.current.full_since + FULL_SECONDS <= now:
            return self._cut_off("slow", 4200, "the response is full, and the client sent no other request")
        if not self._beat_at and self._seen + self._timeout <= now:
            self._beat_at = now
            self._beat()
        elif self.wrote_at + self._period <= now:
            self._beat()
        write_at = self.wrote_at + self._period
        answer_by = self._beat_at + PONG_SECONDS if self._beat_at else self._seen + self._timeout
        return min(write_at, answer_by, self._authorize_by or write_at)

    def _cut_off(self, why: str, code: int, reason: str) -> float:
        self._context.node.metrics.cut_offs[why] += 1
        self.close(code, reason)
        return self._context.sweep.now + GAP_SECONDS

    def _beat(self) -> None:
        self.wrote_at = self._context.sweep.now
        if isinstance(self.current, OpenStream) and self.current.is_full:
            self.current.write_after_end(HEARTBEAT)
        else:
            self._outbox.write(HEARTBEAT)
