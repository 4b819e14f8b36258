"""Serves the requests to the console: health, static files, sign-in, and the endpoints of its parts.

Each answer has the headers of `guard`. A request below `api/` needs a session, except the sign-in.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from push1st.api import server
from push1st.api.call import wrong_method
from push1st.api.description import addresses, described
from push1st.config.addresses import Networks
from push1st.config.model import AppConfig
from push1st.console.assets import Assets
from push1st.console.door import ConsoleDoor
from push1st.console.endpoints import MAX_BODY, ConsoleCall, ConsoleEndpoint, decoded, json, params_of
from push1st.console.guard import NEEDED, NO_STORE, Guard
from push1st.console.live import Live
from push1st.console.sessions import OperatorSession
from push1st.core.node import Node
from push1st.eager import MaybeAwaitable, resolve
from push1st.errors import Refused
from push1st.messages import Request, Response
from push1st.transports.answers import error
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Exchange, HandlerRequest, Handlers, Handshake, Outcome, Route, SocketOwner
from push1st.transports.listener import Listener

LEAST_BODY = 4096
"""the maximum number of bytes of a body outside `api/apps/`, such as that of a sign-in"""
KEEP_ALIVE_SECONDS = 30
API = "api/"
LOGIN, LIVE, DESCRIPTION = "api/login", "api/live", "openapi.json"
_MAX_BODY_PATHS = re.compile(r"/+api/apps/")
_PROBES = {"health": server.health, "ready": server.ready}


class ConsoleHandlers(Handlers):
    """The table of the console's handlers, which contains only the console."""

    def __init__(self, context: EdgeContext, site: "Site") -> None:
        super().__init__(context, _nothing, (Route(("/",), "(.*)", site),), site.upgrade)
        self.least_body = self.rules.least_body = LEAST_BODY
        self.rules.needed |= NEEDED

    def max_body(self, path: str) -> int:
        return MAX_BODY if _MAX_BODY_PATHS.match(path) else LEAST_BODY


class ConsoleListener(Listener):
    """The settings for the connections to an address of `console.listen`. The limits for clients apply to these connections."""

    NEEDS_HEADERS = True
    headers = NO_STORE

    @property
    def proxies(self) -> Networks:
        return self.context.config.console.proxies


