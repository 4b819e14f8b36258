"""Event streams on a fake socket: their requests, their blocks and their ends."""

import asyncio
import json
import re

import pytest

from push1st import auth
from push1st.brokers.history import ReplayRequest
from push1st.config.addresses import Networks
from push1st.config.history import HistorySection
from push1st.config.model import ServerConfig, SseConfig
from push1st.errors import Refused
from push1st.messages import Options, gap
from push1st.positions import Position
from push1st.transports.sse import CLOSE_SECONDS, HEARTBEAT_SECONDS, MAX_CHANNELS, MAX_INPUT, EventStream
from tests.support.http import request
from tests.support.loop import WALL, turns
from tests.support.node import APP, KEY, SECRET, app_config
from tests.support.sse import Block, blocks
from tests.support.transport import Site, Transport

HISTORY = (HistorySection(filter=("private-",)), HistorySection(filter=("c", "d", "cache-"), size=100))
PATH = f"/sse/app/{KEY}"
HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: -\r\nContent-Type: text/event-stream; charset=utf-8\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Cache-Control: no-store, no-transform\r\nX-Content-Type-Options: nosniff\r\nX-Accel-Buffering: no\r\n"
    b"Connection: close\r\n\r\n"
)


@pytest.fixture
def site() -> Site:
    return Site(app_config(history=HISTORY))


def position(site: Site, offset: int, channel: str = "c") -> str:
    """Returns the position with this offset in the present epoch of a channel."""
    found = site.world.history.replay((APP, channel), ReplayRequest(HistorySection(), 0))
    return str(Position(found.position.epoch, offset))


def publish(site: Site, numbers: range, channel: str = "c") -> None:
    for number in numbers:
        site.world.publish(channel, b"%d" % number)


def access(ttl: int = 0) -> str:
    return auth.access_token(SECRET, APP, "*", "*", ttl, WALL + 1000)


async def ask(site: Site, path: str, *headers: str, method: str = "GET", peer=("127.0.0.1", 40_000)) -> Transport:
    return await site.ask(request(method, path, None, *headers), peer)


def split(transport: Transport) -> tuple[bytes, bytes]:
    """Returns the head and the body of a response."""
    head, _, body = re.sub(rb"Date: [^\r]+", b"Date: -", transport.data).partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body


async def opened(site: Site, path: str, *headers: str, **more) -> Transport:
    """Opens a stream; returns its transport, which contains only the blocks."""
    transport = await ask(site, path, *headers, **more)
    head, body = split(transport)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), transport.data
    assert b"Content-Length" not in head
    transport.take()
    transport.write(body)
    return transport


def received(transport: Transport) -> list[Block]:
    """Returns the blocks since the last call, without the retry time."""
    return [one for one in blocks(transport.take()) if not one.retry]


def events(transport: Transport) -> list:
    """Returns the channel and the data of each enveloped event since the last call; of `resumed` only the reason."""
    found = []
    for block in received(transport):
        if block.type == "message":
            one = json.loads(block.data)
            data = one["data"]
            found.append((one["channel"], data.get("reason", "recovered") if one["event"] == "resumed" else data))
    return found


async def status(site: Site, path: str, *headers: str, **more) -> int:
    transport = await ask(site, path, *headers, **more)
    return int(transport.data.split(b" ")[1])


# The response


async def test_a_stream_begins_with_its_head_a_retry_time_resumed_and_a_position(site):
    publish(site, range(1, 3))
    head, body = split(await ask(site, f"{PATH}/c"))
    assert head == HEAD
    retry, resumed, at = blocks(body)
    assert 1000 <= retry.retry <= 3000
    data = {"recovered": False, "reason": "unknown", "position": position(site, 2)}
    assert json.loads(resumed.data) == {"event": "resumed", "channel": "c", "data": data}
    assert resumed.id == ""
    assert at == Block("position", position(site, 2), position(site, 2))


