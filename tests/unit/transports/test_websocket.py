"""The input of WebSocket connections on a fake socket: messages, waiting commands, and bounds of cost."""

import pytest
from websockets.frames import Opcode

from push1st.core.session import CHARGE_SECONDS, MAX_CHARGES, MAX_WAITING_COMMANDS
from push1st.transports.sweep import NEVER
from push1st.transports.turn import MAX_WAITING
from push1st.transports.websocket import MAX_FRAMES, SMALL_FRAGMENT
from push1st.transports.websocket_output import PONG_SECONDS
from tests.support.frames import close, close_of, frames, masked, text
from tests.support.http import handshake
from tests.support.loop import turns
from tests.support.node import APP, KEY, app_config
from tests.support.transport import Site
from tests.support.websocket import RAW, TIMEOUT, body, opened, said, send

# Messages


async def test_a_message_published_reaches_both_protocols(site):
    pusher, raw = await opened(site), await opened(site, RAW)
    await send(pusher, text({"event": "pusher:subscribe", "data": {"channel": "c"}}))
    pusher.take()
    assert site.world.publish("c", b'{"a":1}') == 2
    await turns()
    assert [one["data"] for one in said(pusher)] == ['{"a":1}']
    assert [one["data"] for one in said(raw)] == [{"a": 1}]


async def test_a_bad_message_is_answered_and_the_client_stays(site):
    pusher, raw = await opened(site), await opened(site, RAW)
    await send(pusher, text("no JSON"))
    await send(raw, text("[]"))
    assert [one["event"] for one in said(pusher)] == ["pusher:error"]
    assert [one["event"] for one in said(raw)] == ["error"]
    assert not pusher.is_closing()
    assert not raw.is_closing()


async def test_invalid_json_ends_a_raw_connection(site):
    raw = await opened(site, RAW)
    await send(raw, text("no JSON"))
    assert close_of(raw.data)[0] == 1002


async def test_a_message_over_the_limit_ends_the_connection(site):
    transport = await opened(site)
    most = site.context.max_message(site.config.server.pusher, site.world.app.config.limits)
    await send(transport, text("x" * (most + 1)))
    assert close_of(transport.data)[0] == 1009


@pytest.mark.parametrize("path", [f"/app/{KEY}?protocol=7", f"/ws/app/{KEY}/c"])
async def test_a_message_has_the_limit_of_its_own_app(path):
    site = Site(app_config(), app_config({"payload": 1_000_000}, id="big", key="big-key"))
    transport = await site.websocket(path)
    transport.take()
    await send(transport, text("x" * 100_000))
    assert close_of(transport.data) == (1009, "a message has at most 65400 bytes")
    other = await site.websocket(path.replace(KEY, "big-key"))
    other.take()
    await send(other, text({"event": "e", "channel": "c", "data": "x" * 900_000}))
    assert not other.closed


async def test_full_event_fits_with_any_escapes(site):
    raw = await opened(site, RAW)
    await opened(site, RAW)
    data = "\\u0061" * 10_240
    await send(raw, text(f'{{"channel":"c","event":"e","data":"{data}"}}'))
    assert raw.data == b""
    assert site.metrics.events_in["websocket"] == 1


async def test_a_binary_message_ends_the_connection(site):
    transport = await opened(site)
    await send(transport, masked(Opcode.BINARY, b"x"))
    assert close_of(transport.data)[0] == 1003


@pytest.mark.parametrize("cut", [None, 0, 10])
async def test_a_binary_message_of_a_raw_client_is_read_as_text(site, cut):
    raw, other = await opened(site, RAW), await opened(site, RAW)
    frame = b'{"channel":"c","event":"e","data":"\xd0\xb6"}'
    if cut is None:
        await send(raw, masked(Opcode.BINARY, frame))
    else:
        await send(raw, masked(Opcode.BINARY, frame[:cut], fin=False) + masked(Opcode.CONT, frame[cut:]))
    assert [one["data"] for one in said(other)] == ["ж"]


@pytest.mark.parametrize(("payload", "code"), [(b"\x01\x02", 1002), (b"\xff", 1007)])
async def test_a_binary_message_that_holds_no_json_ends_a_raw_connection(site, payload, code):
    raw = await opened(site, RAW)
    await send(raw, masked(Opcode.BINARY, payload))
    assert close_of(raw.data)[0] == code


