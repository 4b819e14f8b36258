"""Event streams: clients of server-sent events, which send `GET /sse/app/KEY/CHANNEL/…` and get a response that does not end.

The path, the token and the query are those of raw WebSocket clients (`path_request`). `EventStreams` checks the request, and an
`EventStream` takes over the socket. The stream begins its response only when the client has joined a channel, or when the server
has rejected the client. Until then, the server can still choose the status of the response.

`EventSource` of browsers reconnects after each end of a response, but never after another status than 200. So a client that
cannot succeed later gets 401, 403 or 404. A client that can succeed later gets an empty stream with the time of its next attempt.
"""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from push1st import auth
from push1st.config.model import AppConfig
from push1st.core.app import App
from push1st.core.resuming import BY_POSITION
from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.messages import (
    ClientRequest,
    Replayed,
    Reply,
    Response,
    Resumed,
    Subscribe,
    SubscriptionRefused,
)
from push1st.metrics import NO_CLOSE_FRAME
from push1st.positions import Position, write_list
from push1st.protocols.sse import HEARTBEAT, TYPE, WIRES, SseWire, begin_of, position_block, retry_block
from push1st.transports import path_request
from push1st.transports.admission import EXPIRED, admit, capacity_error, origin_allowed, token_seconds
from push1st.transports.answers import CLOSE, encoded, endless, error
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Exchange, HandlerRequest, Outcome, Takeover
from push1st.transports.lost import detach
from push1st.transports.path_request import NO_CHANNEL, Applicant, PathRequest
from push1st.transports.sweep import NEVER

TAIL = "(.*)"
MAX_CHANNELS = 100
"""the maximum number of channels of a stream"""
HEARTBEAT_SECONDS = 15
"""the seconds between two heartbeats; many proxies close a connection that is silent for 30 or 60 seconds"""
CLOSE_SECONDS = 5
"""the seconds in which a client must read the last bytes of a stream that the server ended"""
MAX_INPUT = 65_536
"""the maximum number of bytes that a client may send on a stream; the server discards them"""
RETRY_MILLISECONDS = 1000
"""the minimum time after which a client reconnects; a random time of up to twice as much is added"""
LONG_RETRY_MILLISECONDS = 5000
"""the minimum time for a client that exceeds a bound of the server or the app, or if the broker is away"""
NO_TYPES: frozenset[str] = frozenset()
"""the types of channels to which a client of an event stream may publish"""
STATUSES: Mapping[int, int] = MappingProxyType({1008: 401, 1011: 500, 4001: 404, 4003: 403, 4009: 403})
"""the HTTP status for each close code after which a further attempt would fail too"""

_PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET\r\n"
    b"Access-Control-Allow-Headers: Authorization, Last-Event-ID, Cache-Control\r\n"
    b"Access-Control-Max-Age: 86400\r\n"
)
_HEADERS = (
    b"Cache-Control: no-store, no-transform\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"X-Accel-Buffering: no\r\n"  # nginx would hold back the blocks of the stream
)


class StreamRequest(msgspec.Struct, frozen=True, gc=False):
    """A request for a stream, after its checks.

    commands: the subscriptions to all channels, the permitted channels first.
    headers: the headers of the response that depend on the app and the client.
    address: the address for which the connection must be counted; "" if it is counted already, or has no bound.
    """

    app: App
    client: ClientRequest
    ip: str
    claims: auth.Claims | None
    channels: tuple[str, ...]
    commands: list[Subscribe]
    wire: SseWire
    headers: bytes
    address: str


