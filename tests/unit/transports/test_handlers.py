"""The table of handlers: which paths reach a handler, and what a handler may return."""

from typing import Any

import pytest

from push1st.config.model import ApiConfig, AppConfig, ServerConfig
from push1st.errors import Refused
from push1st.messages import Response
from push1st.transports.handlers import Exchange, HandlerRequest, Handlers, Outcome, Route, Takeover
from push1st.transports.listener import Listener
from tests.support.http import answers, request, statuses
from tests.support.loop import turns
from tests.support.node import APP, KEY, app_config
from tests.support.transport import Site


class Echo(Takeover):
    """Owns the socket, and writes back what arrives."""

    transport: Any

    def start(self, transport: Any, before: bytes) -> None:
        self.transport = transport
        transport.set_protocol(self)
        transport.write(before + b"hello ")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Rooms:
    """A handler with one path for each outcome."""

    headers = b"X-Rooms: yes\r\n"

    def __init__(self) -> None:
        self.requests: list[HandlerRequest] = []
        self.waiting: list[Exchange] = []
        self.lost_ones: list[object] = []

    def handle(self, request: HandlerRequest, exchange: Exchange) -> Outcome:
        self.requests.append(request)
        name, what = request.args
        match what:
            case "wait":
                self.waiting.append(exchange)
                return self
            case "take":
                return Echo()
            case "refuse":
                raise Refused(403, "not here")
        return Response(200, name.encode())

    def lost(self, exchange: Exchange) -> None:
        self.lost_ones.append(exchange)

    def app_of(self, args: tuple[str, ...]) -> AppConfig | None:
        return None


class Floor:
    """A site whose only route is `/rooms/NAME/WHAT`."""

    def __init__(self) -> None:
        self.rooms = Rooms()
        self.site = Site()
        site = self.site
        site.handlers = Handlers(
            site.context, site.serve, [Route(("/rooms/",), r"(\w+)/(\w+)", self.rooms)], site.handlers.upgrade
        )
        site.listener = Listener(site.context, site.handlers, True, site.config.api.whitelist, 10)


@pytest.fixture
def floor() -> Floor:
    return Floor()


async def test_a_handler_gets_the_groups_of_its_route(floor):
    transport = await floor.site.ask(request("POST", "/rooms/red/look?a=b", "body", "Origin: http://o", "Cookie: c=1"))
    assert [answer.body for answer in answers(transport.data)] == [b"red"]
    (got,) = floor.rooms.requests
    assert (got.method, got.args, got.query, got.body) == ("POST", ("red", "look"), "a=b", b"body")
    assert (got.client.origin, got.client.cookie) == ("http://o", "c=1")


@pytest.mark.parametrize("path", ["/rooms/red", "/rooms/red/look/more", "/room/red/look", "/x/rooms/red/look"])
async def test_a_path_without_a_route_goes_to_the_api(floor, path):
    assert statuses((await floor.site.ask(request("GET", path))).data) == [404]
    assert floor.rooms.requests == []


async def test_headers_of_a_route_are_not_remembered(floor):
    for _ in range(3):
        await floor.site.ask(request("GET", "/rooms/red/look"))
    assert floor.site.handlers.rules.heads == {}
    assert len(floor.rooms.requests) == 3


async def test_a_pending_response_holds_back_the_requests_after_it(floor):
    transport = await floor.site.ask(request("GET", "/rooms/red/wait") + request("GET", "/rooms/blue/look"))
    assert transport.data == b""
    (exchange,) = floor.rooms.waiting
    exchange.finish(Response(200, b"at last"))
    await turns()
    assert [answer.body for answer in answers(transport.data)] == [b"at last", b"blue"]


async def test_the_owner_of_a_pending_response_learns_that_the_client_left(floor):
    transport = await floor.site.ask(request("GET", "/rooms/red/wait"))
    transport.protocol.connection_lost(None)
    assert floor.rooms.lost_ones == floor.rooms.waiting


async def test_a_takeover_gets_the_socket_after_the_answers_before_it(floor):
    transport = await floor.site.ask(request("GET", "/rooms/red/look") + request("GET", "/rooms/red/take"))
    (first,) = answers(transport.data.removesuffix(b"hello "))
    assert first.body == b"red"
    assert isinstance(transport.protocol, Echo)
    transport.protocol.data_received(b"you")
    assert transport.data.endswith(b"hello you")
    assert floor.site.context.open == set()


async def test_a_rejected_request_is_answered_with_the_headers_of_its_handler(floor):
    (answer,) = answers((await floor.site.ask(request("GET", "/rooms/red/refuse"))).data)
    assert (answer.status, answer.headers["x-rooms"]) == (403, "yes")


def test_without_routes_every_path_is_the_apis(floor):
    site = floor.site
    table = Handlers(site.context, site.serve, [Route((), "x", floor.rooms)], site.handlers.upgrade)
    assert table.find("/rooms/red/look") is None
    assert table.rules.line(b"GET /rooms/red/look HTTP/1.1\r\n") == ("GET", "/rooms/red/look", "")


# Bounds of bodies

EVENTS = f"/apps/{APP}/events"


def test_a_body_may_hold_a_full_batch_of_its_app():
    site = Site(app_config({"payload": 100_000, "batch": 10}), app_config(id="small", key="small-key"))
    assert site.handlers.max_body(EVENTS) >= 2 * 100_000 * 10
    assert site.handlers.max_body(f"/pusher/app/{KEY}/1/abcdefgh/xhr_send") >= 2 * 100_000 * 10
    for path in ("/apps/small/events", "/apps/nobodys/events", "/pusher/app/small-key/1/abcdefgh/xhr_send", "/", "/apps/"):
        assert site.handlers.max_body(path) < 300_000


@pytest.mark.parametrize("path", ["/sockets/apps/a%2Db/events", "/apps/a-b/events", "//apps//a-b//events"])
def test_the_app_of_a_body_is_found_under_every_path_of_the_api(path):
    site = Site(app_config({"payload": 1_000_000}, id="a-b"), api=ApiConfig(path="/sockets/apps/"))
    assert site.handlers.max_body(path) > 2_000_000


def test_body_limit_follows_the_configuration():
    assert Site(server=ServerConfig(max_payload=50_000_000)).handlers.max_body("/x") == 50_000_000
