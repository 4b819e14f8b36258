"""The HTTP API: checks signatures and trust, and routes requests to endpoints.

An endpoint is a function that takes a `Call`; `ROUTES` lists each endpoint. An endpoint returns the response, or a coroutine
that returns the response. A request for an app must have a Pusher signature, or come from a trusted network (Push1st API,
section 6). The paths in `SERVER` need no signature.
"""

import re
import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from push1st.api import channels, connections, description, events, history, hooks, metrics, server, tokens, users
from push1st.api.call import Answer, Call, Endpoint, error, wrong_method
from push1st.api.monitoring import with_token
from push1st.config.model import Config
from push1st.core.app import App
from push1st.core.node import Node
from push1st.errors import Refused
from push1st.messages import Request, Response
from push1st.metrics import OTHER, Histogram

ROUTES: dict[tuple[str, ...], dict[str, Endpoint]] = {
    ("events",): {"POST": events.publish},
    ("channels",): {"GET": channels.listing},
    ("batch_events",): {"POST": events.batch},
    ("channels", "*"): {"GET": channels.one},
    ("channels", "*", "events"): {"POST": events.publish_body},
    ("channels", "*", "users"): {"GET": channels.users},
    ("channels", "*", "history"): {"GET": history.read, "DELETE": history.clear},
    ("users", "*", "terminate_connections"): {"POST": users.terminate},
    ("connections",): {"GET": connections.count},
    ("hooks",): {"GET": hooks.listing},
    ("token", "session"): {"POST": tokens.session},
    ("token", "access"): {"POST": tokens.access},
}
"""paths after `/apps/{app}/`; `*` stands for one percent-encoded segment of the path"""
LABELS = {
    ("events",): "events",
    ("channels", "*", "events"): "events",
    ("batch_events",): "batch",
    ("channels",): "channels",
    ("channels", "*"): "channel",
    ("channels", "*", "users"): "users",
    ("channels", "*", "history"): "history",
    ("users", "*", "terminate_connections"): "terminate",
    ("hooks",): "hooks",
    ("token", "session"): "token",
    ("token", "access"): "token",
}
"""the values of the label `endpoint` in metrics, by the path of the endpoint; other paths have the label `OTHER`"""
_SLASHES = re.compile("/{2,}")
PUSHER_BASE = "/apps/"
"""the beginning of each path in Pusher's own API"""
MAX_CACHED = 256
"""the maximum number of characters in a path whose route is cached"""
SERVER: dict[str, Callable[[Node, Request], Coroutine[Any, Any, Response]]] = {
    "/health": server.health,
    "/ready": server.ready,
    "/up": server.ready,
    "/accept-traffic": server.ready,
    "/metrics": metrics.metrics,
    "/openapi.json": description.openapi,
    "/status": server.status,
}
"""paths about the server. Reverb has `/up`, and soketi `/accept-traffic`: probes for these servers need no change"""


class ApiRoute(msgspec.Struct, frozen=True):
    """The app and the endpoints of a path. `app` is None if the app does not exist or is disabled.

    seconds: the durations of the requests to the endpoint.
    """

    app_id: str
    app: App | None
    methods: dict[str, Endpoint]
    args: tuple[str, ...]
    seconds: Histogram