@pytest.mark.parametrize("payload", [b"", b"abc", b"x" * 125])
async def test_a_ping_frame_is_answered_with_its_payload(site, payload):
    transport = await opened(site)
    await send(transport, masked(Opcode.PING, payload))
    assert frames(transport.data) == [(Opcode.PONG, payload)]


async def test_an_idle_connection_has_no_decoder(site):
    transport = await opened(site, RAW)
    connection = transport.protocol
    message = text({"channel": "c", "event": "e", "data": "x" * 200})
    for piece in (message[:1], message[1:100], message[100:] + message[:5]):
        await send(transport, piece)
        assert connection._decoder is not None
    await send(transport, message[5:])
    assert connection._decoder is None


async def test_a_ping_between_fragments_is_answered_before_the_message(site):
    transport = await opened(site)
    whole = '{"event":"pusher:ping"}'
    await send(transport, masked(Opcode.TEXT, whole[:5], fin=False), masked(Opcode.PING, "p"), masked(Opcode.CONT, whole[5:]))
    assert [opcode for opcode, _ in frames(transport.data)] == [Opcode.PONG, Opcode.TEXT]


async def test_bytes_in_are_counted(site):
    transport = await opened(site)
    await send(transport, b"x" * 7)
    assert site.metrics.bytes_in == 7


async def test_a_defect_ends_this_connection_without_details(site, monkeypatch):
    transport, other = await opened(site), await opened(site)

    def broken(_codec, _text):
        raise ValueError("a secret of ours")

    monkeypatch.setattr(type(transport.protocol.codec), "decode", broken)
    await send(transport, text("{}"))
    assert close_of(transport.data) == (1011, "internal error")
    assert isinstance(site.failures[0], ValueError)
    assert site.metrics.cut_offs["internal-error"] == 1
    assert not other.is_closing()


# A slow broker


async def test_raw_client_that_ends_while_subscribing_leaves_no_entry():
    site = Site(slow=True)
    site.world.broker.held = {"subscribe"}
    transport = await site.websocket(f"/ws/app/{KEY}/a/b")
    transport.protocol.connection_lost(None)
    await site.world.broker.let_all()
    assert site.world.app.tenant.channels == {}
    assert await site.world.memory.channels(APP) == []


async def test_the_answer_to_a_handshake_does_not_wait_for_the_broker():
    site = Site(slow=True)
    site.world.broker.held = {"subscribe"}
    assert body(await site.websocket(RAW)) == b""
    await site.world.broker.let_all()
    assert site.world.publish("c", b"1") == 1


def subscribe(number: int) -> bytes:
    return text({"event": "pusher:subscribe", "data": {"channel": f"c{number}"}})


async def test_a_client_may_subscribe_to_any_number_of_channels_at_once():
    site = Site(slow=True)
    transport = await opened(site)
    site.world.broker.held = {"subscribe"}
    count = MAX_WAITING_COMMANDS + 500
    await send(transport, b"".join(map(subscribe, range(count))))
    await turns(100)
    assert not transport.reading
    assert len(transport.protocol._session.waiting) <= MAX_WAITING
    site.world.broker.held = set()
    await site.world.broker.let_all()
    await turns(100)
    assert [one["channel"] for one in said(transport)] == [f"c{number}" for number in range(count)]
    assert transport.reading


async def test_client_with_waiting_commands_does_not_count_as_silent():
    site = Site(slow=True)
    transport = await opened(site)
    site.world.broker.held = {"subscribe"}
    await send(transport, b"".join(map(subscribe, range(2 * MAX_WAITING))))
    await turns(10)
    site.pass_seconds(TIMEOUT + PONG_SECONDS + 1)
    assert not frames(transport.take())
    await site.world.broker.let_all()


async def test_a_draining_server_reads_a_client_whose_commands_wait():
    site = Site(slow=True)
    transport = await opened(site)
    site.world.broker.held = {"subscribe"}
    await send(transport, b"".join(map(subscribe, range(2 * MAX_WAITING))))
    await turns(10)
    transport.protocol.leave(4200, "bye")
    await turns(10)
    assert transport.reading
    await send(transport, close(4200))
    assert transport.closed
    await site.world.broker.let_all()


