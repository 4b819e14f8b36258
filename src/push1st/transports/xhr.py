"""The HTTP fallbacks of pusher-js, for clients whose network does not let WebSockets through (Pusher protocol, section 10).

A client chooses a session id. The client reads frames with one request after another, and sends messages with other requests:

- `xhr_streaming`: reads frames in a response that does not end. The worker writes each frame to the response (`xhr_stream.py`).
- `xhr`: a poll, which reads frames. The worker answers a poll as soon as there are frames for the client.
- `xhr_send`: sends an array of messages, with the same texts as WebSocket messages (`xhr_input.py`).

A session (`xhr_session.py`) is identified by app, origin and session id. The client's address may change during a session
(decision 0005). A session stays on the worker where it began. Requests that arrive at other workers are forwarded
(`forwarding.py`).
"""

import re
from collections.abc import Coroutine
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec

from push1st import logs
from push1st.config.model import AppConfig
from push1st.core.app import App
from push1st.core.outbox import OutboxPolicy
from push1st.eager import spawn
from push1st.errors import Disconnect, Refused
from push1st.messages import Response
from push1st.protocols.pusher_xhr import OPEN_FRAME, end_frames
from push1st.transports.admission import admit, capacity_error, check_version
from push1st.transports.caller import PROXY_HINT
from push1st.transports.context import EdgeContext
from push1st.transports.forwarding import ForwardedRequest, Forwarding, RemoteRequest
from push1st.transports.handlers import Exchange, HandlerRequest, Outcome
from push1st.transports.pages import NAME_ERROR, connection_of, is_page_name
from push1st.transports.places import Bound, Places
from push1st.transports.xhr_session import SessionName, XhrSession
from push1st.transports.xhr_stream import HEADERS, TYPE, Stream

MAX_DETACHED = 10_000
"""a worker's maximum number of sessions without a current request; `Places` has smaller bounds for each app and each address"""
TAIL = "([^/]+)/([^/]+/[^/]+)/(xhr_streaming|xhr_send|xhr)"
"""a pattern for the part of a request's path after the prefix: app key, session id, endpoint"""
GONE = "The server of this session is gone, reconnect"

_PREFLIGHT = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: POST\r\n"
    b"Access-Control-Allow-Headers: Content-Type\r\n"
    b"Access-Control-Max-Age: 86400\r\n"
)
_ID = re.compile(r"[0-9]{1,3}/[A-Za-z0-9_-]{8,64}\Z")

log = logs.get("push1st.transports")


class XhrRequest(msgspec.Struct, frozen=True, gc=False):
    """A request of a fallback session.

    `name`: the session's name. `endpoint`: xhr_streaming, xhr or xhr_send. `page`: the name of the client's page, or None.
    """

    name: SessionName
    endpoint: str
    http: HandlerRequest
    page: str | None