class Api:
    """The API of a worker. `config` defines the paths of the API and of WebSockets."""

    def __init__(self, node: Node, config: Config) -> None:
        self._node = node
        self._base = config.api.path
        self._metrics_token = config.metrics.token
        self._other = node.metrics.api_seconds[OTHER]
        self._websockets = config.server.bases("pusher") + config.server.bases("websocket")
        self._route = lru_cache(1024)(self._find)
        # A change of the configuration clears this cache, so that no request must check whether a cached route is outdated.
        node.on_configured.append(lambda _: self._route.cache_clear())

    def serve(self, request: Request) -> Answer:
        """Serves a request. Raises Refused if the request is rejected; a returned coroutine may also raise Refused."""
        path, query = request.path, request.query
        route = self._route(path) if len(path) <= MAX_CACHED else self._find(path)
        if route is None:
            return self._about_server(request)
        endpoint = route.methods.get("GET" if request.method == "HEAD" else request.method)
        if endpoint is None:
            return self._refuse(request, wrong_method(request.method, route.methods))
        signed = has_params = bool(query)
        if query:
            signed = "auth_signature=" in query or "auth_key=" in query
        if not signed and request.distrust:
            raise Refused(
                401,
                "this call must be signed: auth_key, auth_timestamp, auth_version, body_md5, auth_signature; "
                f"unsigned, it is not trusted: {request.distrust}",
            )
        app = route.app
        if app is None:
            if self._node.apps.by_id(route.app_id) is None:
                raise Refused(404, f"there is no app {route.app_id[:64]!r}")
            raise Refused(403, f"app {route.app_id!r} is disabled")
        if signed:
            if not app.config.secret:
                raise Refused(401, f"app {app.config.id!r} has no secret, so no call can be signed for it")
            now = self._node.clock.wall() // 1_000_000_000
            try:
                has_params = app.check_request(request.method, path, query, request.body, now)
            except Refused:
                if self._base == PUSHER_BASE:
                    raise
                # Pusher's library for PHP puts the value of its option `path` before each path, but does not sign this value.
                path = PUSHER_BASE + _SLASHES.sub("/", path)[len(self._base) :]
                has_params = app.check_request(request.method, path, query, request.body, now)
        return endpoint(Call(self._node, app, request, route.args, signed, has_params))

    def answered(self, request: Request) -> None:
        """Measures the duration of a request, when it is answered, and the delay of a later flush."""
        route = self._route_of(request.path)
        seconds = self._other if route is None else route.seconds
        seconds.observe((time.perf_counter_ns() - request.started) * 1e-9)
        self._node.flush_delay.arm()

    def refused(self, path: str) -> None:
        """Counts a rejected request for the app in its path."""
        route = self._route_of(path)
        if route is not None and route.app is not None:
            route.app.counts.refusals += 1

    def _route_of(self, path: str) -> ApiRoute | None:
        return self._route(path) if len(path) <= MAX_CACHED else self._find(path)

    def _about_server(self, request: Request) -> Answer:
        endpoint = SERVER.get(_SLASHES.sub("/", request.path).rstrip("/"))
        if endpoint is None:
            if request.path.startswith(self._websockets) and request.method in ("GET", "HEAD"):
                return self._refuse(request, _no_websocket())
            raise Refused(404, f"nothing is at {request.path[:200]}")
        if request.method not in ("GET", "HEAD"):
            return self._refuse(request, wrong_method(request.method, ("GET",)))
        if endpoint is metrics.metrics:
            request = with_token(request, self._metrics_token)
        elif endpoint is description.openapi:
            return description.openapi(self._node, request, self._base)
        return endpoint(self._node, request)

    def _refuse(self, request: Request, response: Response) -> Response:
        self._node.refusals.log_answer("request refused", response, method=request.method, path=request.path)
        return response

    def _find(self, path: str) -> ApiRoute | None:
        path = _SLASHES.sub("/", path)  # a client's base URL may end in a slash
        if not path.startswith(self._base):
            return None
        app, *parts = path[len(self._base) :].removesuffix("/").split("/")
        for pattern, methods in ROUTES.items():
            if len(pattern) == len(parts) and all(want in ("*", part) for want, part in zip(pattern, parts, strict=True)):
                try:
                    args = [unquote_to_bytes(part).decode() for want, part in zip(pattern, parts, strict=True) if want == "*"]
                    app_id = unquote_to_bytes(app).decode()
                except UnicodeDecodeError:
                    return None
                config = self._node.apps.by_id(app_id)
                live = self._node.app(config) if config is not None and config.enable else None
                seconds = self._node.metrics.api_seconds[LABELS.get(pattern, OTHER)]
                return ApiRoute(app_id, live, methods, tuple(args), seconds)
        return None


def _no_websocket() -> Response:
    return error(
        426,
        "this address is for WebSockets: use a WebSocket library, and let a proxy pass Upgrade and Connection on",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    )