class EventStreams:
    """The handler of the requests of event streams (`handlers.Handler`)."""

    headers = b""

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        self._settings = context.config.server.sse

    def app_of(self, args: tuple[str, ...]) -> AppConfig | None:
        return self._context.node.apps.by_key(args[0].lstrip("/").partition("/")[0])

    def handle(self, request: HandlerRequest, exchange: Exchange) -> Outcome:
        app = self.app_of(request.args)
        cross = cross_origin(() if app is None else app.origins, request.client.origin)
        if request.method == "OPTIONS":
            return Response(200, b"", headers=cross + _PREFLIGHT)
        if request.method not in ("GET", "HEAD"):
            return error(405, "an event stream is a GET", cross + b"Allow: GET, HEAD, OPTIONS\r\n")
        try:
            found = self._check(request, cross)
        except Refused as refused:
            return self._reject(request, refused.code, refused.text, error(refused.code, refused.text, cross))
        except Disconnect as end:
            return self._reject(request, end.code, end.reason, self.rejection(end.code, end.reason, cross))
        if request.method == "HEAD":
            return Response(200, b"", TYPE, cross + _HEADERS)
        return EventStream(self, self._context, found)

    def _check(self, request: HandlerRequest, cross: bytes) -> StreamRequest:
        """Checks a request. Raises Disconnect, and Refused for an invalid path or query."""
        context, client, ip = self._context, request.client, request.ip
        found = path_request.parse(request.args[0].lstrip("/"), client.query)
        app = admit(context, self._settings, found.key, client.origin, ip, request.crowded)
        if not 1 <= len(found.channels) <= MAX_CHANNELS:
            raise Refused(400, f"an event stream has 1 to {MAX_CHANNELS} channels in its path")
        events = found.query.get("events", "")
        if events not in ("", "named"):
            raise Refused(400, "events is named, or is not in the query")
        claims = path_request.claims(context, app, client, ip, self._token(app.config, client, found))
        permitted = path_request.permitted(Applicant(claims), app, found.channels)
        refused = [name for name in dict.fromkeys(found.channels) if name not in permitted]  # their subscriptions get errors
        commands = found.subscriptions([*permitted, *refused], request.last_event_id or found.query.get("since", ""))
        if not permitted:
            raise Disconnect(1008, NO_CHANNEL)
        wire = WIRES[len(found.channels) == 1, bool(events)]
        address = "" if request.is_direct else context.shared_address(ip)
        return StreamRequest(app, client, ip, claims, found.channels, commands, wire, cross, address)

    def _token(self, app: AppConfig, client: ClientRequest, request: PathRequest) -> str:
        """Returns the access token in the query, or the one in a cookie if the app names the origins of its pages.

        Without origins, each web page could open a stream with the cookie of its visitor.
        """
        token = request.query.get("token", "")
        if token or client.authorization or not names_origins(app.origins):
            return token
        pairs = (pair.strip().partition("=") for pair in (client.cookie or "").split(";"))
        return next((value.strip('"') for name, _, value in pairs if name == "push1st_token"), "")

    def _reject(self, request: HandlerRequest, code: int, reason: str, response: Response) -> Response:
        node = self._context.node
        node.metrics.refusals[str(code)] += 1
        node.refusals.log("event stream refused", code, reason, origin=request.client.origin, ip=request.ip)
        return response

    def rejection(self, code: int, reason: str, headers: bytes) -> Response:
        """Returns the response for a client that is rejected with a close code."""
        status = STATUSES.get(code)
        if status is not None:
            return error(status, reason, headers)
        return Response(200, retry_block(self.retry(code == 4100 and not self._context.node.draining)), TYPE, headers + _HEADERS)

    def retry(self, is_long: bool = False) -> int:
        """Returns a random time in milliseconds after which a client reconnects, so that not all reconnect at the same time."""
        least = LONG_RETRY_MILLISECONDS if is_long else RETRY_MILLISECONDS
        return least + int(self._context.node.new_id().rpartition(".")[2]) % (2 * least + 1)


def names_origins(origins: tuple[str, ...]) -> bool:
    """Returns whether an app allows the web pages of certain origins only."""
    return bool(origins) and "*" not in origins


def cross_origin(origins: tuple[str, ...], origin: str | None) -> bytes:
    """Returns the headers that let web pages of other origins read a response.

    origins: the origins that the app allows. A page of another origin cannot read its rejection, but gets no stream either.
    """
    if not names_origins(origins):
        return b"Access-Control-Allow-Origin: *\r\n"
    allowed = b""
    if origin is not None and origin.isprintable() and origin_allowed(origin, origins):
        allowed = b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Credentials: true\r\n" % origin.encode("latin-1")
    return allowed + b"Vary: Origin\r\n"


