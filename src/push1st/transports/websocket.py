"""WebSocket connections: the handshake, then decoder → session, session → outbox.

A connection that can be told why it is not let in is upgraded and then closed with a code, on Pusher's paths, because
Pusher's clients retry a refused handshake for ever; raw WebSocket clients get an HTTP status (Push1st API, section 7).

The end of a connection: the session leaves at once, the close frame goes out behind what is due, and the client has
`CLOSE_SECONDS` to answer it; then the socket is destroyed. After a violation of the protocol the server closes its side of the
socket right after the close frame. It discards everything that the client still sends, including a close frame, until the
client ends the connection too (RFC 6455 §7.1.1, §7.1.7).
"""

import asyncio
import base64
import binascii
import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from urllib.parse import unquote_to_bytes

import msgspec

from push1st import auth
from push1st.channels import CONTROL
from push1st.config.model import ProtocolConfig
from push1st.core.app import App
from push1st.core.hub import Write
from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.messages import Command, Ending, Established, Failure, Ping, Reply, Response, Subscribe
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
from push1st.transports.admission import AUTHORIZE_SECONDS, admit, check_version, params
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS, EdgeContext
from push1st.transports.handlers import Handshake, Takeover
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
MAX_PREFIX_BYTES = 255
EXPIRED = "access token has expired"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"


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


# The handshake

Start = Callable[[EdgeContext, Handshake, ProtocolConfig, str, WebSocketConnection], None]


def upgrade(
    context: EdgeContext, handshake: Handshake, transport: asyncio.Transport, rest: bytes, before: bytes
) -> Response | WebSocketConnection:
    """Makes a WebSocket of an HTTP connection, or says why not.

    before: answers to earlier requests that go out first; rest: what the client sent behind the handshake.
    """
    config = context.config.server
    if "//" in handshake.path:  # a client's base URL may end in a slash
        handshake = msgspec.structs.replace(handshake, path=re.sub("/{2,}", "/", handshake.path))
    path = handshake.path
    for base in config.bases("pusher"):
        if path.startswith(base):
            return _open(context, handshake, "pusher", config.pusher, _start_pusher, path[len(base) :], transport, rest, before)
    for base in config.bases("websocket"):
        if path.startswith(base):
            return _open(
                context, handshake, "websocket", config.websocket, _start_raw, path[len(base) :], transport, rest, before
            )
    return _refusal(404, f"no WebSocket is served at {path[:200]}")


def _open(
    context: EdgeContext,
    handshake: Handshake,
    name: str,
    protocol: ProtocolConfig,
    start: Start,
    tail: str,
    transport: asyncio.Transport,
    rest: bytes,
    before: bytes,
) -> Response | WebSocketConnection:
    if handshake.method != "GET":
        return _refusal(405, "a WebSocket handshake is a GET", b"Allow: GET\r\n")
    if handshake.version != "13":
        return _refusal(
            426,
            "WebSocket version 13 is spoken here",
            b"Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        )
    if not _valid_key(handshake.key):
        return _refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    codec = context.codecs[name]
    accept = base64.b64encode(hashlib.sha1(handshake.key.encode() + _GUID, usedforsecurity=False).digest())
    connection = WebSocketConnection(context, transport, codec, protocol, before + _SWITCH % accept)
    end = None
    try:
        start(context, handshake, protocol, tail, connection)
    except Disconnect as exc:
        end = exc
        context.node.metrics.refusals[str(end.code)] += 1
        status = None if name == "pusher" else _STATUSES.get(end.code)
        if status is not None:
            return _refusal(status, end.reason)
    connection.take_over()
    if end is not None:
        where = {"path": handshake.path, "origin": handshake.visitor.origin, "ip": handshake.ip}
        context.node.refusals.log("handshake refused", end.code, end.reason, **where)
        connection.close(end.code, end.reason)
    if rest:
        context.arrived(connection, rest)
    return connection


_STATUSES = {4001: 403, 4003: 403, 4004: 503, 4009: 403, 4100: 503}
"""what clients that are not Pusher's are told before the upgrade, for Pusher's codes"""


def _start_pusher(
    context: EdgeContext, handshake: Handshake, protocol: ProtocolConfig, tail: str, connection: WebSocketConnection
) -> None:
    """Makes the session of a Pusher client. Raises Disconnect (protocol, sections 1 and 6)."""
    key = tail.removesuffix("/")
    if not key or "/" in key:
        raise Disconnect(4005, "Path not found: connect to /app/KEY")
    visitor = handshake.visitor
    check_version(visitor.query)
    app = admit(context, protocol, key, visitor.origin, handshake.ip, handshake.crowded)
    original, base = context.config.server.bases("pusher")
    lenient = original != base and handshake.path.startswith(original)
    session = Session(context.node, app, connection, connection.codec, connection.write, handshake.ip, lenient=lenient)
    connection.open(session)
    session.enter(visitor, lambda: connection.established(protocol.activity_timeout))


def _start_raw(
    context: EdgeContext, handshake: Handshake, protocol: ProtocolConfig, tail: str, connection: WebSocketConnection
) -> None:
    """Makes the session of a raw WebSocket client, on its channels. Raises Disconnect (Push1st API, section 7)."""
    try:
        key, *channels = (unquote_to_bytes(part).decode() for part in tail.split("/"))
    except UnicodeDecodeError:
        raise Disconnect(1008, "the path is not UTF-8") from None
    query = params(handshake.visitor.query, plus="+")
    app = admit(context, protocol, key, handshake.visitor.origin, handshake.ip, handshake.crowded)
    prefix = query.get("session", "")
    if len(prefix.encode()) > MAX_PREFIX_BYTES or CONTROL.search(prefix):
        raise Disconnect(1008, f"session has at most {MAX_PREFIX_BYTES} bytes and no control characters")
    claims = _claims(context, handshake, app, query.get("token", ""))
    session = Session(
        context.node, app, connection, connection.codec, connection.write, handshake.ip, prefix, claims, protocol.push
    )
    connection.open(session)
    wanted = [name for name in dict.fromkeys(channels) if name and session.permits(name)]
    if not wanted:
        raise Disconnect(1008, "no channel to subscribe to: they need an access token, or their names are not valid")
    session.enter(handshake.visitor, lambda: None)
    for name in wanted:
        session.handle(Subscribe(name))


def _claims(context: EdgeContext, handshake: Handshake, app: App, token: str) -> auth.Claims | None:
    """What an access token allows, from the header or the query; None without one, or when it is not valid."""
    visitor = handshake.visitor
    scheme, _, bearer = (visitor.authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        token = bearer.strip()
    elif not token and not bearer:  # Push1st accepts a token without `Bearer`
        token = scheme
    if not token or not app.config.secret:
        return None
    try:
        claims = auth.check_access_token(app.config.secret, app.config.id, token, context.node.clock.wall() // 1_000_000_000)
    except Refused as refused:
        context.node.metrics.refusals["access-token"] += 1
        _log_token(context, handshake, app, refused.text)
        return None
    if claims.allows_origin(visitor.origin):
        return claims
    _log_token(context, handshake, app, "the access token is for another origin")
    return None


def _log_token(context: EdgeContext, handshake: Handshake, app: App, reason: str) -> None:
    where = {"app": app.config.id, "origin": handshake.visitor.origin, "ip": handshake.ip}
    context.node.refusals.log("access token refused", 401, reason, **where)


def _refusal(status: int, text: str, headers: bytes = b"") -> Response:
    return Response(status, msgspec.json.encode({"error": text}), headers=headers)


def _valid_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
