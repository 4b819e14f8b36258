"""Few free file descriptors: connections that are served, that are rejected with an answer, and that are closed without one."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from push1st.config.addresses import Networks
from push1st.config.model import ServerConfig
from push1st.messages import Response
from push1st.transports.descriptors import Descriptors, Room, file_limit, lowest_free
from tests.support.frames import close_of
from tests.support.http import Answer, handshake, request, statuses
from tests.support.loop import turns
from tests.support.node import KEY
from tests.support.transport import Site

LIMIT, OWN = 300, 30
LAST = LIMIT - 64
"""the first descriptor number above those of clients"""


class Full(Descriptors):
    """Returns the descriptors of a process that has nearly all possible connections."""

    __slots__ = ()

    def room(self, find_number: Callable[[], int], connections: int, api: bool) -> Room:
        return super().room(find_number, connections + (1 << 30), api)


def full(limit: Callable[[], int]) -> Descriptors:
    return Full(limit, lambda: OWN)


def site_at(limit: int = LIMIT, **more) -> Site:
    site = Site(**more)
    site.context.descriptors = full(lambda: limit)
    return site


async def ask(site: Site, number: int, data: bytes):
    """Opens a connection with the descriptor `number`, which sends `data`."""
    connection, transport = site.connect(number=number)
    if not transport.aborted:
        connection.data_received(data)
        await turns()
    return transport


def test_clients_leave_descriptors_to_the_api_and_the_process():
    descriptors = full(lambda: LIMIT)
    assert descriptors.possible == LAST - OWN
    found = [descriptors.room(partial(int, number), 0, api=False) for number in range(LIMIT)]
    assert found == ["serve"] * LAST + ["answer"] * 16 + ["none"] * 48
    found = [descriptors.room(partial(int, number), 0, api=True) for number in range(LIMIT)]
    assert found == ["serve"] * (LIMIT - 16) + ["none"] * 16


@pytest.mark.parametrize(("connections", "looks"), [(0, False), (102, False), (103, True), (LAST, True)])
@pytest.mark.parametrize("api", [False, True])
def test_the_number_of_a_connection_is_looked_up_only_when_half_of_the_possible_connections_exist(connections, api, looks):
    looked: list[int] = []

    def number() -> int:
        looked.append(connections)
        return int(connections)

    room = Descriptors(lambda: LIMIT, lambda: OWN).room(number, connections, api)
    assert room == ("serve" if connections < LAST or api else "answer")
    assert bool(looked) is looks


@pytest.mark.parametrize(("limit", "possible"), [(64, 17), (32, 1), (20, 0), (1 << 20, (1 << 20) - 94)])
def test_a_low_limit_is_halved_and_a_high_one_used(limit, possible):
    assert Descriptors(lambda: limit, lambda: OWN).possible == possible


def test_the_limit_may_change_while_the_process_runs():
    limits = [LIMIT]
    descriptors = full(lambda: limits[0])
    assert descriptors.room(lambda: LAST, 0, api=False) == "answer"
    limits[0] = 1000
    assert descriptors.room(lambda: LAST, 0, api=False) == "serve"
    limits[0] = 200
    assert descriptors.room(lambda: LAST, 0, api=False) == "none"


def test_exhausted_descriptors_are_logged_once_a_minute():
    limits = [LIMIT]
    site = Site()
    site.context.descriptors = Descriptors(lambda: limits[0], lambda: OWN)
    with capture_logs() as logged:
        site.context.check_descriptors()
        assert logged == []
        limits[0] = OWN
        for _ in range(90):
            site.context.check_descriptors()
            site.clock.advance(1)
    assert [line["event"] for line in logged] == ["no file descriptors are left"] * 2


def test_the_limit_and_the_next_descriptor_of_this_process_are_read():
    assert file_limit() > lowest_free() > 2


@pytest.mark.parametrize(("taken", "api", "room"), [(LAST + 16, False, True), (LAST + 17, False, False), (LAST + 17, True, True)])
def test_a_tls_handshake_that_cannot_be_answered_does_not_begin(taken, api, room):
    numbers = [OWN]
    descriptors = Descriptors(lambda: LIMIT, lambda: numbers[0])
    numbers[0] = taken
    assert descriptors.has_room_for_last(api) is room


async def test_without_a_descriptor_a_websocket_is_closed_with_4100():
    site = site_at(trusting=False)
    transport = await ask(site, LAST, handshake(f"/app/{KEY}?protocol=7"))
    code, reason = close_of(transport.data.partition(b"\r\n\r\n")[2])
    assert (code, reason) == (4100, "Over capacity: this server has no file descriptors for more connections")
    assert site.metrics.cut_offs == {"crowded": 1}
    assert not site.world.app.tenant.sessions
    transport = await ask(site, LAST - 1, handshake(f"/app/{KEY}?protocol=7"))
    assert len(site.world.app.tenant.sessions) == 1


async def test_without_a_descriptor_a_raw_websocket_gets_an_http_status():
    site = site_at(trusting=False)
    answer = Answer((await ask(site, LAST, handshake(f"/ws/app/{KEY}/c"))).data)
    assert (answer.status, answer.json["error"][:14]) == (503, "Over capacity:")


async def test_without_a_descriptor_fallback_sessions_continue_and_none_starts():
    site = site_at(trusting=False)
    path = f"/pusher/app/{KEY}/7/session0/xhr?protocol=7"
    assert b"[4100," in Answer((await ask(site, LAST, request("POST", path, b""))).data).body
    assert b"established" in Answer((await ask(site, LAST - 1, request("POST", path, b""))).data).body
    send = request("POST", path.replace("xhr?", "xhr_send?"), b"[]")
    assert statuses((await ask(site, LAST, send)).data) == [200]


async def test_without_a_descriptor_other_requests_are_answered():
    site = site_at(trusting=False)
    assert statuses((await ask(site, LAST + 15, request("GET", "/health"))).data) == [200]
    assert site.metrics.cut_offs == {}


async def test_a_connection_without_a_descriptor_does_not_stay():
    site = site_at(trusting=False)
    silent = await ask(site, LAST, b"")
    asked = await ask(site, LAST, request("GET", "/health"))
    site.pass_seconds(4)
    assert silent.closed
    assert asked.closed


async def test_when_no_spare_descriptor_is_left_connections_are_destroyed_and_the_first_is_logged():
    site = site_at(trusting=False)
    with capture_logs() as logged:
        for number in range(20):
            assert (await ask(site, LAST + 16 + number, request("GET", "/health"))).aborted
    assert [(line["log_level"], line["connections_possible"]) for line in logged] == [("warning", LAST - OWN)]
    assert site.metrics.cut_offs == {"crowded": 20}
    assert not site.context.open


OFFICE, HOME = ("203.0.113.9", 1234), ("198.51.100.7", 1234)
PROXY = ("10.0.0.1", 1234)


def small_site(**more) -> Site:
    """Makes a worker that may have 16 connections, 14 of them from one address."""
    site = Site(trusting=False, **more)
    site.context.descriptors = Descriptors(lambda: 62, lambda: OWN)
    return site


async def greeted(site: Site, peer: object, *headers: str) -> bool:
    """Returns whether another Pusher client is accepted; checks that a rejected client gets the reason."""
    connection, transport = site.connect(peer)
    if transport.aborted:
        return False
    connection.data_received(handshake(f"/app/{KEY}?protocol=7", *headers))
    await turns()
    frames = transport.data.partition(b"\r\n\r\n")[2]
    if b"connection_established" in frames:
        return True
    assert close_of(frames) == (4100, "Over capacity: this address has most of the connections that this server may have")
    return False


async def test_one_address_cannot_take_all_connections():
    site = small_site()
    assert site.context.descriptors.possible == 16
    with capture_logs() as logged:
        assert [await greeted(site, OFFICE) for _ in range(40)] == [True] * 14 + [False] * 26
    (line,) = logged
    assert (line["address"], line["most"]) == (OFFICE[0], 14)
    assert "server.proxies" in line["hint"]
    assert site.metrics.cut_offs == {"crowded": 26}
    assert await greeted(site, HOME)
    assert len(site.world.app.tenant.sessions) == 15


async def test_ended_connection_frees_a_place_of_its_address():
    site = small_site()
    first = [await site.websocket(f"/app/{KEY}?protocol=7", peer=OFFICE) for _ in range(14)]
    refused = await site.ask(handshake(f"/app/{KEY}?protocol=7"), OFFICE)
    for transport in (*first[:2], refused):
        transport.protocol.connection_lost(None)
    assert [await greeted(site, OFFICE) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("peer", ["", ("127.0.0.1", 1), ("::1", 1, 0, 0), PROXY])
async def test_loopback_unix_sockets_and_proxies_may_have_all_connections(peer):
    site = small_site(server=ServerConfig(proxies=Networks.parse(("10.0.0.1",))))
    assert [await greeted(site, peer) for _ in range(20)] == [True] * 20


async def test_clients_of_a_proxy_are_counted_by_their_own_addresses():
    site = small_site(server=ServerConfig(proxies=Networks.parse(("10.0.0.1",))))
    assert [await greeted(site, PROXY, "X-Forwarded-For: 203.0.113.9") for _ in range(40)] == [True] * 14 + [False] * 26
    assert await greeted(site, PROXY, "X-Forwarded-For: 203.0.113.10")
    path = f"/pusher/app/{KEY}/7/session0/xhr?protocol=7"
    poll = await site.ask(request("POST", path, b"", "X-Forwarded-For: 203.0.113.9"), PROXY)
    assert b"[4100," in Answer(poll.data).body


async def test_plain_http_connections_count_and_are_answered_over_the_bound():
    site = small_site()
    silent = [site.connect(OFFICE) for _ in range(14)]
    assert statuses((await site.ask(request("GET", "/health"), OFFICE)).data) == [200]
    assert not await greeted(site, OFFICE)
    for connection, _ in silent:
        connection.connection_lost(None)
    assert await greeted(site, OFFICE)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(("websocket", "raw", "bad", "stream", "poll", "get", "silent")), st.booleans()), max_size=40
    )
)
def test_no_address_has_a_count_after_all_connections_end(steps):
    async def go():
        site = small_site(server=ServerConfig(proxies=Networks.parse(("10.0.0.1",))))
        made = []
        for number, (what, proxied) in enumerate(steps):
            headers = ("X-Forwarded-For: 203.0.113.9",) if proxied else ()
            fallback = f"/pusher/app/{KEY}/7/session{number:02}/xhr"
            data = {
                "websocket": handshake(f"/app/{KEY}?protocol=7", *headers),
                "raw": handshake(f"/ws/app/{KEY}/c", *headers),
                "bad": handshake("/ws/app/nobodys/c", *headers),
                "stream": request("POST", f"{fallback}_streaming?protocol=7", b"", *headers),
                "poll": request("POST", f"{fallback}?protocol=7", b"", *headers),
                "get": request("GET", "/health", None, *headers),
                "silent": b"",
            }[what]
            made.append(await site.ask(data, PROXY if proxied else OFFICE))
            assert site.failures == []
        for transport in made:
            transport.protocol.connection_lost(None)
        site.pass_seconds(30)
        await turns()
        assert dict(site.context.addresses._counts) == {}

    asyncio.run(go())


async def test_callers_of_the_api_are_served_when_clients_are_not():
    async def serve(_request):
        return Response(200, b"")

    site = site_at(serve=serve)
    assert statuses((await ask(site, LIMIT - 17, request("GET", "/x"))).data) == [200]
    assert (await ask(site, LIMIT - 16, request("GET", "/x"))).aborted