class Fallbacks:
    """A worker's fallback sessions, and the handler of their requests.

    `detached`: the bounds for sessions that wait for their next request. `policy`: the policy of the sessions' outboxes.
    """

    headers = HEADERS

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        self._clients: dict[SessionName, XhrSession] = {}
        self._topics: dict[SessionName, App] = {}
        """session names, each with the app of the session; this worker is subscribed to the topic of each of these sessions"""
        self._forwarding = Forwarding(context, "#xhr-at-", Response(200, end_frames(4200, GONE), TYPE, HEADERS))
        self.detached = Places(MAX_DETACHED)
        self.policy: OutboxPolicy[bytes] = OutboxPolicy(context.config.server.outbox, len)
        self._full = {bound: logs.Seldom() for bound in ("worker", "app", "address")}

    def app_of(self, args: tuple[str, ...]) -> AppConfig | None:
        """Returns the app whose key is in a request's path (`handlers.Handler`)."""
        return self._context.node.apps.by_key(args[1])

    def handle(self, request: HandlerRequest, exchange: Exchange) -> Outcome | Coroutine[Any, Any, Outcome]:
        """Serves a request (`handlers.Handler`). Returns a coroutine if the request must wait. Raises Refused."""
        if request.method == "OPTIONS":
            return Response(200, b"", TYPE, _PREFLIGHT)
        if request.method != "POST":
            return Response(405, b"", TYPE, HEADERS + b"Allow: POST, OPTIONS\r\n")
        page, key, id, endpoint = request.args
        if not is_page_name(page):
            raise Refused(404, NAME_ERROR)
        if not _ID.match(id):
            raise Refused(400, "a session id is 1 to 3 digits, a slash, and 8 to 64 of A-Za-z0-9_-")
        xhr = XhrRequest((key, request.client.origin, id), endpoint, request, page)
        client = self._clients.get(xhr.name)
        if client is None and self._context.node.controller.shared:
            return self._seek(xhr, exchange)
        outcome = self._serve(xhr, exchange, client)
        if endpoint == "xhr_send" and client is not None and client.input is not None:
            return client.input.when_applied(outcome)
        return outcome

    def _serve(self, request: XhrRequest, exchange: Exchange, client: XhrSession | None) -> Outcome:
        """Serves a request of a session that this worker owns, or the first request of a new session."""
        if client is None and request.endpoint != "xhr_send":
            try:
                client = self._open(request)
            except Disconnect as end:
                return self._reject(request, end)
        if client is not None:
            client.delivery.requested(request.http.query)
        if client is None or request.endpoint == "xhr_send":
            return self._receive(client, request.http.body)
        return Stream(client, self._context) if request.endpoint == "xhr_streaming" else client.poll(exchange)

    def _receive(self, client: XhrSession | None, body: bytes) -> Response:
        """Passes the body of an `xhr_send` to its session. Raises Refused."""
        if client is None or client.closing:
            raise Refused(404, "no session has this id")
        client.receive(body)
        return Response(200, b"", TYPE, HEADERS)

    def _reject(self, request: XhrRequest, end: Disconnect) -> Response:
        """Returns the answer that rejects a new session. Without status 200 and the frame `o`, pusher-js would retry at once."""
        node = self._context.node
        key, origin, _ = request.name
        node.metrics.refusals[str(end.code)] += 1
        node.refusals.log("handshake refused", end.code, end.reason, key=key, origin=origin, ip=request.http.ip)
        return Response(200, OPEN_FRAME + end_frames(end.code, end.reason), TYPE, HEADERS)

    # The beginning and the end of a session

    def _open(self, request: XhrRequest) -> XhrSession:
        """Begins a session. Raises Disconnect."""
        context, http = self._context, request.http
        key, origin, _ = request.name
        check_version(http.query)
        app = admit(context, context.config.server.pusher, key, origin, http.ip, http.crowded)
        place = app.config.id, context.shared_address(http.ip)
        if full := self.detached.full(*place):
            self._log_full(*full, *place)
            raise Disconnect(4100, f"Over capacity: too many sessions of this {full[0]} wait for their next request")
        address = "" if http.is_direct else place[1]
        room = context.addresses.enter(address)
        try:
            if room != "serve":
                context.refuse_crowded("address", http.ip)
                raise Disconnect(4100, capacity_error("address"))
            client = XhrSession(self, context, request.name, place)
            client.address = address
            client.open(app, http.client, http.ip, connection_of(context, request.page, http.ip))
        except Disconnect:
            context.addresses.leave(address if room != "none" else "")
            raise
        self._clients[client.name] = client
        return client

    def _log_full(self, bound: Bound, most: int, app: str, address: str) -> None:
        """Logs rejected new sessions: the first rejection at once, then at most one line a minute for each kind of bound."""
        times = self._full[bound].times(self._context.node.clock.monotonic())
        if not times:
            return
        fields = {"app": app} if bound == "app" else {"address": address, "hint": PROXY_HINT} if bound == "address" else {}
        log.warning(
            "too many HTTP fallback sessions wait for their next request", bound=bound, most=most, refused=times, **fields
        )

    def forget(self, client: XhrSession) -> None:
        """Removes a session that has ended and has no more frames to send (`xhr_session.SessionRegistry`)."""
        self._context.sweep.forget(client)
        if self._clients.get(client.name) is not client:
            return
        del self._clients[client.name]
        if client.current is None:
            self.detached.leave(*client.place)
        app = self._topics.pop(client.name, None)
        if app is not None:
            spawn(self._forwarding.disown(app, topic_of(client.name)))

    # Sessions of other workers

    async def _seek(self, request: XhrRequest, exchange: Exchange) -> Outcome:
        """Forwards a request to the worker that owns the session. Begins the session if no worker owns it. Raises Refused."""
        try:
            return await self._forward(request, exchange)
        except Refused as refused:
            if request.endpoint == "xhr_send" or refused.code != 503:
                raise
            return self._reject(request, Disconnect(4100, "The broker is away, reconnect later"))

    async def _forward(self, request: XhrRequest, exchange: Exchange) -> Outcome:
        node, name = self._context.node, request.name
        config = node.apps.by_key(name[0])
        if config is None:
            return self._serve(request, exchange, None)
        app = node.app(config)
        topic = topic_of(name)
        remote = await self._forwarding.forward(app, topic, request.endpoint, request.http.body, request.http.query)
        if isinstance(remote, Response):
            return remote
        if remote is not None:
            return Stream(remote, self._context) if request.endpoint == "xhr_streaming" else remote.hold(exchange)
        if request.endpoint != "xhr_send":
            await self._forwarding.own(app, topic, partial(self._accept, name))
            self._topics[name] = app
        outcome = self._serve(request, exchange, self._clients.get(name))
        if name not in self._clients and self._topics.pop(name, None) is not None:
            await self._forwarding.disown(app, topic)
        return outcome

    def _accept(self, name: SessionName, request: ForwardedRequest, remote: RemoteRequest) -> Response | XhrSession:
        """Serves a request that another worker has forwarded (`forwarding.Accept`)."""
        client = self._clients.get(name)
        if client is None or (request.endpoint == "xhr_send" and client.closing):
            return Response(404, b"no session has this id\n", TYPE, HEADERS)
        client.delivery.requested(request.query)
        if request.endpoint == "xhr_send":
            try:
                return self._receive(client, request.body)
            except Refused as refused:
                return Response(refused.code, refused.text.encode(), TYPE, HEADERS)
        if request.endpoint == "xhr_streaming":
            client.stream(remote)
            return client
        return client.poll(remote)


def topic_of(name: SessionName) -> str:
    """Returns the topic of a session. The topic contains a hash of the session's name, because names may be long."""
    return "#xhr-" + blake2b(repr(name).encode(), digest_size=16).hexdigest()