@pytest.mark.parametrize("ends", ["with a close frame", "without one"])
async def test_messages_that_wait_at_the_end_of_a_connection_are_published(ends):
    site = Site(slow=True)
    publishing, other = await opened(site, RAW), await opened(site, RAW)
    site.world.broker.held = {"publish"}
    count = 5 * MAX_FRAMES
    data = b"".join(text({"channel": "c", "event": "e", "data": number}) for number in range(count))
    if ends == "with a close frame":
        await send(publishing, data + close())
    else:
        publishing.protocol.data_received(data)
        assert publishing.protocol.eof_received() is True
    await turns(10)
    assert len(site.world.app.tenant.sessions) == 2
    await site.world.broker.let_all()
    await turns(20)
    assert [one["data"] for one in said(other)] == list(range(count))
    assert publishing.closed
    assert list(site.world.app.tenant.sessions) == [other.protocol._session.id]


@pytest.mark.parametrize("waits", [False, True])
async def test_messages_of_a_lost_client_are_published(waits):
    site = Site(slow=True)
    publishing, other = await opened(site, RAW), await opened(site, RAW)
    if waits:
        site.world.broker.held = {"publish"}
    count = 5 * MAX_FRAMES
    connection = publishing.protocol
    connection.data_received(b"".join(text({"channel": "c", "event": "e", "data": number}) for number in range(count)))
    await turns(1)
    publishing.take()
    publishing.abort()
    connection.connection_lost(BrokenPipeError())
    assert connection in site.context.open
    if not waits:
        site.world.publish("c", b'"for the lost client"')
    await turns(10)
    await site.world.broker.let_all()
    await turns(20)
    assert [one["data"] for one in said(other) if one["data"] != "for the lost client"] == list(range(count))
    assert publishing.writes == publishing.late == []
    assert list(site.world.app.tenant.sessions) == [other.protocol._session.id]
    assert connection not in site.context.open
    assert connection.due_at == NEVER
    assert site.failures == []


async def test_messages_before_the_end_of_a_tls_stream_are_published(site):
    _, other = await opened(site, RAW), await opened(site, RAW)
    http, publishing = site.connect(secure=True)
    http.data_received(handshake(RAW))
    await turns()
    count = 5 * MAX_FRAMES
    connection = publishing.protocol
    connection.data_received(b"".join(text({"channel": "c", "event": "e", "data": number}) for number in range(count)))
    assert connection.eof_received() is False
    publishing.close()
    connection.connection_lost(None)
    await turns(20)
    assert [one["data"] for one in said(other)] == list(range(count))
    assert len(site.world.app.tenant.sessions) == 2
    assert connection not in site.context.open
    assert (publishing.late, site.failures) == ([], [])


@pytest.mark.parametrize("how", ["leave", "abort", "flood"])
async def test_lost_client_with_a_backlog_can_be_ended(site, how):
    transport = await opened(site)
    connection = transport.protocol
    connection.data_received(masked(Opcode.PING, b"") * (100 * MAX_CHARGES if how == "flood" else 10 * MAX_FRAMES))
    await turns(1)
    connection.connection_lost(ConnectionResetError())
    assert connection in site.context.open
    if how == "flood":
        await turns(500)
    else:
        connection.leave(4200, "bye") if how == "leave" else connection.abort()
    assert connection not in site.context.open
    assert site.world.app.tenant.sessions == {}
    await turns(5)
    assert connection.due_at == NEVER
    assert site.failures == []


async def test_a_client_that_is_lost_while_its_commands_wait_is_forgotten():
    site = Site(slow=True)
    transport = await opened(site)
    site.world.broker.held = {"subscribe"}
    await send(transport, b"".join(map(subscribe, range(2 * MAX_WAITING))))
    transport.protocol.connection_lost(None)
    await site.world.broker.let_all()
    await turns(10)
    assert site.world.app.tenant.sessions == {}
    assert site.world.app.tenant.channels == {}
    assert site.failures == []


# Bounds of the cost of one client for others


async def test_a_flood_is_read_in_slices_and_others_are_served_between(site):
    flooding, other = await opened(site), await opened(site)
    flooding.protocol.data_received(masked(Opcode.PING, b"") * 10 * MAX_FRAMES)
    other.protocol.data_received(text({"event": "pusher:ping", "data": {}}))
    site.context.turn.catch_up()
    assert len(frames(flooding.take())) == MAX_FRAMES
    assert not flooding.reading
    assert [one["event"] for one in said(other)] == ["pusher:pong"]
    await turns(3)
    assert len(frames(flooding.take())) == 9 * MAX_FRAMES
    assert flooding.reading