class Site:
    """The console at one listener (`transports.handlers.Handler`).

    door: the sign-in and the sessions, which all listeners share.
    guard: the guard of this listener.
    endpoints: the endpoints of all parts.
    """

    headers = NO_STORE

    def __init__(
        self, edge: EdgeContext, door: ConsoleDoor, live: Live, assets: Assets, guard: Guard, endpoints: Sequence[ConsoleEndpoint]
    ) -> None:
        self._node = edge.node
        self._urls = addresses(edge.config)
        self._path = edge.config.api.path
        self._door = door
        self._headers = NO_STORE + b"Push1st-Worker: %b\r\n" % door.worker.encode("ascii", "replace")
        self._live = live
        self._assets = assets
        self._guard = guard
        self._endpoints = [(re.compile(f"{one.pattern}\\Z"), one) for one in endpoints]

    def app_of(self, _args: tuple[str, ...]) -> AppConfig | None:
        return None

    async def handle(self, request: HandlerRequest, _exchange: Exchange) -> Outcome:
        """Serves a request (see `Handler`)."""
        path = request.args[0].lstrip("/")
        try:
            return await resolve(self._serve(path, request))
        except Refused as exc:
            return self._refused(error(exc.code, exc.text), request, path)

    def _serve(self, path: str, request: HandlerRequest) -> MaybeAwaitable[Response]:
        method = "GET" if request.method == "HEAD" else request.method
        if path in _PROBES and method == "GET":
            return self._about_server(_PROBES[path])
        headers = request.headers or {}
        self._guard.check_host(headers)
        if method != "GET" or path.startswith(API) or path == DESCRIPTION:
            self._guard.check_site(headers)
        if method != "GET":
            self._guard.check_change(headers)
        if path == LOGIN:
            return self._sign_in(request) if method == "POST" else self._wrong(request, ("POST",))
        if path.startswith(API):
            return self._call(method, path.removeprefix(API), request)
        if method != "GET":
            return self._wrong(request, ("GET",))
        if path == DESCRIPTION:
            self._session(request.client.cookie)
            return self._description()
        found = self._assets.find(path, headers.get(b"accept-encoding", b""), headers.get(b"if-none-match", b""))
        if found is None:
            raise Refused(404, f"the console has nothing at {path[:200]}")
        return found

    def upgrade(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes, before: bytes) -> Response | SocketOwner:
        """Serves a WebSocket handshake (see `UpgradeHandler`)."""
        headers = handshake.headers or {}
        try:
            self._guard.check_host(headers)
            self._guard.check_site(headers)
            self._guard.check_origin(headers)
            session = self._session(handshake.client.cookie)
            if handshake.path.lstrip("/") != LIVE:
                raise Refused(404, "the console accepts WebSockets at api/live only")
            if handshake.crowded is not None:
                raise Refused(503, "the server has too many connections")
        except Refused as exc:
            return _with_headers(error(exc.code, exc.text))
        found = self._live.upgrade(handshake, session, transport, rest, before)
        return _with_headers(found) if isinstance(found, Response) else found

    async def _description(self) -> Response:
        return _with_headers(await described(self._urls, self._path))

    async def _about_server(self, serve: Callable[[Node, Request], Coroutine[Any, Any, Response]]) -> Response:
        return _with_headers(await serve(self._node, Request("GET", "/", "", b"", "", 0)))

    def _wrong(self, request: HandlerRequest, allowed: Sequence[str]) -> Response:
        return _with_headers(wrong_method(request.method, allowed))

    def _session(self, cookie: str | None) -> OperatorSession:
        """Returns the session of a request. Raises Refused(401)."""
        return self._door.session(self._guard.cookie_of(cookie))

    def _cookie(self, session: OperatorSession) -> bytes:
        return self._guard.set_cookie(*self._door.cookie(session))

    async def _sign_in(self, request: HandlerRequest) -> Response:
        found = await self._door.sign_in(request.body, request.ip)
        if isinstance(found, Response):
            return self._refused(found, request, LOGIN)
        return Response(200, _facts(found), headers=NO_STORE + self._cookie(found))

    def _refused(self, answer: Response, request: HandlerRequest, path: str) -> Response:
        """Counts a rejected request, and logs it with its path, from which the inspector gets the app. Returns the answer."""
        self._node.metrics.refusals[str(answer.status)] += 1
        self._node.refusals.log_answer("request refused", answer, method=request.method, path=f"/{path}", ip=request.ip)
        return _with_headers(answer)

    async def _call(self, method: str, path: str, request: HandlerRequest) -> Response:
        try:
            session = self._session(request.client.cookie)
        except Refused as exc:  # each tab that shows the sign-in gets this answer, so it does not count as a rejection
            return _with_headers(error(exc.code, exc.text))
        if path == "logout" and method == "POST":
            await self._door.sign_out(session)
            return Response(200, b"{}", headers=NO_STORE + self._guard.set_cookie("", 0))
        headers = self._headers
        if renewed := self._door.renewed(session):
            session = renewed
            headers += self._cookie(session)
        if path == "session" and method == "GET":
            return Response(200, _facts(session), headers=headers)
        matches = [(endpoint, found) for pattern, endpoint in self._endpoints if (found := pattern.match(path))]
        if not matches:
            raise Refused(404, f"the console has nothing at {API}{path[:200]}")
        for endpoint, found in matches:
            if endpoint.method == method:
                call = ConsoleCall(method, decoded(found.groups()), params_of(request.query), request.body, request.ip)
                answer = endpoint.serve(call)
                if isinstance(answer, Coroutine):
                    # `asyncio.timeout` needs a task, and the pipeline begins this coroutine outside of one.
                    answer = await asyncio.create_task(answer)
                return Response(200, json(answer), headers=headers)
        return self._wrong(request, [endpoint.method for endpoint, _ in matches])


def _facts(session: OperatorSession) -> bytes:
    return json({"expires": session.expires, "ends": session.ends})


def _with_headers(response: Response) -> Response:
    return msgspec.structs.replace(response, headers=NO_STORE + response.headers)


def _nothing(_request: Request) -> Response:
    raise AssertionError("the route of the console matches every path")