async def test_live_messages_have_their_positions_as_ids(site):
    transport = await opened(site, f"{PATH}/c")
    received(transport)
    publish(site, range(1, 3))
    await turns()
    assert [(json.loads(one.data)["data"], one.id) for one in received(transport)] == [
        (1, position(site, 1)),
        (2, position(site, 2)),
    ]


@pytest.mark.parametrize("how", ["header", "query", "both"])
async def test_a_client_with_a_position_gets_what_it_missed(site, how):
    publish(site, range(1, 6))
    at = position(site, 3)
    query = {"header": "", "query": f"?since={at}", "both": f"?since={position(site, 1)}"}[how]
    transport = await opened(site, f"{PATH}/c{query}", *([] if how == "query" else [f"Last-Event-ID: {at}"]))
    publish(site, range(6, 7))
    await turns()
    resumed, first, *rest = received(transport)
    data = {"recovered": True, "replayed": 2, "repeats": False, "position": position(site, 5)}
    assert json.loads(resumed.data)["data"] == data
    assert first == Block("position", at, at), "the id is ahead of the messages that follow"
    assert [(json.loads(one.data)["data"], one.id) for one in rest] == [(n, position(site, n)) for n in (4, 5, 6)]


ODD = ["x", "k:1,k:2", "k:" + "9" * 30, "," * 10_000, "k:1," * 1500, "é", "-"]


@pytest.mark.parametrize("odd", ODD, ids=["text", "two", "10^30", "commas", "long", "latin", "none"])
async def test_an_odd_last_event_id_is_unknown(site, odd):
    transport = await site.ask(f"GET {PATH}/c HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {odd}\r\n\r\n".encode("latin-1"))
    assert json.loads(blocks(split(transport)[1])[1].data)["data"]["reason"] == "unknown"


async def test_a_rewound_stream_begins_at_the_position_before_the_first_message(site):
    publish(site, range(1, 6))
    resumed, at, *rest = received(await opened(site, f"{PATH}/c?rewind=2"))
    assert json.loads(resumed.data)["data"]["replayed"] == 2
    assert at.id == position(site, 3)
    assert [one.id for one in rest] == [position(site, 4), position(site, 5)]


async def test_a_rewound_stream_begins_before_its_first_message_if_a_message_between_is_too_old(site):
    publish(site, range(1, 4))
    site.world.publish("c", b"4", options=Options(5))
    publish(site, range(5, 6))
    site.world.clock.advance(5)
    _, at, *rest = received(await opened(site, f"{PATH}/c?rewind=3"))
    assert [one.id for one in rest] == [position(site, 3), position(site, 5)]
    assert at.id == position(site, 2)


async def test_channel_without_history_has_no_positions(site):
    transport = await opened(site, f"{PATH}/other")
    site.world.publish("other", b"1")
    await turns()
    resumed, message = received(transport)
    assert json.loads(resumed.data)["data"] == {"recovered": False, "reason": "no-history"}
    assert json.loads(message.data) == {"event": "e", "channel": "other", "data": 1, "pos": None}
    assert message.id == ""


async def test_events_may_be_named(site):
    transport = await opened(site, f"{PATH}/c?events=named")
    publish(site, range(1, 2))
    await turns()
    resumed, _, message = received(transport)
    assert (resumed.type, json.loads(resumed.data)["channel"]) == ("resumed", "c")
    assert message == Block("e", "1", position(site, 1))


async def test_a_gap_is_sent_to_streams(site):
    transport = await opened(site, f"{PATH}/c")
    received(transport)
    site.node.receive(gap(APP, "c", "state-lost", Position("E", 7), *site.node.stamp()))
    await turns()
    (block,) = received(transport)
    assert (block.id, json.loads(block.data)["data"]["reason"]) == ("E:7", "state-lost")


