"""The table of handlers: assigns paths to the parts of the server, and defines what a handler may return.

`process/server.py` builds the table. An HTTP connection imports the table and no handler, so a new handler needs no change of
the connection. The API serves each request that no route matches.
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
from push1st.transports.caller import FORWARDING, is_own_name
from push1st.transports.context import EdgeContext
from push1st.transports.places import Crowded

LEAST_BODY = 65_536
"""bytes that a request's body may have, whatever its path and its app"""

_SLASHES = re.compile("//+")


class Exchange(Protocol):
    """A request whose response is not ready yet."""

    def finish(self, response: Response) -> None:
        """Sends the response."""


class SocketOwner(asyncio.Protocol):
    """A protocol that owns the socket of a former HTTP connection. The event loop calls the owner instead of that connection.

    address: the name under which `EdgeContext.addresses` counts the connection; "" if the connection is not counted.
    """

    __slots__ = ("address",)

    address: str

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
    """The outcome of a request whose handler takes the socket over."""

    __slots__ = ()

    def start(self, transport: asyncio.Transport, before: bytes) -> None:
        """Takes the socket. before: bytes of earlier answers, which must be written first."""
        raise NotImplementedError

    def lost(self, exchange: object) -> None:
        """Called instead of `start` if the client has left."""
        raise NotImplementedError


class Pending(Protocol):
    """The owner of a response that is not ready: it calls `Exchange.finish` later."""

    def lost(self, exchange: Exchange) -> None:
        """Called if the client leaves before the response is ready."""


Outcome: TypeAlias = Response | Takeover | Pending
"""What a handler returns."""


class HandlerRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that a handler serves. args: the groups of the route's `tail`.

    crowded: the bound that leaves no room for a new client; None if there is room.
    is_direct: whether the connection already counts for the client's address.
    """

    method: str
    args: tuple[str, ...]
    query: str
    body: bytes
    client: ClientRequest
    ip: str
    crowded: Crowded | None = None
    is_direct: bool = False


class Handshake(msgspec.Struct, frozen=True, gc=False):
    """A request to upgrade.

    path: as on the request line. ip: "" on a Unix socket. crowded: the bound that leaves no room for the client; None if there
    is room.
    """

    method: str
    path: str
    key: str
    version: str
    client: ClientRequest
    ip: str
    crowded: Crowded | None = None


class Handler(Protocol):
    """Serves the requests of its route."""

    headers: bytes
    """headers of the answers that reject a request"""

    def handle(self, request: HandlerRequest, exchange: Exchange) -> MaybeAwaitable[Outcome]:
        """Serves a request. Raises Refused; a coroutine may raise it too. exchange: for a result that is `Pending`."""

    def app_of(self, args: tuple[str, ...]) -> AppConfig | None:
        """Returns the app that a request belongs to, which bounds the request's body."""


class Route(NamedTuple):
    """Paths and their handler. prefixes: what the paths begin with. tail: the regular expression of the rest, with groups."""

    prefixes: tuple[str, ...]
    tail: str
    handler: Handler


Serve = Callable[[Request], MaybeAwaitable[Response]]
UpgradeHandler = Callable[[Handshake, asyncio.Transport, bytes, bytes], Response | SocketOwner]
"""Serves a WebSocket handshake: returns the protocol that has taken the socket over, or the answer that rejects the handshake.

The bytes: the client's input after the handshake, and answers to earlier requests, which must be written first.
"""


class Handlers:
    """The table of a worker. serve: the API. routes: all other handlers. upgrade: serves WebSocket handshakes.

    `rules`: rules and remembered heads for the decoders of all connections.
    """

    def __init__(self, context: EdgeContext, serve: Serve, routes: Sequence[Route], upgrade: UpgradeHandler) -> None:
        self._apps = context.node.apps
        self.serve = serve
        self.upgrade = upgrade
        self.least_body = max(context.config.server.max_payload, LEAST_BODY)
        """bytes that the body of a request may have, whatever its app"""
        self._api_paths = tuple(dict.fromkeys((context.config.api.path, "/apps/")))
        paths = [(f"(?:{'|'.join(map(re.escape, route.prefixes))}){route.tail}", route) for route in routes if route.prefixes]
        self._routes = [(re.compile(path + r"\Z"), route.handler) for path, route in paths]
        others = "|".join(path for path, _ in paths) or "(?!)"
        self.rules = RequestRules(self.least_body, self.max_body, FORWARDING, is_own_name, others, time.perf_counter_ns)

    def find(self, path: str) -> tuple[Handler, tuple[str, ...]] | None:
        """Returns the handler of a path, and the groups of its route; None for the API."""
        for pattern, handler in self._routes:
            if found := pattern.match(path):
                return handler, found.groups()
        return None

    def max_body(self, path: str) -> int:
        """Returns the bytes that a request's body may have: at least a full batch, JSON-escaped, of the app in the path."""
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