class EventStream(Takeover):
    """One stream, from its request to its end. Owns the socket, and sends the replies of the session (`app.Outlet`).

    _since: the positions that the client has sent, for the channels that are not joined yet; None if all channels are joined or
    rejected.
    _is_open: whether the head of the response is written.
    _refused: the blocks of rejected channels that follow the head.
    _sent: a hash of the last block with positions.
    """

    __slots__ = (
        "_address",
        "_beat_at",
        "_channels",
        "_closing",
        "_context",
        "_input",
        "_is_open",
        "_refused",
        "_request",
        "_sent",
        "_session",
        "_since",
        "_streams",
        "_transport",
        "_wire",
        "address",
        "began",
        "due_at",
    )

    def __init__(self, streams: EventStreams, context: EdgeContext, request: StreamRequest) -> None:
        self._streams = streams
        self._context = context
        self._request: StreamRequest | None = request
        """the request of the client, until the head of the response is written"""
        self._wire = request.wire
        self._channels = () if len(request.channels) == 1 else request.channels
        """the channels of the path, for the blocks with the positions of all of them; empty for a stream with one channel"""
        self._since: dict[str, Position | None] | None = {one.channel: one.since for one in request.commands}
        self._transport: asyncio.Transport
        self._session: Session | None = None
        self.address = ""
        self._address = ""
        """the address for which `EdgeContext.addresses` counts a stream that came through a proxy; else \"\""""
        self._is_open = self._closing = False
        self._refused = b""
        self._input = MAX_INPUT
        self._sent = 0
        self._beat_at = 0.0
        self.due_at = NEVER

    def start(self, transport: asyncio.Transport, before: bytes) -> None:
        context, request = self._context, self._request
        assert request is not None
        self._transport = transport
        transport.set_protocol(self)  # before `write`, which may call `pause_writing` of the protocol
        transport.set_write_buffer_limits(high=context.config.server.outbox)
        if before:
            transport.write(before)
        context.open.add(self)
        try:
            session = self._open(request)
        except Disconnect as end:
            node = context.node
            node.metrics.refusals[str(end.code)] += 1
            node.refusals.log("event stream refused", end.code, end.reason, app=request.app.config.id, ip=request.ip)
            self.close(end.code, end.reason)
            return
        # The first heartbeats of clients that connect at the same time are spread over the whole period.
        self._beat_at = context.sweep.now + HEARTBEAT_SECONDS * (1 - (id(self) >> 4) % 100 / 100)
        context.sweep.watch(self, min(self._beat_at, context.sweep.now + token_seconds(session)))
        session.connect(request.client, lambda: None, request.commands)

    def _open(self, request: StreamRequest) -> Session:
        """Begins the session. Raises Disconnect."""
        context = self._context
        room = context.addresses.enter(request.address)
        if room != "none":
            self._address = request.address
        if room != "serve":
            context.refuse_crowded("address", request.ip)
            raise Disconnect(4100, capacity_error("address"))
        node = context.node
        session = self._session = Session(
            node,
            request.app,
            self,
            self._wire,
            self._transport.write,
            request.ip,
            claims=request.claims,
            push=NO_TYPES,
            resumption=BY_POSITION,
        )
        node.metrics.opened["sse"] += 1
        if node.tap is not None:
            node.tap.connected(request.app, session)
        self.began = node.clock.monotonic()
        return session

    # Methods that the session calls

    def send(self, reply: Reply) -> None:
        session = self._session
        if self._closing or session is None:
            return
        match reply:
            case Resumed(channel):
                blocks = self._head() + self._wire.resumed(reply)
                since = self._joined(channel)
                if not self._channels and (begin := begin_of(reply, since)) is not None:
                    blocks += position_block(str(begin))
                self._context.node.fanout.direct(session, blocks)
            case Replayed(message, now):
                self._context.node.fanout.direct(session, self._wire.message(message, now))
            case SubscriptionRefused(status=503):
                self.close(4100, reply.text)
            case SubscriptionRefused(channel, _, text, status):
                self._joined(channel)
                block = self._wire.refused(channel, status, text)
                if self._is_open:
                    self._context.node.fanout.direct(session, block)
                else:
                    self._refused += block
            case _:
                pass

    def _head(self) -> bytes:
        """Returns the head of the response and the first block, unless they are written already."""
        if self._is_open:
            return b""
        request, self._request = self._request, None
        assert request is not None
        self._is_open = True
        refused, self._refused = self._refused, b""
        head = endless(self._context.sweep.now, TYPE, request.headers + _HEADERS)
        return head + retry_block(self._streams.retry()) + refused

    def _joined(self, channel: str) -> Position | None:
        """Stores that a channel is joined or rejected; returns the position that the client has sent for the channel."""
        if self._since is None:
            return None
        since = self._since.pop(channel, None)
        if not self._since:
            self._since = None
            if self._channels:  # after the replay, which follows in this turn
                asyncio.get_running_loop().call_soon(self._beat)
        return since

    def has_room(self, size: int) -> bool:
        return self._transport.get_write_buffer_size() + size <= self._context.config.server.outbox

    def close(self, code: int, reason: str) -> None:
        """Ends the stream after all pending output. If the response has not begun, it shows why the client is rejected.

        A stream of several channels ends with their positions, so that a client that reconnects receives no message twice.
        """
        if self._closing:
            return
        if self._session is not None:
            if self._channels and code != 1011:  # after an internal error, some messages may be missing
                self._beat()
            self._context.node.fanout.flush_subscriber(self._session)
        self._leave(code, reason)
        sweep = self._context.sweep
        if not self._transport.is_closing():
            if self._request is not None:
                response = self._streams.rejection(code, reason, self._request.headers)
                self._transport.write(encoded(response, sweep.now, CLOSE, False))
            self._transport.close()
        sweep.watch(self, sweep.now + CLOSE_SECONDS)

    def fail(self) -> None:
        if not self._closing:
            self._context.failed("event stream")
            self._context.node.metrics.cut_offs["internal-error"] += 1
            self.close(1011, "internal error")

    # The socket

    def process(self, data: bytes) -> bool:
        """Discards input, because no request can follow a response that does not end."""
        self.data_received(data)
        return False

    def keep(self, data: bytes) -> None:
        self.data_received(data)

    def hold_reading(self, hold: bool) -> None:
        """Does nothing, because input is not processed."""

    def data_received(self, data: bytes) -> None:
        self._input -= len(data)
        if self._input < 0 and not self._closing:
            self._cut("flood", f"a client of an event stream sent more than {MAX_INPUT} bytes")

    def pause_writing(self) -> None:
        """Disconnects a client that does not read. The caller may be a flush, so the connection ends after this turn."""
        asyncio.get_running_loop().call_soon(self._cut, "slow", "this client does not read its messages")

    def resume_writing(self) -> None:
        pass

    def _cut(self, counter: str, reason: str) -> None:
        if not self._closing:
            self._context.node.metrics.cut_offs[counter] += 1
            self._leave(1008, reason)
            self._transport.abort()

    def eof_received(self) -> bool:
        """Ends the stream, because a client that has closed its side of the connection usually does not read either."""
        if not self._closing:
            self._leave()
            sweep = self._context.sweep
            sweep.watch(self, sweep.now + CLOSE_SECONDS)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        detach(self._transport)
        self._leave()
        context = self._context
        context.addresses.leave(self.address)
        context.addresses.leave(self._address)
        context.open.discard(self)
        context.sweep.forget(self)

    def _leave(self, code: int = NO_CLOSE_FRAME, reason: str = "") -> None:
        """Ends the session."""
        self._closing = True
        session, self._session = self._session, None
        if session is not None:
            if reason:
                session.log_end(code, reason)
            node = self._context.node
            seconds = node.clock.monotonic() - self.began
            node.metrics.end("sse", code, seconds)
            if node.tap is not None:
                node.tap.disconnected(session.app, session, code, seconds)
            session.detach()

    def lost(self, request: object) -> None:
        """Handles a client that disconnected before the stream began."""

    def leave(self, code: int, reason: str) -> None:
        self.close(code, reason)

    def abort(self) -> None:
        self._transport.abort()

    # Deadlines

    def due(self, now: float) -> float | None:
        """Sends heartbeats, and ends the stream when the client's access token expires (see `Sweep`)."""
        session = self._session
        if self._closing or session is None:
            self._transport.abort()
            return None
        left = token_seconds(session)
        if left <= 0:
            self._context.node.metrics.cut_offs["token-expired"] += 1
            self.close(1008, EXPIRED)
            return self.due_at
        if self._beat_at <= now:
            self._beat_at = now + HEARTBEAT_SECONDS
            self._beat()
        return min(self._beat_at, now + left)

    def _beat(self) -> None:
        """Sends the positions of all channels if they have changed, or else a heartbeat."""
        session = self._session
        if not self._is_open or session is None:
            return
        positions = self._positions(session)
        now = hash(positions)
        if positions and now != self._sent:
            self._sent = now
            self._context.node.fanout.direct(session, position_block(positions))
        else:
            session.write(HEARTBEAT)

    def _positions(self, session: Session) -> str:
        """Returns the positions of all channels as text; "" if no channel has a position.

        `Fanout.direct` writes the pending output of all channels before a block with these positions.
        """
        channels, since = session.app.tenant.channels, self._since or {}
        found: list[Position | None] = []
        for name in self._channels:
            if name in session.subscriptions:
                found.append(channels[name].position)
            else:
                found.append(since.get(name))
        return write_list(found) if any(found) else ""
