"""Calls of the HTTP API with a node in memory: no socket, no network."""

import json
from typing import Any

import pytest

from push1st.api import Api
from push1st.brokers.retained import Retain
from push1st.config.history import HistorySection
from push1st.config.model import AppConfig, Config
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import Message, Options, Published, Request, Response
from tests.support.http import signed
from tests.support.loop import done
from tests.support.node import APP, World


class Caller:
    """A backend. `call`, `get`, `post` and `event` return status and decoded body. trusted: whether its address is trusted.

    idempotency_key: the header of all calls. answered: the last response.
    """

    def __init__(self, *apps: AppConfig, **how: Any) -> None:
        self.world = World(*apps, **how)
        self.api = Api(self.world.node, Config())
        self.trusted = True
        self.idempotency_key: bytes | None = None
        self.answered = Response(0, b"")
        self.sent: list[tuple[str, str, bytes, str, Options]] = []
        self.headers: list[bytes] = []
        publish = self.world.memory.publish

        def noted(
            message: Message, section: HistorySection | None = None, key: str = "", retain: Retain | None = None
        ) -> Published:
            options = Options(0, message.delivery, message.target)
            self.headers.append(message.headers)
            self.sent.append((message.channel, message.event, message.data, message.exclude, options))
            return publish(message, section, key, retain)

        self.world.memory.publish = noted  # type: ignore[method-assign]

    def respond(self, request: Request) -> Response:
        """Serves a request; answers a rejection, as a connection does."""

        async def serve() -> Response:
            return await resolve(self.api.serve(request))

        try:
            response: Response = done(serve())
        except Refused as refused:
            return Response(refused.code, json.dumps({"error": refused.text}).encode())
        return response

    def call(self, method: str, path: str, body: object = b"", query: str = "", key: bool = False) -> tuple[int, Any]:
        """Makes a call. body: bytes and texts are sent unchanged, other values as JSON. key: signs it as Pusher does."""
        data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        path = path if path.startswith("/") else f"/apps/{APP}/{path}"
        if key:
            params = dict(pair.split("=", 1) for pair in query.split("&") if pair)
            query = signed(method, path, data, params, self.world.clock)
        distrust = "" if self.trusted else "it is far away"
        response = self.answered = self.respond(Request(method, path, query, data, distrust, 0, self.idempotency_key))
        text = response.body.decode()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def get(self, path: str, query: str = "", key: bool = False) -> tuple[int, Any]:
        return self.call("GET", path, b"", query, key)

    def post(self, path: str, body: object, key: bool = False, query: str = "") -> tuple[int, Any]:
        return self.call("POST", path, body, query, key)

    def event(self, key: bool = False, **fields: Any) -> tuple[int, Any]:
        """Publishes the event `e` on the channel `c`, with these fields changed; a field that is `...` is omitted."""
        event = {"name": "e", "channels": ["c"], "data": "x"} | fields
        return self.post("events", {name: value for name, value in event.items() if value is not ...}, key)


@pytest.fixture
def caller():
    return Caller()


@pytest.fixture
def calling():
    """Makes a caller for other apps."""
    return Caller
