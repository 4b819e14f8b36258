"""pusher-js' HTTP fallbacks: sessions over requests, for clients whose WebSockets do not get through (protocol, section 10).

A client makes up a session id, asks with one request after another for what there is to read, and sends with others:

- `xhr_streaming`: the response never ends, frames are written to it as they come. pusher-js drops it with the first
  frame that ends behind `LONGEST` characters, and asks anew. What it has not read by then is lost, and the wire has no
  acknowledgements; so that frame is the last one written, and the rest is kept for the next request.
- `xhr`: a poll. It is answered when there is something, up to that same frame.
- `xhr_send`: an array of what would be WebSocket messages.

Between requests what is due to a client is kept, up to `server.outbox` bytes and for `GAP_SECONDS`. A request displaces
the one before it. Heartbeats keep the client's clock and the proxies' quiet, and have the client show that it is there.

A session belongs to its app, its origin and its id, not to an address: those change (decision 0005). It stays on the
worker where it began; requests that come to others are passed on (`forwarding.py`).
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec

from push1st import logs
from push1st.config.model import AppConfig
from push1st.core.app import App
from push1st.core.controller import TopicHandler
from push1st.core.session import WAITING, Session
from push1st.eager import spawn
from push1st.errors import Disconnect, Refused
from push1st.messages import ClientRequest, Established, Reply, Response
from push1st.protocols.pusher_xhr import HEARTBEAT, LONGEST, OPEN_FRAME, decode_messages, end_frames, whole_frames
from push1st.transports.admission import AUTHORIZE_SECONDS, admit, capacity_error, check_version
from push1st.transports.answers import endless
from push1st.transports.caller import PROXY_HINT
from push1st.transports.context import EdgeContext
from push1st.transports.forwarding import (
    HEADERS,
    TYPE,
    ForwardedRequest,
    ForwardFrame,
    Probe,
    RemoteRequest,
    RemoteSession,
    decode_frame,
    decode_probe,
    decode_request,
    decode_response,
    encode,
    topic_of,
)
from push1st.transports.handlers import Exchange, HandlerRequest, Outcome, Takeover
from push1st.transports.places import Bound, Crowded, Places
from push1st.transports.sweep import NEVER
from push1st.transports.turn import MAX_WAITING, SLICE_SECONDS

GAP_SECONDS = 10
"""from the end of a request to the next: then the client is gone"""
HEARTBEAT_SECONDS = 25
"""between two heartbeats when there is nothing else to say; half the activity timeout where that is shorter"""
QUIET_SECONDS = 5
"""a client that asks whether we are there is answered if it was told nothing for so long: it answers heartbeats itself"""
PONG_SECONDS = 30
"""from a heartbeat that asks to the end of a client that stays silent"""
FULL_SECONDS = 60
"""for a client to read a response to its end and ask anew"""
CLOSE_SECONDS = 5
MAX_MESSAGES = 100
"""messages in one `xhr_send`; pusher-js sends one"""
MAX_MESSAGES_A_SLICE = 32
"""messages in a slice (see `turn`)"""
MAX_DETACHED = 10_000
"""sessions of a worker that wait for their next request (they need no socket); `Places` has smaller bounds per app and address"""
PROBE_SECONDS = 2
MAX_MISSES = 3
"""how often other workers are asked whether they are there, and how many times they may not answer"""
INBOX = "#xhr-at-"
TAIL = "([^/]+)/([^/]+/[^/]+)/(xhr_streaming|xhr_send|xhr)"
"""the rest of a path: app key, session id, endpoint"""


_PREFLIGHT = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: POST\r\n"
    b"Access-Control-Allow-Headers: Content-Type\r\n"
    b"Access-Control-Max-Age: 86400\r\n"
)
_ID = re.compile(r"[0-9]{1,3}/[A-Za-z0-9_-]{8,64}\Z")

log = logs.get("push1st.transports")


class XhrRequest(msgspec.Struct, frozen=True, gc=False):
    """A request on a fallback's path. endpoint: xhr_streaming, xhr or xhr_send.

    crowded: why the request may not begin a session. is_direct: whether its connection already counts for the client's address.
    """

    method: str
    key: str
    id: str
    endpoint: str
    query: str
    body: bytes
    visitor: ClientRequest
    ip: str
    crowded: Crowded | None = None
    is_direct: bool = False

    @property
    def origin(self) -> str | None:
        """None of who is no browser."""
        return self.visitor.origin


class Fallbacks:
    """A worker's fallback sessions.

    apart: the places of the sessions that wait for a request.
    """

    headers = HEADERS

    def __init__(self, worker: EdgeContext) -> None:
        self._worker = worker
        self._clients: dict[tuple[str, str | None, str], XhrConnection] = {}
        self._topics: dict[tuple[str, str | None, str], App] = {}
        """the sessions here that other workers may ask for"""
        self._name = ""
        self._inboxes: set[str] = set()
        self._numbers = 0
        self._remote_sessions: dict[int, RemoteSession] = {}
        self._remote_requests: dict[tuple[str, int], tuple[XhrConnection, RemoteRequest]] = {}
        self._misses: Counter[tuple[str, str]] = Counter()
        self._suspects: set[tuple[str, int, bool]] = set()
        """requests that the other worker did not know of when it was asked the last time"""
        self._probing = False
        self.due_at = NEVER
        self.detached = Places(MAX_DETACHED)
        self._full = {bound: logs.Seldom() for bound in ("worker", "app", "address")}

    def handle(self, request: HandlerRequest, exchange: Exchange) -> Outcome | Coroutine[Any, Any, Outcome]:
        """Serves a request (`handlers.Handler`)."""
        key, id, endpoint = request.args
        visit = XhrRequest(
            request.method,
            key,
            id,
            endpoint,
            request.query,
            request.body,
            request.client,
            request.ip,
            request.crowded,
            request.is_direct,
        )
        return self.visit(visit, exchange)

    def app_of(self, args: tuple[str, ...]) -> AppConfig | None:
        """Returns the app of a request."""
        return self._worker.node.apps.by_key(args[0])

    def visit(self, visit: XhrRequest, poll: Exchange) -> Outcome | Coroutine[Any, Any, Outcome]:
        """What becomes of a request: its answer, a stream that takes the socket over, or the client that `poll` waits for.

        It is found out by the coroutine where other workers have to be asked. Both raise Refused.
        """
        if visit.method == "OPTIONS":
            return Response(200, b"", TYPE, _PREFLIGHT)
        if visit.method != "POST":
            return Response(405, b"", TYPE, HEADERS + b"Allow: POST, OPTIONS\r\n")
        if not _ID.match(visit.id):
            raise Refused(400, "a session id is 1 to 3 digits, a slash, and 8 to 64 of A-Za-z0-9_-")
        client = self._clients.get((visit.key, visit.origin, visit.id))
        if client is None and self._worker.node.controller.shared:
            return self._seek(visit, poll)
        found = self._serve(visit, poll, client)
        if visit.endpoint == "xhr_send" and client is not None and client.is_behind:
            return client.when_applied(found)
        return found

    def _serve(self, visit: XhrRequest, poll: Exchange, client: "XhrConnection | None") -> Outcome:
        """A request of a session here, or the first one of a new session."""
        if visit.endpoint == "xhr_send":
            if client is None or client.closing:
                raise Refused(404, "no session has this id")
            client.receive(visit.body)
            return Response(200, b"", TYPE, HEADERS)
        if client is None:
            try:
                client = self._open(visit)
            except Disconnect as end:
                return self._reject(visit, end)
        return Stream(client, self._worker) if visit.endpoint == "xhr_streaming" else client.poll(poll)

    def _reject(self, visit: XhrRequest, end: Disconnect) -> Response:
        """Returns the answer that rejects a first request. pusher-js retries at once after a status other than 200, or no `o`."""
        node = self._worker.node
        node.metrics.refusals[str(end.code)] += 1
        node.refusals.log("handshake refused", end.code, end.reason, key=visit.key, origin=visit.origin, ip=visit.ip)
        return Response(200, OPEN_FRAME + end_frames(end.code, end.reason), TYPE, HEADERS)

    # Sessions of other workers

    async def _seek(self, visit: XhrRequest, poll: Exchange) -> Outcome:
        """Forwards a request to the worker that has its session, or begins a session. Raises Refused(503)."""
        try:
            return await self._forward(visit, poll)
        except Refused as refused:
            if visit.endpoint == "xhr_send" or refused.code != 503:
                raise
            return self._reject(visit, Disconnect(4100, "The broker is away, reconnect later"))

    async def _forward(self, visit: XhrRequest, poll: Exchange) -> Outcome:
        node = self._worker.node
        config = node.apps.by_key(visit.key)
        if config is None:
            return self._serve(visit, poll, None)
        app = node.app(config)
        name = visit.key, visit.origin, visit.id
        topic = topic_of(*name)
        inbox = await self._inbox(app)
        self._numbers += 1
        number = self._numbers
        send = partial(self._send_to_owner, app, topic)
        forget = partial(self._remote_sessions.pop, number, None)
        remote = self._remote_sessions[number] = RemoteSession(app, number, inbox, send, forget)
        try:
            answers = await node.controller.request(
                app, topic, encode(ForwardedRequest(visit.endpoint, visit.body, number, inbox))
            )
            if answers and answers[0].startswith(INBOX.encode()):
                remote.owner = answers[0].decode()
                self._probe_later()
                return Stream(remote, self._worker) if visit.endpoint == "xhr_streaming" else remote.hold(poll)
        except Refused:
            self._remote_sessions.pop(number, None)
            raise
        self._remote_sessions.pop(number, None)
        if answers:
            return decode_response(answers[0])
        if visit.endpoint != "xhr_send":
            await node.controller.handle_topic(app, topic, TopicHandler(partial(self._answer, app, name), self._on_request_frame))
            self._topics[name] = app
        found = self._serve(visit, poll, self._clients.get(name))
        if name not in self._clients and self._topics.pop(name, None) is not None:
            await node.controller.release_topic(app, topic)
        return found

    async def _inbox(self, app: App) -> str:
        """The topic on which this worker hears of requests that it passed on."""
        if not self._name:
            self._name = INBOX + self._worker.node.new_id()
        if app.config.id not in self._inboxes:
            await self._worker.node.controller.handle_topic(
                app, self._name, TopicHandler(self._answer_probe, self._on_owner_frame)
            )
            self._inboxes.add(app.config.id)
        return self._name

    def _send_to_owner(self, app: App, topic: str, frame: ForwardFrame) -> None:
        """To the owner of a session."""
        self._worker.node.controller.send_to_topic(
            app, topic, encode(frame), partial(asyncio.get_running_loop().call_soon, self._give_up, frame.number)
        )

    def _give_up(self, number: int) -> None:
        """The owner of a session does not hear of a request here, or we not of it."""
        remote = self._remote_sessions.get(number)
        if remote is not None:
            remote.abandon()

    def _send_to_request(self, app: App, client: "XhrConnection", frame: ForwardFrame) -> None:
        """To the worker of a request. This may be in the midst of a flush."""
        lost = partial(asyncio.get_running_loop().call_soon, self._on_frame_lost, client, frame)
        self._worker.node.controller.send_to_topic(app, frame.by, encode(frame), lost)

    def _on_frame_lost(self, client: "XhrConnection", frame: ForwardFrame) -> None:
        """Whether a client got what it was to be told is not known: it is told to begin anew."""
        self._lose(frame.by, frame.number)
        if frame.kind != "end":
            client.close(4200, "The broker is away, reconnect")

    def _on_owner_frame(self, data: bytes) -> None:
        """What the owner of a session says to a request here."""
        frame = decode_frame(data)
        remote = self._remote_sessions.get(frame.number)
        if remote is not None:
            remote.on_frame(frame)

    def _answer(self, app: App, name: tuple[str, str | None, str], question: bytes) -> bytes:
        """What becomes of a request at another worker, of a session here: its answer, or while it waits where to find us."""
        asked = decode_request(question)
        client = self._clients.get(name)
        if client is None or (asked.endpoint == "xhr_send" and client.closing):
            return encode(Response(404, b"no session has this id\n", TYPE, HEADERS))
        if asked.endpoint == "xhr_send":
            try:
                client.receive(asked.body)
            except Refused as refused:
                return encode(Response(refused.code, refused.text.encode(), TYPE, HEADERS))
            return encode(Response(200, b"", TYPE, HEADERS))
        where = asked.to, asked.number
        send, forget = partial(self._send_to_request, app, client), partial(self._remote_requests.pop, where, None)
        remote = RemoteRequest(app, asked.number, asked.to, send, forget)
        self._remote_requests[where] = client, remote
        self._probe_later()
        if asked.endpoint == "xhr_streaming":
            client.stream(remote)
            return self._name.encode()
        found = client.poll(remote)
        if isinstance(found, Response):
            del self._remote_requests[where]
            return encode(found)
        return self._name.encode()

    def _on_request_frame(self, data: bytes) -> None:
        """What another worker says of a request to a session here."""
        frame = decode_frame(data)
        client, remote = self._remote_requests.get((frame.by, frame.number), (None, None))
        if client is None or remote is None:
            return
        if frame.kind == "lost":
            self._lose(frame.by, frame.number)
        elif frame.kind == "slow":
            client.too_slow(remote)
        else:
            client.leave(4200, "Server is stopping, reconnect")

    def _lose(self, by: str, number: int) -> None:
        """A request at another worker is gone."""
        client, remote = self._remote_requests.pop((by, number), (None, None))
        if client is not None and remote is not None:
            client.lost(remote)

    # Whether other workers are there

    def _probe_later(self) -> None:
        if self.due_at == NEVER:
            self._worker.sweep.watch(self, self._worker.sweep.now + PROBE_SECONDS)

    def due(self, now: float) -> float | None:
        if not self._remote_sessions and not self._remote_requests:
            self._misses.clear()
            self._suspects.clear()
            return None
        if not self._probing:
            spawn(self._probe())
        return now + PROBE_SECONDS

    async def _probe(self) -> None:
        """Asks each worker that has a session of a request here, or a request of a session here, whether it is there.

        And whether it knows of them: of one that it does not know of twice the end was said while the broker was away.
        """
        self._probing = True
        suspects: set[tuple[str, int, bool]] = set()
        try:
            others = {(one.app.config.id, one.owner): one.app for one in self._remote_sessions.values() if one.owner}
            others |= {(remote.app.config.id, remote.by): remote.app for _, remote in self._remote_requests.values()}
            self._misses = Counter({one: count for one, count in self._misses.items() if one in others})
            for (id, topic), app in others.items():
                here = [number for number, remote in self._remote_sessions.items() if remote.app is app and remote.owner == topic]
                requests = self._remote_requests.items()
                there = [number for (by, number), (_, remote) in requests if remote.app is app and by == topic]
                answers = await self._worker.node.controller.request(app, topic, encode(Probe(self._name, here, there)))
                if answers:
                    del self._misses[id, topic]
                    unknown = decode_probe(answers[0])
                    suspects |= {(topic, number, True) for number in unknown.here}
                    suspects |= {(topic, number, False) for number in unknown.there}
                else:
                    self._misses[id, topic] += 1
                    if self._misses[id, topic] >= MAX_MISSES:
                        self._abandon(app, topic)
            for topic, number, is_here in self._suspects & suspects:
                if is_here:
                    self._give_up(number)
                else:
                    self._lose(topic, number)
        except Refused:  # the broker is away: nobody knows
            pass
        finally:
            self._suspects = suspects
            self._probing = False

    def _answer_probe(self, question: bytes) -> bytes:
        """Which requests of the worker that asks, and which of its sessions', are not known here."""
        probe = decode_probe(question)
        here = [number for number in probe.here if (probe.by, number) not in self._remote_requests]
        return encode(Probe("", here, [number for number in probe.there if number not in self._remote_sessions]))

    def _abandon(self, app: App, topic: str) -> None:
        """Another worker is gone."""
        for remote in [one for one in self._remote_sessions.values() if one.app is app and one.owner == topic]:
            remote.abandon()
        for where in [where for where, (_, remote) in self._remote_requests.items() if remote.app is app and remote.by == topic]:
            self._lose(*where)

    def _open(self, visit: XhrRequest) -> "XhrConnection":
        worker = self._worker
        protocol = worker.config.server.pusher
        check_version(visit.query)
        app = admit(worker, protocol, visit.key, visit.origin, visit.ip, visit.crowded)
        place = app.config.id, worker.shared_address(visit.ip)
        if full := self.detached.full(*place):
            self._log_full(*full, *place)
            raise Disconnect(4100, f"Over capacity: too many sessions of this {full[0]} wait for their next request")
        address = "" if visit.is_direct else place[1]
        room = worker.addresses.enter(address)
        try:
            if room != "serve":
                worker.refuse_crowded("address", visit.ip)
                raise Disconnect(4100, capacity_error("address"))
            client = XhrConnection(self, worker, (visit.key, visit.origin, visit.id), place)
            client.address = address
            client.open(Session(worker.node, app, client, client.codec, client.write, visit.ip), visit.visitor)
        except Disconnect:
            worker.addresses.leave(address if room != "none" else "")
            raise
        self._clients[client.name] = client
        return client

    def _log_full(self, bound: Bound, most: int, app: str, address: str) -> None:
        """Logs that new sessions are rejected: the first one at once, then at most one line a minute for each kind of bound."""
        times = self._full[bound].times(self._worker.node.clock.monotonic())
        if not times:
            return
        fields = {"app": app} if bound == "app" else {"address": address, "hint": PROXY_HINT} if bound == "address" else {}
        log.warning(
            "too many HTTP fallback sessions wait for their next request", bound=bound, most=most, refused=times, **fields
        )

    def forget(self, client: "XhrConnection") -> bool:
        """Whether it was known until now."""
        if self._clients.get(client.name) is not client:
            return False
        del self._clients[client.name]
        app = self._topics.pop(client.name, None)
        if app is not None:
            spawn(self._worker.node.controller.release_topic(app, topic_of(*client.name)))
        return True