async def test_a_cached_event_follows_resumed_if_the_client_did_not_recover(site):
    publish(site, range(1, 3), "cache-c")
    assert events(await opened(site, f"{PATH}/cache-c")) == [("cache-c", "unknown"), ("cache-c", 2)]
    recovered = await opened(site, f"{PATH}/cache-c", f"Last-Event-ID: {position(site, 2, 'cache-c')}")
    assert events(recovered) == [("cache-c", "recovered")]


# Several channels


async def test_blocks_of_several_channels_have_no_id_and_one_block_with_all_positions_follows(site):
    publish(site, range(1, 3))
    transport = await opened(site, f"{PATH}/c/other/d?rewind=1")
    found = received(transport)
    at = f"{position(site, 2)},-,{position(site, 0, 'd')}"
    assert [one.id for one in found] == ["", "", "", "", at]
    assert found[-1] == Block("position", at, at)
    publish(site, range(3, 4))
    await turns()
    (message,) = received(transport)
    assert (message.id, json.loads(message.data)["pos"]) == ("", position(site, 3))


async def test_several_channels_resume_in_the_order_of_the_path(site):
    publish(site, range(1, 4))
    publish(site, range(1, 4), "d")
    id = f"{position(site, 1, 'd')},{position(site, 5)},{position(site, 2)},{position(site, 0, 'd')}"
    transport = await opened(site, f"{PATH}/d/private-x/c/d", f"Last-Event-ID: {id}")
    assert events(transport)[:-1] == [("d", "recovered"), ("d", 2), ("d", 3), ("c", "recovered"), ("c", 3)]


async def test_a_channel_that_is_not_permitted_is_an_error(site):
    """Without this block, a client could not distinguish the channel from a channel without messages."""
    transport = await opened(site, f"{PATH}/private-x/c")
    publish(site, range(1, 2))
    await turns()
    (_, reason), (refused, data), message = events(transport)
    assert (reason, refused, data["code"], message) == ("unknown", "private-x", 401, ("c", 1))


async def test_positions_of_duplicates_and_of_channels_that_are_not_permitted_keep_their_places(site):
    publish(site, range(1, 4))
    *_, last = received(await opened(site, f"{PATH}/c/private-x/d/c"))
    assert last.id == f"{position(site, 3)},-,{position(site, 0, 'd')},{position(site, 3)}"


async def test_the_heartbeat_of_several_channels_has_their_positions_if_something_came(site):
    transport = await opened(site, f"{PATH}/c/d")
    site.pass_seconds(HEARTBEAT_SECONDS)
    await turns()
    transport.take()
    publish(site, range(1, 2))
    site.pass_seconds(HEARTBEAT_SECONDS)
    await turns()
    message, at = received(transport)
    assert json.loads(message.data)["data"] == 1
    assert at.id == f"{position(site, 1)},{position(site, 0, 'd')}"
    site.pass_seconds(HEARTBEAT_SECONDS)
    await turns()
    assert transport.take() == b":\n\n"


async def test_the_positions_come_behind_the_messages_that_they_cover(site):
    transport = await opened(site, f"{PATH}/c/d")
    received(transport)
    publish(site, range(1, 4))
    transport.protocol._beat()
    publish(site, range(4, 5))
    await turns()
    found = [one.id or json.loads(one.data)["data"] for one in received(transport)]
    assert found == [1, 2, 3, f"{position(site, 3)},{position(site, 0, 'd')}", 4]


async def test_a_channel_that_is_not_joined_yet_keeps_the_position_of_the_client():
    site = Site(app_config(history=HISTORY), slow=True)
    publish(site, range(1, 3))
    at = position(site, 1, "d")
    site.world.broker.held.add("join")
    transport = await ask(site, f"{PATH}/c/d", f"Last-Event-ID: {position(site, 1)},{at}")
    assert transport.data == b""
    await site.world.broker.let("join")
    stream = transport.protocol
    assert stream._positions(stream._session) == f"{position(site, 2)},{at}"


# Heartbeats and ends


