"""Raw WebSocket clients that resume by position."""

import pytest

from push1st.brokers.history import ReplayRequest
from push1st.config.history import HistorySection
from push1st.messages import gap
from push1st.positions import Position
from tests.support.frames import close_of, frames, text
from tests.support.http import handshake
from tests.support.loop import turns
from tests.support.node import APP, KEY, app_config
from tests.support.transport import Site
from tests.support.websocket import body, opened, said, send

HISTORY = (HistorySection(filter=("private-",)), HistorySection(filter=("c", "d", "cache-"), size=100))
PATH = f"/ws/app/{KEY}"


@pytest.fixture
def site() -> Site:
    return Site(app_config(history=HISTORY))


def position(site: Site, offset: int, channel: str = "c") -> str:
    """Returns the position with this offset in the present epoch of a channel."""
    request = ReplayRequest(HistorySection(), 0)
    return str(Position(site.world.history.replay((APP, channel), request).position.epoch, offset))


def publish(site: Site, numbers: range, channel: str = "c", **more: str) -> None:
    for number in numbers:
        site.world.publish(channel, b"%d" % number, **more)


async def received(site: Site, path: str) -> list:
    """Returns the messages that a new client receives: of each message the channel and the data."""
    transport = await site.websocket(path)
    await turns()
    return [(one["channel"], one["data"]) for one in said_first(transport)]


def said_first(transport) -> list:
    rest = body(transport)
    transport.take()
    transport.write(rest)
    return said(transport)


async def test_a_client_with_a_position_gets_resumed_then_the_missed_messages_then_live_ones(site):
    publish(site, range(1, 6))
    transport = await site.websocket(f"{PATH}/c?since={position(site, 3)}")
    publish(site, range(6, 7))
    await turns()
    first, *rest = said_first(transport)
    data = {"recovered": True, "replayed": 2, "repeats": False, "position": position(site, 5)}
    assert first == {"event": "resumed", "channel": "c", "data": data}
    assert [(one["data"], one["#msg-pos"]) for one in rest] == [(n, position(site, n)) for n in (4, 5, 6)]


async def test_each_channel_resumes_at_its_own_position(site):
    publish(site, range(1, 4))
    publish(site, range(1, 4), "d")
    found = await received(site, f"{PATH}/d/private-x/c/d?since={position(site, 1, 'd')},-,{position(site, 2)},-")
    assert [(channel, data if isinstance(data, int) else data["recovered"]) for channel, data in found[:-1]] == [
        ("d", True),
        ("d", 2),
        ("d", 3),
        ("c", True),
        ("c", 3),
    ]


async def test_a_channel_that_is_not_permitted_is_an_error(site):
    """Without this frame, a client could not distinguish the channel from a channel without messages."""
    transport = await site.websocket(f"{PATH}/private-x/c?positions=1")
    publish(site, range(1, 2))
    await turns()
    assert [(one["event"], one["channel"]) for one in said_first(transport)] == [
        ("resumed", "c"),
        ("error", "private-x"),
        ("e", "c"),
    ]
    assert said(await opened(site, f"{PATH}/private-x/c")) == []


@pytest.mark.parametrize(("key", "code"), [("nobodys-key", 4001), (KEY, 1008)])
async def test_a_rejected_client_gets_a_close_code(site, key, code):
    """A browser does not show a script the status of a rejected handshake, so the script would connect again for ever."""
    assert close_of(body(await site.websocket(f"/ws/app/{key}/private-x?positions=1")))[0] == code


async def test_a_ping_is_answered(site):
    transport = await opened(site, f"{PATH}/c?positions=1")
    said(transport)
    await send(transport, text({"event": "ping"}))
    assert said(transport) == [{"event": "pong"}]


@pytest.mark.parametrize(
    "since",
    ["-", "x", "k:1,k:2", "k%00:1", "k:" + "9" * 30, "," * 10_000, "k:1," * 2000, "%ff", "k:1%0a"],
    ids=["none", "text", "two", "NUL", "10^30", "commas", "long", "bytes", "newline"],
)
async def test_a_malformed_since_is_no_error_of_the_connection(site, since):
    publish(site, range(1, 3))
    assert await received(site, f"{PATH}/c?since={since}") == [
        ("c", {"recovered": False, "reason": "unknown", "position": position(site, 2)})
    ]


async def test_a_position_of_another_epoch_is_state_lost(site):
    publish(site, range(1, 3))
    ((_, data),) = await received(site, f"{PATH}/c?since=other:1")
    assert data["reason"] == "state-lost"


async def test_the_latest_messages_follow_resumed_if_the_position_fails(site):
    publish(site, range(1, 6))
    found = await received(site, f"{PATH}/c?since=other:1&rewind=2")
    assert found == [
        ("c", {"recovered": False, "reason": "state-lost", "replayed": 2, "position": position(site, 5)}),
        ("c", 4),
        ("c", 5),
    ]


async def test_a_valid_position_counts_more_than_rewind(site):
    publish(site, range(1, 6))
    assert [data for _, data in await received(site, f"{PATH}/c?rewind=3&since={position(site, 4)}")][1:] == [5]


