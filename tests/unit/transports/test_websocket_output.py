"""The output of WebSocket connections: keepalive, the end, and slow consumers."""

import json

import pytest
from websockets.frames import Opcode

from push1st.config.model import ProtocolConfig, ServerConfig
from push1st.transports.admission import AUTHORIZE_SECONDS
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS
from push1st.transports.sweep import NEVER
from push1st.transports.websocket_output import CLOSE_SECONDS, PONG_SECONDS
from tests.support.frames import close, close_of, frames, masked, text, texts
from tests.support.http import handshake
from tests.support.loop import turns
from tests.support.node import app_config, token
from tests.support.transport import Site
from tests.support.websocket import PING, PUSHER, RAW, TIMEOUT, body, opened, said, send

# Keepalive


async def test_a_silent_client_is_pinged_by_frame_then_by_protocol_then_cut_off(site):
    transport = await opened(site)
    site.pass_seconds(TIMEOUT)
    await turns()
    assert frames(transport.take()) == [PING]
    site.pass_seconds(PONG_SECONDS // 2)
    await turns()
    assert [one["event"] for one in said(transport)] == ["pusher:ping"]
    site.pass_seconds(PONG_SECONDS // 2)
    await turns()
    assert close_of(transport.take())[0] == 4201
    assert site.metrics.cut_offs["silent"] == 1
    assert (site.metrics.closed, site.metrics.connection_seconds.sum) == ({("pusher", 4201): 1}, TIMEOUT + PONG_SECONDS // 2 * 2)
    assert site.world.app.tenant.sessions == {}
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted


async def test_a_raw_client_is_pinged_by_frame_only():
    site = Site(server=ServerConfig(websocket=ProtocolConfig(path="/ws/", activity_timeout=60)))
    transport = await opened(site, RAW)
    site.pass_seconds(60 + PONG_SECONDS // 2)
    await turns()
    assert frames(transport.take()) == [PING]
    site.pass_seconds(PONG_SECONDS // 2 + 1)
    await turns()
    assert close_of(transport.take())[0] == 4201


@pytest.mark.parametrize(
    "sign",
    [
        masked(Opcode.PONG, b""),
        masked(Opcode.PING, b""),
        text({"event": "pusher:pong"}),
        text("nonsense"),
        masked(Opcode.TEXT, b"x")[:3],
    ],
    ids=["pong", "ping", "pusher:pong", "nonsense", "half a frame"],
)
@pytest.mark.parametrize("after", [0, PONG_SECONDS // 2])
async def test_any_bytes_are_a_sign_of_life(site, sign, after):
    transport = await opened(site)
    for _ in range(3):
        site.pass_seconds(TIMEOUT + after)
        await send(transport, sign)
    transport.take()
    site.pass_seconds(TIMEOUT - 10)
    await turns()
    assert transport.data == b""


async def test_active_client_is_not_pinged(site):
    transport = await opened(site)
    for _ in range(10):
        site.pass_seconds(TIMEOUT // 2)
        await send(transport, masked(Opcode.PONG, b""))
    assert transport.data == b""


async def test_idle_client_is_visited_once_each_activity_timeout(site):
    transport = await opened(site)
    looks = 0
    for _ in range(10 * TIMEOUT):
        before = transport.protocol.due_at
        site.pass_seconds(1)
        looks += transport.protocol.due_at != before
        await send(transport, masked(Opcode.PONG, b""))
    assert looks <= 12


# Clients that must authorize themselves


@pytest.fixture
def strict():
    return Site(app_config(authorized_only=True))


async def test_client_that_is_not_authorised_in_time_is_disconnected(strict):
    transport = await opened(strict)
    await send(transport, text({"event": "pusher:subscribe", "data": {"channel": "c"}}))
    strict.pass_seconds(AUTHORIZE_SECONDS - 1)
    assert not strict.metrics.cut_offs
    strict.pass_seconds(2)
    assert close_of(transport.data)[0] == 4009


async def test_a_client_that_does_is_kept(strict):
    transport = await opened(strict)
    (session,) = strict.world.app.tenant.sessions.values()
    data = {"channel": "private-c", "auth": token(session, "private-c")}
    await send(transport, text({"event": "pusher:subscribe", "data": data}))
    strict.pass_seconds(TIMEOUT - 20)
    assert not strict.metrics.cut_offs


async def test_raw_client_is_authorised_by_its_connection(strict):
    await opened(strict, RAW)
    strict.pass_seconds(TIMEOUT)
    assert not strict.metrics.cut_offs


# The end


async def test_client_that_ends_its_side_is_disconnected(site):
    transport = await opened(site, RAW)
    connection = transport.protocol
    connection.data_received(text({"channel": "c", "event": "e", "data": 1}))
    assert connection.eof_received() is False
    assert site.metrics.events_in["websocket"] == 1
    assert site.world.app.tenant.sessions == {}


async def test_a_client_that_closes_is_answered_and_the_socket_closed(site):
    transport = await opened(site)
    await send(transport, close(1000, "bye"))
    assert close_of(transport.data)[0] == 1000
    assert transport.closed
    assert site.world.app.tenant.sessions == {}


@pytest.mark.parametrize(
    ("sent", "answered"), [(b"", 1000), ((1001).to_bytes(2, "big"), 1001), ((4321).to_bytes(2, "big"), 4321)]
)
async def test_a_close_is_answered_with_its_code(site, sent, answered):
    transport = await opened(site)
    await send(transport, masked(Opcode.CLOSE, sent))
    assert close_of(transport.data)[0] == answered


async def test_frames_after_a_close_are_not_read(site):
    transport = await opened(site)
    await send(transport, close() + text({"event": "pusher:ping"}))
    assert len(frames(transport.data)) == 1


async def test_pending_frames_are_written_before_the_close(site):
    transport = await opened(site, RAW)
    site.world.publish("c", b"1")
    transport.protocol.close(4009, "terminated")
    site.world.publish("c", b"2")
    await turns()
    (first, second) = frames(transport.data)
    assert json.loads(first[1])["data"] == 1
    assert second == (Opcode.CLOSE, (4009).to_bytes(2, "big") + b"terminated")


async def test_client_that_answers_the_close_is_released(site):
    transport = await opened(site)
    transport.protocol.close(4009, "terminated")
    assert not transport.is_closing()
    await send(transport, close(4009))
    assert transport.closed
    assert len(frames(transport.data)) == 2


@pytest.mark.parametrize("code", [4000, 4099, 4100, 4200, 4299])
async def test_a_pusher_client_gets_an_error_frame_before_a_close_of_pushers_codes(site, code):
    transport = await opened(site)
    transport.protocol.close(code, 'no "more"')
    assert texts(transport.data) == [{"event": "pusher:error", "data": {"code": code, "message": 'no "more"'}}]
    assert close_of(transport.data) == (code, 'no "more"')


@pytest.mark.parametrize("code", [1000, 1008, 1011, 3999, 4300, 4321])
async def test_no_error_frame_precedes_a_close_with_another_code(site, code):
    transport = await opened(site)
    transport.protocol.close(code, "no more")
    assert len(frames(transport.data)) == 1


async def test_a_raw_client_gets_no_error_frame_before_a_close(site):
    transport = await opened(site, RAW)
    transport.protocol.close(4201, "no answer to a ping")
    assert len(frames(transport.data)) == 1


async def test_the_close_of_a_client_is_answered_without_an_error_frame(site):
    transport = await opened(site)
    await send(transport, close(4001))
    assert len(frames(transport.data)) == 1


async def test_a_client_that_does_not_answer_the_close_is_destroyed(site):
    transport = await opened(site)
    transport.protocol.close(4009, "terminated")
    site.pass_seconds(CLOSE_SECONDS - 1)
    assert not transport.aborted
    site.pass_seconds(2)
    assert transport.aborted


async def test_client_that_sends_on_after_the_close_is_destroyed(site):
    transport = await opened(site)
    transport.protocol.close(4009, "terminated")
    transport.take()
    for _ in range(CLOSE_SECONDS + 1):
        await send(transport, text({"event": "pusher:ping"}), masked(Opcode.PING, b""))
        site.pass_seconds(1)
    assert transport.aborted
    assert transport.data == b""


VIOLATIONS = {
    1002: masked(Opcode.CONT, b"x"),
    1003: masked(Opcode.BINARY, b"x"),
    1007: masked(Opcode.TEXT, b"\xff"),
    1009: b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"mask",
}


@pytest.mark.parametrize(("code", "sent"), VIOLATIONS.items(), ids=map(str, VIOLATIONS))
async def test_a_violation_closes_the_socket_for_writing_after_the_close_frame(site, code, sent):
    transport = await opened(site)
    await send(transport, sent)
    assert close_of(transport.take())[0] == code
    assert transport.ended
    assert not transport.is_closing()


async def test_bytes_after_a_violation_are_discarded_until_the_client_ends(site):
    transport = await opened(site)
    await send(transport, VIOLATIONS[1002])
    transport.take()
    await send(transport, text({"event": "pusher:ping"}), close(1000), masked(Opcode.CONT, b"x"))
    assert transport.data == b""
    assert not transport.is_closing()
    assert transport.protocol.eof_received() is False


async def test_a_client_that_stays_after_a_violation_is_closed_then_destroyed(site):
    transport = await opened(site)
    await send(transport, VIOLATIONS[1002])
    site.pass_seconds(LINGER_SECONDS + 1)
    assert transport.closed
    assert not transport.aborted
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted


async def test_a_client_that_sends_on_after_a_violation_is_destroyed(site):
    transport = await opened(site)
    await send(transport, VIOLATIONS[1002])
    await send(transport, *[b"x" * (1 << 20)] * (LINGER_BYTES >> 20))
    assert transport.aborted
    await send(transport, b"x")
    assert site.failures == []


async def test_a_violation_in_place_of_the_answer_to_a_close_ends_the_wait(site):
    transport = await opened(site)
    transport.protocol.close(4009, "terminated")
    await send(transport, VIOLATIONS[1002])
    assert close_of(transport.data) == (4009, "terminated")
    assert transport.ended


async def test_a_tls_connection_without_half_close_lingers_and_is_closed(site):
    connection, transport = site.connect(secure=True)
    connection.data_received(handshake(PUSHER))
    await turns()
    await send(transport, VIOLATIONS[1002])
    assert close_of(body(transport))[0] == 1002
    assert not transport.is_closing()
    site.pass_seconds(LINGER_SECONDS + 1)
    assert transport.closed


async def test_a_defect_closes_the_socket_for_writing_too(site, monkeypatch):
    transport = await opened(site)
    monkeypatch.setattr(transport.protocol.codec, "decode", lambda _: 1 / 0)
    await send(transport, text("x"))
    assert close_of(transport.data)[0] == 1011
    assert transport.ended


async def test_bytes_after_a_violation_are_not_logged_as_a_defect(site):
    """The second of two chunks has a violation, and the client sends on while the server closes the connection."""
    transport = await opened(site)
    await send(transport, b"\xc1", b"\x80\0\0\0\0", text("x"), text("y"))
    assert close_of(transport.data)[0] == 1002
    assert site.failures == []
    assert site.metrics.cut_offs["internal-error"] == 0


async def test_a_connection_that_is_lost_leaves_everything(site):
    transport = await opened(site, RAW)
    connection = transport.protocol
    site.world.publish("c", b"1")
    connection.connection_lost(ConnectionResetError())
    await turns()
    assert site.context.open == set()
    assert site.metrics.connections["websocket"] == 0
    assert site.world.app.tenant.sessions == {}
    assert site.world.app.tenant.channels == {}
    assert connection.due_at == NEVER


async def test_lost_connection_with_frames_of_its_own_does_not_stop_others(site):
    """A client publishes after a message of the API, and its connection is lost in the same turn."""
    one, two = await opened(site, RAW), await opened(site, RAW)
    site.world.publish("c", b"1")
    one.protocol.process(text({"channel": "c", "event": "e", "data": 2}))
    one.protocol.connection_lost(None)
    site.world.publish("c", b"3")
    await turns()
    site.world.publish("c", b"4")
    await turns()
    assert [one["data"] for one in said(two)] == [1, 2, 3, 4]


async def test_connections_are_counted_once_in_and_once_out(site):
    transport = await opened(site)
    assert (site.metrics.connections["pusher"], site.metrics.opened["pusher"]) == (1, 1)
    await send(transport, close())
    transport.protocol.connection_lost(None)
    assert (site.metrics.connections["pusher"], site.metrics.opened["pusher"]) == (0, 1)


async def test_duration_of_a_connection_does_not_depend_on_the_ticks_of_the_sweep(site):
    site.clock.advance(0.4)
    transport = await opened(site)
    site.clock.advance(0.603)
    transport.protocol.connection_lost(None)
    await turns()
    assert site.metrics.connection_seconds.sum == pytest.approx(0.603)


async def test_stopping_server_closes_clients_with_4200(site):
    transport = await opened(site)
    transport.protocol.leave(4200, "Server is stopping, reconnect")
    transport.protocol.leave(4200, "Server is stopping, reconnect")
    assert frames(transport.data) == [(Opcode.CLOSE, (4200).to_bytes(2, "big") + b"Server is stopping, reconnect")]


# Slow consumers


async def test_the_outbox_has_the_configured_bound():
    site = Site(server=ServerConfig(outbox=12_345))
    assert (await opened(site)).high == 12_345


async def test_slow_consumer_is_disconnected_with_a_code_and_others_stay(site):
    slow, other = await opened(site, RAW), await opened(site, RAW)
    slow.bound = 100
    for _ in range(3):
        site.world.publish("c", b'"' + b"x" * 100 + b'"')
    site.world.publish("d", b"1")
    await turns()
    assert close_of(slow.data)[0] == 1008
    assert site.metrics.cut_offs["slow"] == 1
    assert len(said(other)) == 3
    assert site.world.publish("c", b"1") == 1
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert slow.aborted


async def test_slow_pusher_client_gets_a_code_to_reconnect_later(site):
    slow = await opened(site)
    await send(slow, text({"event": "pusher:subscribe", "data": {"channel": "c"}}))
    slow.take()
    slow.bound = 10
    site.world.publish("c", b'"x"')
    await turns()
    assert close_of(slow.data)[0] == 4100


async def test_all_may_be_slow_at_once(site):
    clients = [await opened(site, RAW) for _ in range(5)]
    for one in clients:
        one.bound = 10
    site.world.publish("c", b'"x"')
    await turns()
    assert [close_of(one.data)[0] for one in clients] == [1008] * 5
    assert site.world.app.tenant.channels == {}
    assert site.failures == []


async def test_slow_consumer_that_ends_before_the_cut_is_not_closed_again(site):
    slow = await opened(site, RAW)
    slow.bound = 10
    site.world.publish("c", b'"x"')
    site.world.fanout.flush()
    slow.protocol.connection_lost(None)
    await turns()
    assert site.metrics.cut_offs["slow"] == 0
