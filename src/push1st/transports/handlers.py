"""Assigns request paths to the handlers that serve them, and defines the possible results of a handler.

`process/server.py` builds the table of handlers. `http.py` imports this table and no handler, so a new handler needs no change in
`http.py`. The API serves each request that no route matches.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote

import msgspec

from push1st.config.model import AppConfig
from push1st.eager import MaybeAwaitable
from push1st.messages import ClientRequest, Request, Response
from push1st.protocols.http import RequestRules
from push1st.transports.answers import error
from push1st.transports.caller import AGENT, FORWARDING, Headers, is_own_name
from push1st.transports.context import EdgeContext
from push1st.transports.places import Crowded

LEAST_BODY = 65_536
"""number of bytes; a request body of at most this size is accepted on every path and for every app"""

_SLASHES = re.compile("//+")


class Exchange(Protocol):
    """A request whose response is not ready yet."""

    def finish(self, response: Response) -> None:
        """Sends the response."""


class SocketOwner(asyncio.Protocol):
    """An asyncio protocol that has taken over the socket of an HTTP connection, so that the HTTP connection gets no more input.

    address: the address or network for which `EdgeContext.addresses` counts the connection; "" if the connection is not counted.
    """

    __slots__ = ("address",)

    address: str
    _transport: asyncio.Transport

    @property
    def unsent(self) -> int:
        """See `context.Open`."""
        return self._transport.get_write_buffer_size()

    @property
    def is_new(self) -> bool:
        """See `turn.Connection`."""
        return False

    def process(self, data: bytes) -> bool:
        """See `turn.Connection`."""
        raise NotImplementedError

    def keep(self, data: bytes) -> None:
        """See `turn.Connection`."""

    def hold_reading(self, hold: bool) -> None:
        """See `turn.Connection`."""

    def abort(self) -> None:
        """Ends the connection at once."""


class Takeover(SocketOwner):
    """A result of a handler: an object that takes over the socket of the request's connection."""

    __slots__ = ()

    def start(self, transport: asyncio.Transport, before: bytes) -> None:
        """Takes over the socket. Must first write `before`, the bytes of the answers to earlier requests."""
        raise NotImplementedError

    def lost(self, exchange: object) -> None:
        """Called instead of `start` if the client has already closed the connection, or does not read its answers."""
        raise NotImplementedError


class Pending(Protocol):
    """A result of a handler: an object that calls `Exchange.finish` later, when the response is ready."""

    def lost(self, exchange: Exchange) -> None:
        """Called if the client closes the connection before the response is ready."""


Outcome: TypeAlias = Response | Takeover | Pending
"""the result of a handler"""


class HandlerRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that a handler serves.

    args: the values of the groups in the regular expression `Route.tail`.
    crowded: the bound that the number of connections has reached; None if no bound is reached.
    last_event_id: the header `Last-Event-ID`; "" without one.
    is_direct: whether `EdgeContext.addresses` already counts the connection for the client's address.
    headers: the needed headers (`protocols.http`); None if the listener does not keep headers.
    """

    method: str
    args: tuple[str, ...]
    query: str
    body: bytes
    client: ClientRequest
    ip: str
    crowded: Crowded | None = None
    is_direct: bool = False
    last_event_id: str = ""
    headers: Headers | None = None


class Handshake(msgspec.Struct, frozen=True, gc=False):
    """A request to upgrade an HTTP connection to a WebSocket.

    path: the path in the request line, without the query and without the name of a page.
    page: the name of the client's page, which is not checked; None if the path contains no page (`transports/pages.py`).
    ip: the address of the client; "" on a Unix socket.
    crowded: the bound that the number of connections has reached; None if no bound is reached.
    subprotocols: the subprotocols that the client offers, separated by commas; "" for none.
    headers: the needed headers (`protocols.http`); None if the listener does not keep headers.
    """

    method: str
    path: str
    key: str
    version: str
    client: ClientRequest
    ip: str
    crowded: Crowded | None = None
    page: str | None = None
    subprotocols: str = ""
    headers: Headers | None = None


class Handler(Protocol):
    """Serves the requests of its route."""

    headers: bytes
    """encoded headers that the handler adds to each answer that rejects a request"""

    def handle(self, request: HandlerRequest, exchange: Exchange) -> MaybeAwaitable[Outcome]:
        """Serves a request. The method, or the coroutine that it returns, raises Refused to reject the request.

        exchange: the object to which a `Pending` result passes the response later.
        """

    def app_of(self, args: tuple[str, ...]) -> AppConfig | None:
        """Returns the app whose limits bound the body of a request; None if the request belongs to no app."""


class Route(NamedTuple):
    """A handler and the paths that it serves.

    prefixes: the prefixes that the paths may have.
    tail: a regular expression, with groups, for the part of a path after the prefix.
    head: a regular expression, with groups, for the part of a path before the prefix.
    """

    prefixes: tuple[str, ...]
    tail: str
    handler: Handler
    head: str = ""


Serve = Callable[[Request], MaybeAwaitable[Response]]
UpgradeHandler = Callable[[Handshake, asyncio.Transport, bytes, bytes], Response | SocketOwner]
"""a function that serves a handshake; returns the new `SocketOwner` of the socket, or an answer that rejects the client