class XhrConnection:
    """One client over all its requests. name: its key in `Fallbacks`. place: its app and its address."""

    __slots__ = (
        "_asked",
        "_authorize_by",
        "_detached_since",
        "_fallbacks",
        "_full_since",
        "_inbox",
        "_kept",
        "_kept_size",
        "_period",
        "_place",
        "_poll",
        "_room",
        "_scheduled",
        "_seen",
        "_session",
        "_slow",
        "_stream",
        "_timeout",
        "_worker",
        "_wrote",
        "address",
        "closing",
        "codec",
        "due_at",
        "name",
    )

    def __init__(
        self, fallbacks: Fallbacks, worker: EdgeContext, name: tuple[str, str | None, str], place: tuple[str, str]
    ) -> None:
        self._fallbacks = fallbacks
        self._worker = worker
        self.name = name
        self._place = place
        self.address = ""
        """the name under which `Worker.addresses` counts the session; "" if the client's own connections are counted"""
        self.codec = worker.codecs["pusher-xhr"]
        self.closing = False
        self.due_at = NEVER
        self._timeout = worker.config.server.pusher.activity_timeout
        self._period = min(HEARTBEAT_SECONDS, self._timeout / 2)
        self._session: Session | None = None
        self._poll: Exchange | None = None
        self._stream: Stream | RemoteRequest | None = None
        self._room = -1
        """characters until the stream is full; less than nothing: full, or there is none"""
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._slow = False
        self._scheduled = False
        self._authorize_by = 0.0
        self._inbox: deque[str | asyncio.Future[None]] | None = None
        """messages that are not applied yet; a future among them is done when all messages before it are applied"""
        self._seen = self._wrote = self._full_since = self._detached_since = worker.sweep.now
        self._asked = 0.0

    def open(self, session: Session, visitor: ClientRequest) -> None:
        """The client has got this far; whether it is let in may be for the app's backend to say."""
        worker = self._worker
        self._session = session
        self._fallbacks.detached.take(*self._place)
        metrics = worker.node.metrics
        metrics.connections[self.codec.name] += 1
        metrics.opened[self.codec.name] += 1
        worker.node.fanout.direct(session, OPEN_FRAME)
        worker.open.add(self)
        if session.app.config.authorized_only:
            self._authorize_by = self._seen + AUTHORIZE_SECONDS
        session.enter(visitor, lambda: self.send(Established(session.id, self._timeout)))
        worker.sweep.watch(self, self._seen + GAP_SECONDS)

    # What the client reads

    @property
    def _is_detached(self) -> bool:
        return self._poll is None and self._stream is None

    def poll(self, poll: Exchange) -> "Response | XhrConnection":
        """Answers a poll, or has it wait."""
        self._displace(poll, None)
        if self._kept:
            return self._answer()
        return self

    def stream(self, stream: "Stream | RemoteRequest") -> None:
        """A stream has begun."""
        self._displace(None, stream)
        self._room = LONGEST
        if self._kept:
            kept, self._kept, self._kept_size = b"".join(self._kept), [], 0
            self.write(kept)
        if self.closing:
            self._end_stream()

    def _displace(self, poll: Exchange | None, stream: "Stream | RemoteRequest | None") -> None:
        """A new request is there; the one before it is over. Not in this turn, in which it may bring about the next."""
        if self._is_detached:
            self._fallbacks.detached.leave(*self._place)
        old_poll, self._poll = self._poll, poll
        old_stream, self._stream = self._stream, stream
        self._room = -1
        self._heard()
        loop = asyncio.get_running_loop()
        if old_poll is not None:
            loop.call_soon(old_poll.finish, Response(409, b"another request has this session now\n", TYPE, HEADERS))
        if old_stream is not None:
            loop.call_soon(old_stream.close)

    def lost(self, request: "Exchange | Stream | RemoteRequest") -> None:
        """The socket of a request is gone."""
        if request is self._poll:
            self._part()
        elif request is self._stream:
            self._room = -1
            self._part()

    def _part(self) -> None:
        """No request is there any more."""
        self._poll = self._stream = None
        self._fallbacks.detached.take(*self._place)
        sweep = self._worker.sweep
        self._detached_since = sweep.now
        if self.closing and not self._kept:
            self._forget()
        elif self.due_at > sweep.now + GAP_SECONDS + 1:
            sweep.watch(self, sweep.now + GAP_SECONDS)

    def write(self, data: bytes) -> None:
        """Whole frames for the client: onto the stream while it has room, else kept. This may be in the midst of a flush."""
        if self._stream is not None and self._room >= 0:
            self._wrote = now = self._worker.sweep.now
            size, self._room = whole_frames(data, self._room)
            self._stream.write(data[:size])
            if self._room < 0:
                self._full_since = now
            if size == len(data):
                return
            data = data[size:]
        self._kept.append(data)
        self._kept_size += len(data)
        if self._kept_size > self._worker.config.server.outbox:
            self.too_slow(self._stream)
        elif self._poll is not None and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        """Answers the poll that waits with what this turn brought."""
        self._scheduled = False
        poll = self._poll
        if poll is not None and self._kept:
            poll.finish(self._answer())

    def _answer(self) -> Response:
        """What is kept, up to the frame with which the client drops a response."""
        kept = b"".join(self._kept)
        size, _ = whole_frames(kept, LONGEST)
        self._kept = [kept[size:]] if size < len(kept) else []
        self._kept_size = len(kept) - size
        self._wrote = self._worker.sweep.now
        self._part()
        return Response(200, kept[:size], TYPE, HEADERS)

    # What the client sends

    def receive(self, body: bytes) -> None:
        """Applies what one request brought. Raises Refused."""
        worker = self._worker
        texts = decode_messages(body)
        if len(texts) > MAX_MESSAGES:
            raise Refused(413, f"a request has at most {MAX_MESSAGES} messages")
        session = self._session
        most = 0 if session is None else worker.most_message(worker.config.server.pusher, session.app.config.limits)
        if session is not None and any(len(text) > most for text in texts):
            raise Refused(413, f"a message has at most {most} bytes")
        worker.node.metrics.bytes_in += len(body)
        self._heard()
        if not texts and self._seen - self._wrote >= min(QUIET_SECONDS, self._period):
            self._beat()
        if self._inbox is not None:
            self._inbox.extend(texts)
            if len(self._inbox) > WAITING and not self.closing:
                worker.node.metrics.cut_offs["queue-full"] += 1
                self.close(4100, f"more than {WAITING} commands are waiting")
        elif texts:
            self._inbox = deque(texts)
            if self.process(b""):
                worker.turn.resume(self)

    def process(self, data: bytes) -> bool:
        """Applies a slice of the messages; returns whether more of them can be applied at once.

        Messages are applied in slices, like those of a WebSocket, and wait while `MAX_WAITING` commands of the session do.
        """
        inbox = self._inbox
        clock = self._worker.turn.clock
        left, until = MAX_MESSAGES_A_SLICE, clock() + SLICE_SECONDS
        try:
            while inbox:
                message = inbox.popleft()
                if not isinstance(message, str):
                    _set_done(message)
                    continue
                self._text(message)
                session = self._session
                if session is not None and session.waiting and len(session.waiting) >= MAX_WAITING:
                    session.is_busy(self._resume)
                    return False
                left -= 1
                if inbox and (not left or clock() > until):
                    return True
        except Exception:
            self.fail()
        self._drop_inbox()
        return False

    def _resume(self) -> None:
        if self._inbox is not None:
            self._worker.turn.resume(self)

    def _drop_inbox(self) -> None:
        inbox, self._inbox = self._inbox, None
        while inbox:
            if not isinstance(message := inbox.popleft(), str):
                _set_done(message)

    def keep(self, data: bytes) -> None:
        """Does nothing, because input arrives by `receive`."""

    def hold_reading(self, hold: bool) -> None:
        """Does nothing: the answers to requests wait (`when_applied`)."""

    @property
    def is_behind(self) -> bool:
        """Whether some messages are not applied yet."""
        return self._inbox is not None

    async def when_applied(self, found: Outcome) -> Outcome:
        """Returns `found` when all messages received so far are applied, so that a client does not send faster than that."""
        if self._inbox is not None:
            applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._inbox.append(applied)
            await applied
        return found

    def _heard(self) -> None:
        self._seen = self._worker.sweep.now
        self._asked = 0

    def _text(self, text: str) -> None:
        session = self._session
        if session is None or self._slow:
            return
        try:
            command = self.codec.decode(text)
        except Refused as refused:
            session.refuse(refused)
        else:
            session.handle(command)

    # Outlet: what the session needs

    def send(self, reply: Reply) -> None:
        if self._session is not None:
            self._worker.node.fanout.direct(self._session, self.codec.reply(reply))

    def close(self, code: int, reason: str) -> None:
        self._close(code, reason)

    def _close(self, code: int, reason: str, announced: bool = True) -> None:
        if not self.closing:
            if self._session is not None:
                self._worker.node.fanout.settle(self._session)
            self._end(code, reason, announced)

    def fail(self) -> None:
        if not self.closing:
            self._worker.failed("connection")
            self._worker.node.metrics.cut_offs["internal-error"] += 1
            self.close(1011, "internal error")

    # The end

    def too_slow(self, stream: "Stream | RemoteRequest | None") -> None:
        """What waits for the client passed its bound: here, or on its stream.

        This may be in the midst of a flush, so the cut waits for the end of the turn.
        """
        if stream is self._stream and not self._slow:
            self._slow = True
            asyncio.get_running_loop().call_soon(self._cut)

    def _cut(self) -> None:
        if not self.closing:
            self._worker.node.metrics.cut_offs["slow"] += 1
            self._kept, self._kept_size = [], 0
            self._end(*self.codec.slow())

    def _end(self, code: int, reason: str, announced: bool = True) -> None:
        """Ends the session at once, and sends the closing frames on the current request, or on the next one.

        announced: whether an error frame precedes the close frame.
        """
        self.closing = True
        if self._session is not None:
            self._session.log_end(code, reason)
        self._leave()
        frames = end_frames(code, reason, announced)
        if self._stream is not None and self._room < 0:
            self._stream.write(frames)  # the client might not read the frames, so the next request gets them too
        self.write(frames)
        self._end_stream()

    def _end_stream(self) -> None:
        """Ends the stream behind the close frame. What it had no room for waits for one more request."""
        if self._stream is not None:
            self._stream.close()
            self._room = -1
            self._part()

    def _leave(self) -> None:
        session, self._session = self._session, None
        self._drop_inbox()
        self._worker.open.discard(self)
        if session is not None:
            self._worker.node.metrics.connections[self.codec.name] -= 1
            self._worker.addresses.leave(self.address)
            session.expire()

    def _forget(self) -> None:
        if self._fallbacks.forget(self) and self._is_detached:
            self._fallbacks.detached.leave(*self._place)
        self._worker.sweep.forget(self)

    def leave(self, code: int, reason: str) -> None:
        self._close(code, reason, announced=False)

    def abort(self) -> None:
        self.closing = True
        self._leave()

    def due(self, now: float) -> float | None:
        """Heartbeats, and the ends of those who are gone, silent, or do not go on."""
        if self._is_detached:
            if self._detached_since + GAP_SECONDS > now:
                return self._detached_since + GAP_SECONDS
            if not self.closing:
                self._worker.node.metrics.cut_offs["gone"] += 1
                self.closing = True
                self._leave()
            self._forget()
            return None
        if self.closing:
            return now + GAP_SECONDS
        session = self._session
        if self._authorize_by and session is not None:
            if session.authorized:
                self._authorize_by = 0
            elif self._authorize_by <= now:
                return self._cut_off("not-authorized", 4009, "Connection not authorized within timeout")
        if self._asked and self._asked + PONG_SECONDS <= now:
            return self._cut_off("silent", 4201, "no answer to a heartbeat")
        if self._stream is not None and self._room < 0 and self._full_since + FULL_SECONDS <= now:
            return self._cut_off("slow", 4200, "the response is full, and no other was asked for")
        if not self._asked and self._seen + self._timeout <= now:
            self._asked = now
            self._beat()
        elif self._wrote + self._period <= now:
            self._beat()
        speak = self._wrote + self._period
        on_frame = self._asked + PONG_SECONDS if self._asked else self._seen + self._timeout
        return min(speak, on_frame, self._authorize_by or speak)

    def _cut_off(self, why: str, code: int, reason: str) -> float:
        self._worker.node.metrics.cut_offs[why] += 1
        self.close(code, reason)
        return self._worker.sweep.now + GAP_SECONDS

    def _beat(self) -> None:
        self._wrote = self._worker.sweep.now
        if self._stream is not None and self._room < 0:
            self._stream.write(HEARTBEAT)  # behind the frame the client stops at: no matter whether it is read
        else:
            self.write(HEARTBEAT)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Stream(Takeover):
    """The response to one `xhr_streaming` request, which never ends by itself. It owns the socket from then on."""

    __slots__ = ("_client", "_transport", "_worker", "due_at")

    def __init__(self, client: XhrConnection | RemoteSession, worker: EdgeContext) -> None:
        self._client = client
        self.address = ""
        """the name under which `Worker.addresses` counts the stream; "" if it does not"""
        self._worker = worker
        self._transport: asyncio.Transport
        self.due_at = NEVER

    def start(self, transport: asyncio.Transport, before: bytes) -> None:
        """Begins the response. It has no chunks, so that every subscriber gets the same bytes."""
        self._transport = transport
        transport.set_protocol(self)  # first, so that a client that does not read `before` is noticed
        transport.set_write_buffer_limits(high=self._worker.config.server.outbox)
        transport.write(before + endless(self._worker.sweep.now, TYPE, HEADERS))
        self._worker.open.add(self)
        self._client.stream(self)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        """Ends the response, behind what the client has yet to take; it has `CLOSE_SECONDS` for that."""
        if not self._transport.is_closing():
            self._transport.close()
            self._worker.sweep.watch(self, self._worker.sweep.now + CLOSE_SECONDS)

    def process(self, data: bytes) -> bool:
        """Behind a request whose answer does not end, nothing has a meaning."""
        return False

    def keep(self, data: bytes) -> None:
        """Does nothing, because `process` discards all input."""

    def hold_reading(self, hold: bool) -> None:
        """Does nothing, because `process` discards all input."""

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> bool:
        self._client.lost(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost(self)
        self._worker.addresses.leave(self.address)
        self._worker.open.discard(self)
        self._worker.sweep.forget(self)

    def pause_writing(self) -> None:
        self._client.too_slow(self)

    def resume_writing(self) -> None:
        pass

    def lost(self, request: object) -> None:
        """Its socket was gone before it began."""
        self._client.lost(self)

    def leave(self, code: int, reason: str) -> None:
        self._client.leave(code, reason)

    def abort(self) -> None:
        self._transport.abort()

    def due(self, now: float) -> float | None:
        self._transport.abort()
        return None
