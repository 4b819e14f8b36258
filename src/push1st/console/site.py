"""Serves the requests to the console: health, pages, sign-in, and the endpoints of its parts.

Each answer has the headers of `guard`. A request below `api/` needs a session, except the sign-in.
"""

import asyncio
import re
import secrets
from collections.abc import Sequence

import msgspec

from push1st.api import server
from push1st.api.call import wrong_method
from push1st.api.description import openapi
from push1st.config.addresses import Networks
from push1st.config.model import AppConfig
from push1st.console.assets import Assets
from push1st.console.endpoints import MAX_BODY, ConsoleCall, ConsoleContext, ConsoleEndpoint, decoded, json, params_of
from push1st.console.guard import NEEDED, NO_STORE, Guard
from push1st.console.live import Live
from push1st.console.login import Login
from push1st.console.sessions import OperatorSession, OperatorSessions
from push1st.eager import MaybeAwaitable
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
_MAX_BODY_PATHS = re.compile(r"/+api/apps/")
_PROBES = {"health": server.health, "ready": server.ready}
_NO_HEADERS: dict[bytes, bytes] = {}


class ConsoleHandlers(Handlers):
    """The table of the console's handlers, which contains only the console."""

    def __init__(self, context: EdgeContext, site: "Site") -> None:
        super().__init__(context, _nothing, (Route(("/",), "(.*)", site),), site.upgrade)
        self.least_body = self.rules.least_body = LEAST_BODY
        self.rules.needed |= NEEDED

    def max_body(self, path: str) -> int:
        return MAX_BODY if _MAX_BODY_PATHS.match(path) else LEAST_BODY


class ConsoleListener(Listener):
    """The settings for the connections to an address of `console.listen`. The bounds of clients apply to the connections."""

    NEEDS_HEADERS = True
    headers = NO_STORE

    @property
    def proxies(self) -> Networks:
        return self.context.config.console.proxies


class ConsoleDoor:
    """What the sites of all listeners share: the sign-in and the sessions.

    live: the live channel.
    """

    def __init__(
        self, context: ConsoleContext, login: Login, sessions: OperatorSessions, live: Live, parts: Sequence[ConsoleEndpoint]
    ):
        self.context = context
        self.login = login
        self.sessions = sessions
        self.live = live
        self.assets = Assets()
        self.endpoints = [(re.compile(f"{one.pattern}\\Z"), one) for one in parts]

    def now(self) -> float:
        return self.context.node.clock.wall() / 1_000_000_000


class Site:
    """The console at one listener (`transports.handlers.Handler`)."""

    headers = NO_STORE

    def __init__(self, door: ConsoleDoor, guard: Guard) -> None:
        self._door = door
        self._guard = guard

    def app_of(self, _args: tuple[str, ...]) -> AppConfig | None:
        return None

    def handle(self, request: HandlerRequest, _exchange: Exchange) -> MaybeAwaitable[Outcome]:
        """Serves a request (see `Handler`)."""
        path = request.args[0].lstrip("/")
        method = "GET" if request.method == "HEAD" else request.method
        if path in _PROBES and method == "GET":
            return self._probe(path)
        headers = request.headers or _NO_HEADERS
        self._guard.check_host(headers)
        if method != "GET" or path.startswith(API):
            self._guard.check_site(headers)
        if method != "GET":
            self._guard.check_change(headers)
        if path == "api/login":
            if method != "POST":
                return _with_headers(wrong_method(method, ("POST",)))
            return self._sign_in(request)
        if path.startswith(API):
            return self._call(method, path.removeprefix(API), request)
        if path == "openapi.json" and method == "GET":
            self._session(request.client.cookie)
            return self._openapi()
        if method != "GET":
            return _with_headers(wrong_method(method, ("GET",)))
        found = self._door.assets.find(path, headers.get(b"accept-encoding", b""), headers.get(b"if-none-match", b""))
        if found is None:
            raise Refused(404, f"the console has nothing at {path[:200]}")
        return found

    def upgrade(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes, before: bytes) -> Response | SocketOwner:
        """Serves a WebSocket handshake (see `UpgradeHandler`)."""
        headers = handshake.headers or _NO_HEADERS
        try:
            self._guard.check_host(headers)
            self._guard.check_site(headers)
            self._guard.check_origin(headers)
            session = self._session(handshake.client.cookie)
        except Refused as exc:
            return _with_headers(error(exc.code, exc.text))
        if handshake.path.lstrip("/") != "api/live":
            return _with_headers(error(404, "the console accepts WebSockets at api/live only"))
        found = self._door.live.upgrade(handshake, session, transport, rest, before)
        return _with_headers(found) if isinstance(found, Response) else found

    async def _probe(self, path: str) -> Response:
        return _with_headers(await _PROBES[path](self._door.context.node, _request(path)))

    async def _openapi(self) -> Response:
        return _with_headers(await openapi(self._door.context.node, _request("/openapi.json")))

    def _session(self, cookie: str | None) -> OperatorSession:
        """Returns the session of a request. Raises Refused(401)."""
        session = self._door.sessions.find(self._guard.cookie_of(cookie), self._door.now())
        if session is None:
            raise Refused(401, "sign in")
        return session

    async def _sign_in(self, request: HandlerRequest) -> Response:
        door = self._door
        refusal = await door.login.check(request.body, request.ip)
        if refusal is not None:
            return _with_headers(refusal)
        session = door.sessions.begin(secrets.token_urlsafe(16), door.now())
        return Response(200, json(_facts(session)), headers=NO_STORE + self._cookie(session))

    def _cookie(self, session: OperatorSession) -> bytes:
        return self._guard.set_cookie(self._door.sessions.value(session), session.expires - int(self._door.now()))

    async def _call(self, method: str, path: str, request: HandlerRequest) -> Response:
        door = self._door
        session = self._session(request.client.cookie)
        headers = NO_STORE
        if renewed := door.sessions.renewed(session, door.now()):
            session = renewed
            headers += self._cookie(session)
        if path == "session" and method == "GET":
            return Response(200, json(_facts(session)), headers=headers)
        if path == "logout" and method == "POST":
            door.sessions.end(session.nonce, session.ends, door.now())
            door.live.end_session(session.nonce)
            return Response(200, b"{}", headers=NO_STORE + self._guard.set_cookie("", 0))
        methods = []
        for pattern, endpoint in door.endpoints:
            if found := pattern.match(path):
                methods.append(endpoint.method)
                if endpoint.method == method:
                    call = ConsoleCall(method, decoded(found.groups()), params_of(request.query), request.body, request.ip)
                    answer = endpoint.serve(call)
                    return Response(200, json(await answer if asyncio.iscoroutine(answer) else answer), headers=headers)
        if methods:
            return _with_headers(wrong_method(method, methods))
        raise Refused(404, f"the console has nothing at {API}{path[:200]}")


def _facts(session: OperatorSession) -> dict[str, int]:
    return {"expires": session.expires, "ends": session.ends}


def _with_headers(response: Response) -> Response:
    return msgspec.structs.replace(response, headers=NO_STORE + response.headers)


def _request(path: str) -> Request:
    return Request("GET", path, "", b"", "", 0)


def _nothing(_request: Request) -> Response:
    raise AssertionError("the route of the console matches every path")