The third argument contains the client's input after the handshake. The fourth argument contains the answers to earlier requests,
which the `SocketOwner` writes first.
"""


def refuse_upgrade(_handshake: Handshake, *_: object) -> Response:
    """Rejects a WebSocket handshake at an address that serves no clients (`UpgradeHandler`)."""
    return error(404, "metrics.listen accepts no WebSockets: connect to an address of server.listen")


class ApiCounts(Protocol):
    """Counts the requests to the API."""

    def answered(self, request: Request) -> None:
        """Measures the duration of a request, when it is answered."""

    def refused(self, path: str) -> None:
        """Counts a rejected request for the app in its path."""


class Uncounted:
    """Counts nothing (`ApiCounts`)."""

    def answered(self, request: Request) -> None: ...

    def refused(self, path: str) -> None: ...


class Handlers:
    """The table of a worker's handlers.

    serve: the function that serves requests to the API.
    routes: the handlers of all other requests, with the paths that they serve.
    upgrade: the function that serves WebSocket handshakes.
    counts: counts the requests to the API.
    rules: the rules for the decoders of all HTTP connections, and the request heads that these decoders remember.
    """

    def __init__(
        self,
        context: EdgeContext,
        serve: Serve,
        routes: Sequence[Route],
        upgrade: UpgradeHandler,
        counts: ApiCounts | None = None,
    ) -> None:
        self._apps = context.node.apps
        self.serve = serve
        counts = counts or Uncounted()
        self.answered = counts.answered
        self.refused = counts.refused
        self.upgrade = upgrade
        self.least_body = max(context.config.server.max_payload, LEAST_BODY)
        """number of bytes; a request body of at most this size is accepted for every app"""
        self._api_paths = tuple(dict.fromkeys((context.config.api.path, "/apps/")))
        paths = [
            (f"{route.head}(?:{'|'.join(map(re.escape, route.prefixes))}){route.tail}", route)
            for route in routes
            if route.prefixes
        ]
        self._routes = [(re.compile(path + r"\Z"), route.handler) for path, route in paths]
        others = "|".join((*(path for path, _ in paths), "/+metrics"))
        needed = FORWARDING | {AGENT} if context.config.console.listens else FORWARDING
        self.rules = RequestRules(self.least_body, self.max_body, needed, is_own_name, others, time.perf_counter_ns)

    def find(self, path: str) -> tuple[Handler, tuple[str, ...]] | None:
        """Returns the handler of a path, and the values of the groups in `Route.tail`; None if the API serves the path."""
        for pattern, handler in self._routes:
            if found := pattern.match(path):
                return handler, found.groups()
        return None

    def max_body(self, path: str) -> int:
        """Returns the maximum bytes of a body. Escapes make JSON longer, so it is over twice the app's bound for a batch."""
        path = _SLASHES.sub("/", path)
        app = None
        for base in self._api_paths:
            if app is None and path.startswith(base):
                app = self._apps.by_id(unquote(path[len(base) :].partition("/")[0]))
        if app is None and (found := self.find(path)):
            handler, args = found
            app = handler.app_of(args)
        if app is None or not app.enable:
            return self.least_body
        return max(self.least_body, 2 * app.limits.payload * app.limits.batch + LEAST_BODY)