async def test_a_silent_stream_gets_a_heartbeat_every_15_seconds(site):
    transport = await opened(site, f"{PATH}/c")
    transport.take()
    for seconds in (HEARTBEAT_SECONDS, HEARTBEAT_SECONDS, HEARTBEAT_SECONDS):
        site.pass_seconds(seconds)
        assert transport.take() == b":\n\n"


async def test_heartbeats_of_many_streams_are_spread(site):
    streams = [await opened(site, f"{PATH}/c") for _ in range(60)]
    for one in streams:
        one.take()
    site.pass_seconds(HEARTBEAT_SECONDS // 2)
    assert 0 < sum(bool(one.take()) for one in streams) < 60


async def test_a_stream_ends_when_its_token_does(site):
    transport = await opened(site, f"{PATH}/private-c?token={access(ttl=20)}")
    site.pass_seconds(20)
    assert transport.closed
    assert site.metrics.cut_offs["token-expired"] == 1
    assert site.world.app.tenant.sessions == {}
    assert await status(site, f"{PATH}/private-c?token={access(ttl=20)}") == 401


async def test_a_stream_without_an_end_of_its_token_stays(site):
    transport = await opened(site, f"{PATH}/private-c?token={access()}")
    site.pass_seconds(3600)
    assert not transport.closed


async def test_a_slow_reader_is_cut_off_after_the_turn(site):
    transport = await opened(site, f"{PATH}/c")
    assert transport.high == site.config.server.outbox
    transport.protocol.pause_writing()
    assert transport.late == []
    await turns()
    assert transport.aborted
    assert site.metrics.cut_offs["slow"] == 1
    assert site.world.app.tenant.sessions == {}


async def test_a_draining_server_ends_a_stream_behind_what_is_due(site):
    transport = await opened(site, f"{PATH}/c")
    received(transport)
    publish(site, range(1, 2))
    site.node.draining = True
    transport.protocol.leave(4200, "stopping")
    assert events(transport) == [("c", 1)]
    assert transport.closed
    assert transport.late == []
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted


async def test_a_stream_of_several_channels_ends_with_their_positions(site):
    transport = await opened(site, f"{PATH}/c/d")
    received(transport)
    publish(site, range(1, 3))
    transport.protocol.leave(4200, "stopping")
    first, second, last = received(transport)
    assert [json.loads(one.data)["data"] for one in (first, second)] == [1, 2]
    assert last.id == f"{position(site, 2)},{position(site, 0, 'd')}"
    assert transport.closed


async def test_a_client_that_disconnects_leaves_all_counts(site):
    transport = await opened(site, f"{PATH}/c", peer=("192.0.2.7", 1))
    assert site.metrics.connections["sse"] == 1
    transport.protocol.connection_lost(None)
    await turns()
    assert site.metrics.connections["sse"] == 0
    assert site.world.app.tenant.channels == {}
    assert not site.context.open
    assert not site.context.addresses._counts
    assert transport.protocol.due_at > 1 << 60


async def test_duration_of_a_stream_does_not_depend_on_the_ticks_of_the_sweep(site):
    site.clock.advance(0.4)
    transport = await opened(site, f"{PATH}/c")
    site.clock.advance(0.603)
    transport.protocol.connection_lost(None)
    await turns()
    assert site.metrics.connection_seconds.sum == pytest.approx(0.603)


async def test_a_client_that_closes_its_side_ends_the_stream(site):
    transport = await opened(site, f"{PATH}/c")
    assert not transport.protocol.eof_received()
    assert site.world.app.tenant.sessions == {}
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted


async def test_bytes_of_the_client_are_discarded(site):
    transport = await opened(site, f"{PATH}/c")
    transport.protocol.data_received(b"GET / HTTP/1.1\r\n\r\n" * 100)
    publish(site, range(1, 2))
    await turns()
    assert events(transport) == [("c", "unknown"), ("c", 1)]
    transport.protocol.data_received(b"x" * MAX_INPUT)
    assert transport.aborted
    assert site.metrics.cut_offs["flood"] == 1


async def test_input_after_the_request_is_discarded(site):
    transport = await site.ask(request("GET", f"{PATH}/c") + request("GET", "/health") * 3)
    assert transport.data.count(b"HTTP/1.1") == 1


async def test_answers_to_earlier_requests_come_first(site):
    transport = await site.ask(request("GET", "/health") + request("GET", f"{PATH}/c"))
    assert transport.data.startswith(b"HTTP/1.1 200 OK")
    assert transport.data.count(b"HTTP/1.1 200 OK") == 2
    assert transport.data.index(b"Content-Length") < transport.data.index(b"text/event-stream")


async def test_a_failure_of_the_server_ends_the_stream(site):
    transport = await opened(site, f"{PATH}/c")
    try:
        raise ValueError("a defect")
    except ValueError:
        transport.protocol.fail()
    assert transport.closed
    assert len(site.failures) == 1
    assert site.metrics.cut_offs["internal-error"] == 1


async def test_a_stream_that_ends_with_a_failure_of_the_server_has_no_last_positions(site):
    transport = await opened(site, f"{PATH}/c/d")
    received(transport)
    publish(site, range(1, 2))
    try:
        raise ValueError("a defect")
    except ValueError:
        transport.protocol.fail()
    assert [one.type for one in received(transport)] == ["message"]


async def test_replayed_messages_that_do_not_fit_are_too_large(site):
    publish(site, range(1, 3))
    connection, transport = site.connect()
    transport.unsent = site.config.server.outbox
    connection.data_received(request("GET", f"{PATH}/c?since={position(site, 0)}"))
    await turns()
    assert json.loads(blocks(split(transport)[1])[1].data)["data"]["reason"] == "too-large"


# Rejections


FINAL = {
    "no app": ("/sse/app/other/c", 404),
    "no permitted channel": (f"{PATH}/private-c", 401),
    "a reserved channel": (f"{PATH}/%23server-to-user-1", 401),
    "no channel": (PATH, 400),
    "too many channels": (f"{PATH}/" + "/".join(f"c{number}" for number in range(MAX_CHANNELS + 1)), 400),
    "a path that is not UTF-8": (f"{PATH}/%ff", 400),
    "a malformed rewind": (f"{PATH}/c?rewind=0", 400),
    "malformed events": (f"{PATH}/c?events=all", 400),
    "a malformed positions": (f"{PATH}/c?positions=0", 400),
}


@pytest.mark.parametrize(("path", "code"), FINAL.values(), ids=FINAL.keys())
async def test_what_cannot_succeed_later_has_another_status_than_200(site, path, code):
    transport = await ask(site, path)
    head, body = split(transport)
    assert head.startswith(b"HTTP/1.1 %d " % code)
    assert b"Access-Control-Allow-Origin: *\r\n" in head
    assert json.loads(body)["error"]
    assert site.metrics.connections["sse"] == 0
    assert await status(site, path, method="HEAD") == code


async def test_100_channels_are_one_stream(site):
    transport = await opened(site, f"{PATH}/" + "/".join(f"c{number}" for number in range(MAX_CHANNELS)))
    assert len(events(transport)) == MAX_CHANNELS


async def test_a_disabled_app_is_403():
    assert await status(Site(app_config(enable=False)), f"{PATH}/c") == 403


async def test_an_address_that_is_not_allowed_is_403():
    site = Site(server=ServerConfig(sse=SseConfig(whitelist=Networks.parse(["192.0.2.0/24"]))))
    assert await status(site, f"{PATH}/c") == 403
    await opened(site, f"{PATH}/c", peer=("192.0.2.7", 1))


def is_temporary(transport: Transport, least: int) -> None:
    head, body = split(transport)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"text/event-stream" in head
    (retry,) = blocks(body)
    assert least <= retry.retry <= 3 * least


async def test_what_may_succeed_later_is_an_empty_stream_with_a_retry_time(site):
    site.node.draining = True
    is_temporary(await ask(site, f"{PATH}/c"), 1000)


async def test_a_client_over_the_quota_comes_back_later():
    site = Site(app_config({"connections": 1}))
    await opened(site, f"{PATH}/c")
    transport = await ask(site, f"{PATH}/c")
    is_temporary(transport, 1000)
    assert transport.closed
    assert site.metrics.connections["sse"] == 1
    assert site.metrics.refusals["4004"] == 1


async def test_a_client_of_a_full_server_comes_back_later(site):
    site.listener.crowded = "server"
    is_temporary(await ask(site, f"{PATH}/c"), 5000)


async def test_a_client_behind_a_proxy_counts_for_its_own_address():
    site = Site(server=ServerConfig(proxies=Networks.parse(["127.0.0.1"])))
    site.context.descriptors._limit = lambda: site.context.descriptors._own + 4
    first = await opened(site, f"{PATH}/c", "X-Forwarded-For: 192.0.2.7")
    assert site.context.addresses._counts == {"192.0.2.7": 1}
    is_temporary(await ask(site, f"{PATH}/c", "X-Forwarded-For: 192.0.2.7"), 5000)
    await opened(site, f"{PATH}/c", "X-Forwarded-For: 192.0.2.8")
    first.protocol.connection_lost(None)
    assert site.context.addresses._counts["192.0.2.7"] == 1, "the rejected connection is still open"


async def test_a_client_comes_back_later_if_the_broker_is_away():
    site = Site(app_config(history=HISTORY), slow=True)
    site.world.broker.fail["join"] = Refused(503, "the broker is away")
    transport = await ask(site, f"{PATH}/c/d")
    is_temporary(transport, 5000)
    assert transport.closed
    assert site.metrics.connections["sse"] == 0


async def test_a_stream_ends_if_the_broker_is_away_when_a_later_channel_is_joined():
    site = Site(app_config(history=HISTORY), slow=True)
    site.world.broker.held.add("join")
    transport = await ask(site, f"{PATH}/c/d")
    await site.world.broker.let("join")
    site.world.broker.fail["join"] = Refused(503, "the broker is away")
    await site.world.broker.let("join")
    await turns()
    assert split(transport)[0] == HEAD
    assert transport.closed


async def test_a_backend_that_rejects_the_client_is_403():
    site = Site(app_config(), slow=True)
    site.world.app.backend_decides["connect"] = lambda _: True
    site.world.hooks.decision = type(site.world.hooks.decision)(refused=Refused(403, "no"))
    assert await status(site, f"{PATH}/c") == 403


async def test_a_backend_that_rejects_all_channels_is_401():
    site = Site(app_config(), slow=True)
    site.world.app.backend_decides["subscribe"] = lambda _: True
    site.world.hooks.decision = type(site.world.hooks.decision)(refused=Refused(403, "no"))
    assert await status(site, f"{PATH}/private-c/d") == 401


async def test_a_channel_that_the_backend_rejects_is_an_error_after_the_head():
    site = Site(app_config(), slow=True)
    site.world.app.backend_decides["subscribe"] = lambda name: name == "private-c"
    site.world.hooks.decision = type(site.world.hooks.decision)(refused=Refused(403, "no"))
    decided = site.world.hooks.waits = asyncio.get_running_loop().create_future()
    transport = await ask(site, f"{PATH}/private-c/d")
    decided.set_result(None)
    await turns()
    _, body = split(transport)
    transport.take()
    transport.write(body)
    assert events(transport) == [("private-c", {"code": 403, "message": "no"}), ("d", "no-history")]


# Methods, origins and tokens


async def test_head_has_the_headers_only(site):
    transport = await ask(site, f"{PATH}/c", method="HEAD")
    head, body = split(transport)
    assert b"text/event-stream" in head
    assert body == b""
    assert site.world.app.tenant.sessions == {}


async def test_http_1_0_gets_a_stream(site):
    transport = await site.ask(f"GET {PATH}/c HTTP/1.0\r\n\r\n".encode())
    assert split(transport)[0] == HEAD
    assert isinstance(transport.protocol, EventStream)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_are_405(site, method):
    head, _ = split(await ask(site, f"{PATH}/c", "Content-Length: 0", method=method))
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD, OPTIONS\r\n" in head


async def test_a_preflight_allows_the_headers_of_clients(site):
    head, _ = split(await ask(site, f"{PATH}/c", "Origin: http://a", method="OPTIONS"))
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Access-Control-Allow-Origin: *\r\n" in head
    assert b"Access-Control-Allow-Headers: Authorization, Last-Event-ID, Cache-Control\r\n" in head


GOOD = "https://good.example"


@pytest.fixture
def named() -> Site:
    """A worker whose app names the origins of its pages."""
    return Site(app_config(history=HISTORY, origins=(GOOD,)))


async def test_an_app_with_origins_names_the_origin(named):
    for method in ("GET", "OPTIONS", "HEAD"):
        head, _ = split(await ask(named, f"{PATH}/c", f"Origin: {GOOD}", method=method))
        assert (
            f"Access-Control-Allow-Origin: {GOOD}\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n".encode() in head
        )


async def test_another_origin_is_403_and_may_not_read_it(named):
    transport = await ask(named, f"{PATH}/c", "Origin: https://evil.example")
    head, _ = split(transport)
    assert head.startswith(b"HTTP/1.1 403 ")
    assert b"Access-Control" not in head
    assert b"Vary: Origin\r\n" in head
    assert await status(named, f"{PATH}/c") == 200


@pytest.mark.parametrize("where", ["query", "bearer", "header"])
async def test_a_token_authorises(site, where):
    query = f"?token={access()}" if where == "query" else ""
    headers = {"query": [], "bearer": [f"Authorization: Bearer {access()}"], "header": [f"Authorization: {access()}"]}[where]
    await opened(site, f"{PATH}/private-c{query}", *headers)
    assert "private-c" in site.world.app.tenant.channels


COOKIE = "a=b; push1st_token={}; c=d"


async def test_a_cookie_authorises_if_the_app_names_origins(named):
    await opened(named, f"{PATH}/private-c", f"Cookie: {COOKIE.format(access())}", f"Origin: {GOOD}")
    await opened(named, f"{PATH}/private-c", f"Cookie: {COOKIE.format(access())}")


@pytest.mark.parametrize("origins", [(), ("*",), (GOOD, "*")])
async def test_a_cookie_authorises_nothing_if_every_page_may_connect(origins):
    site = Site(app_config(origins=origins))
    head, _ = split(await ask(site, f"{PATH}/private-c", f"Cookie: {COOKIE.format(access())}", "Origin: https://evil.example"))
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"Access-Control-Allow-Origin: *\r\n" in head
    assert b"Credentials" not in head


async def test_a_cookie_counts_less_than_a_token(named):
    cookie = f"Cookie: push1st_token={access()}"
    assert await status(named, f"{PATH}/private-c?token=x", cookie) == 401
    assert await status(named, f"{PATH}/private-c", cookie, "Authorization: Bearer x") == 401


async def test_hooks_and_webhooks_see_a_stream_as_any_client(site):
    site.world.app.hook_kinds = frozenset({"joined", "left"})
    transport = await opened(site, f"{PATH}/c")
    transport.protocol.connection_lost(None)
    await turns()
    kinds = [one.kind for one in site.world.hooks.hook_events]
    assert kinds == ["occupied", "joined", "left", "vacated"]


async def test_a_disabled_protocol_has_no_path():
    site = Site(server=ServerConfig(proto=frozenset({"pusher"})))
    assert await status(site, f"{PATH}/c") == 404


async def test_several_slashes_before_the_key_count_as_one(site):
    await opened(site, f"/sse/app//{KEY}//c/")
    assert list(site.world.app.tenant.channels) == ["c"]