async def test_messages_of_a_backlog_keep_their_order(site):
    publishing, other = await opened(site, RAW), await opened(site, RAW)
    count = 3 * MAX_FRAMES + 1
    data = b"".join(text({"channel": "c", "event": "e", "data": number}) for number in range(count))
    publishing.protocol.data_received(data[:5000])
    publishing.protocol.data_received(data[5000:])
    await turns(8)
    assert [one["data"] for one in said(other)] == list(range(count))


async def test_messages_before_the_end_are_published_in_slices(site):
    publishing, other = await opened(site, RAW), await opened(site, RAW)
    count = 3 * MAX_FRAMES
    publishing.protocol.data_received(b"".join(text({"channel": "c", "event": "e", "data": n}) for n in range(count)))
    assert publishing.protocol.eof_received() is True
    assert site.metrics.events_in["websocket"] == MAX_FRAMES
    await turns(8)
    assert [one["data"] for one in said(other)] == list(range(count))
    assert publishing.closed
    assert len(site.world.app.tenant.sessions) == 1


async def test_a_backlog_of_many_slices_is_kept_as_it_is(site):
    transport = await opened(site)
    transport.protocol.data_received(masked(Opcode.PING, b"") * 5 * MAX_FRAMES)
    site.context.turn.catch_up()
    kept = transport.protocol._events
    assert transport.protocol.process(b"")
    assert transport.protocol._events is kept


@pytest.mark.parametrize(
    "frame",
    [
        masked(Opcode.PING, b""),
        masked(Opcode.PONG, b""),
        masked(Opcode.CONT, b"", fin=False),
        masked(Opcode.CONT, b"x", fin=False),
        text({"event": "pusher:ping", "data": {}}),
        text({"event": "pusher:unsubscribe", "data": {"channel": "c"}}),
        text({"event": "pusher:subscribe", "data": {"channel": "c"}}),
    ],
    ids=["pings", "pongs", "empty fragments", "tiny fragments", "protocol pings", "unsubscribing", "subscribing again"],
)
async def test_an_endless_flood_is_disconnected(site, frame):
    transport = await opened(site)
    await send(transport, text({"event": "pusher:subscribe", "data": {"channel": "c"}}), masked(Opcode.TEXT, b"", fin=False))
    if frame[0] & 0xF == Opcode.TEXT:
        await send(transport, masked(Opcode.CONT, b"{}"))
    transport.take()
    allowed = MAX_CHARGES * CHARGE_SECONDS
    await send(transport, frame * (allowed - 1))
    await turns(400)
    assert site.metrics.cut_offs["flood"] == 0
    await send(transport, frame * 3)
    assert close_of(transport.data)[0] == 1008
    assert site.metrics.cut_offs["flood"] == 1


async def test_client_may_send_any_number_of_pings_over_time(site):
    transport = await opened(site)
    for _ in range(2 * CHARGE_SECONDS):
        site.clock.advance(1)
        await send(transport, masked(Opcode.PING, b"") * MAX_CHARGES)
    assert site.metrics.cut_offs["flood"] == 0


async def test_large_fragments_are_no_flood(site):
    transport = await opened(site)
    for _ in range(MAX_CHARGES * CHARGE_SECONDS // 10 + 1):
        await send(
            transport,
            masked(Opcode.TEXT, b'{"event":"pusher:ping","data":{}', fin=False)
            + masked(Opcode.CONT, b" " * SMALL_FRAGMENT, fin=False) * 20
            + masked(Opcode.CONT, b"}"),
        )
    assert site.metrics.cut_offs["flood"] == 0


# Metrics


@pytest.mark.parametrize(
    ("end", "code"),
    [(close(1000), 1000), (close(4999), "other"), (None, 1006), (b"\xff\0", 1002)],
    ids=["1000", "4999", "none", "1002"],
)
async def test_the_end_of_a_connection_is_counted_by_its_code(site, end, code):
    transport = await opened(site)
    site.pass_seconds(70)
    if end is not None:
        await send(transport, end)
    transport.protocol.connection_lost(None)
    await turns()
    assert site.metrics.closed == {("pusher", code): 1}
    assert (site.metrics.connections["pusher"], site.metrics.connection_seconds.sum) == (0, 70)


async def test_bytes_that_a_client_does_not_read_are_counted(site):
    slow, _ = await opened(site), await opened(site)
    slow.unsent = 1000
    assert await site.context.unsent() == (1000, 1)