async def test_rewind_may_be_an_age(site):
    publish(site, range(1, 3))
    site.clock.advance(31)
    publish(site, range(3, 5))
    assert [data for _, data in await received(site, f"{PATH}/c?rewind=30s")][1:] == [3, 4]


@pytest.mark.parametrize("query", ["rewind=0", "rewind=101", "rewind=x", "positions=yes"])
async def test_a_malformed_query_is_closed_with_1008(site, query):
    code, reason = close_of(body(await site.websocket(f"{PATH}/c?{query}")))
    assert code == 1008
    assert reason.startswith(query.partition("=")[0])
    assert site.world.app.tenant.channels == {}
    assert site.metrics.connections["websocket"] == 0


async def test_a_channel_without_history_has_no_positions(site):
    transport = await site.websocket(f"{PATH}/other?positions=1")
    site.world.publish("other", b"1")
    await turns()
    first, message = said_first(transport)
    assert first["data"] == {"recovered": False, "reason": "no-history"}
    assert "#msg-pos" not in message


async def test_clients_with_and_without_positions_get_their_own_frames(site):
    """Without the parameters, a client's bytes are those of an app without history."""
    plain, other = await opened(site, f"{PATH}/c"), await opened(site, f"{PATH}/c?positions=1")
    without = Site()
    before = await opened(without, f"{PATH}/c")
    for one in (site, without):
        one.world.publish("c", b"1")
    await turns()
    assert plain.data == before.data
    assert said(other)[-1]["#msg-pos"] == position(site, 1)


async def test_a_gap_reaches_only_clients_with_positions(site):
    plain, other = await opened(site, f"{PATH}/c"), await opened(site, f"{PATH}/c?positions=1")
    lost = gap(APP, "c", "state-lost", Position("E", 7), *site.node.stamp())
    site.node.receive(lost)
    site.world.publish("c", b"1")
    await turns()
    assert said(other) == [
        {"event": "resumed", "channel": "c", "data": {"recovered": False, "reason": "state-lost", "position": "E:7"}},
        *[one for one in said(plain) if one.update({"#msg-pos": position(site, 1)}) is None],
    ]
    site.node.receive(lost)
    await turns()
    assert b"".join(plain.writes) == b""


async def test_a_client_publishes_and_resumes_with_its_own_messages(site):
    transport = await opened(site, f"{PATH}/c?positions=1")
    at = position(site, 0)
    await send(transport, text({"channel": "c", "event": "e", "data": 1}))
    assert said(transport) == []
    (resumed, own) = said_first(await site.websocket(f"{PATH}/c?since={at}"))
    assert resumed["data"]["recovered"]
    assert own["#msg-from"] in site.world.app.tenant.sessions


async def test_a_cached_event_comes_only_to_clients_that_did_not_recover(site):
    publish(site, range(1, 3), "cache-c")
    lost = said_first(await site.websocket(f"{PATH}/cache-c?positions=1"))
    assert [one["data"] for one in lost][1:] == [2]
    recovered = said_first(await site.websocket(f"{PATH}/cache-c?since={position(site, 1, 'cache-c')}"))
    assert [one["data"] for one in recovered][1:] == [2]
    assert frames(body(await site.websocket(f"{PATH}/cache-c?since={position(site, 2, 'cache-c')}")))[1:] == []


async def test_a_rewound_channel_gets_its_cached_event_once(site):
    publish(site, range(1, 4), "cache-c")
    assert [data for _, data in await received(site, f"{PATH}/cache-c?rewind=2")][1:] == [2, 3]


BIG = b'"%b"' % (b"x" * 60_000)


async def test_a_replay_that_does_not_fit_into_the_outbox_is_too_large(site):
    publish(site, range(1, 3))
    at = position(site, 0)
    _, transport = connection = site.connect()
    transport.unsent = site.config.server.outbox - 100
    connection[0].data_received(handshake(f"{PATH}/c?since={at}"))
    await turns()
    assert [one["data"] for one in said_first(transport)] == [
        {"recovered": False, "reason": "too-large", "position": position(site, 2)}
    ]


async def test_frames_that_wait_for_the_end_of_the_turn_fill_the_outbox_too(site):
    for name in ("c", "d"):
        for _ in range(4):
            site.world.publish(name, BIG)
    room: list[int] = []
    connection, transport = site.connect()

    def measure() -> int:
        room.append(len(transport.data))
        return 0

    transport.get_write_buffer_size = measure
    connection.data_received(handshake(f"{PATH}/c/d?since={position(site, 0)},{position(site, 0, 'd')}"))
    await turns()
    assert room[1] > 240_000, "the replay of the first channel was not written before the room was measured"


async def test_a_client_that_is_lost_while_it_subscribes_harms_nobody():
    site = Site(app_config(history=HISTORY), slow=True)
    publish(site, range(1, 3))
    site.world.broker.held.add("join")
    transport = await opened(site, f"{PATH}/c?rewind=5")
    transport.protocol.connection_lost(None)
    await site.world.broker.let_all()
    await turns()
    assert site.failures == []
    assert site.world.app.tenant.channels == {}
