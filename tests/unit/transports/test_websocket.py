"""WebSocket connections on a fake socket: answers to handshakes, keepalive, the end, slow consumers."""

import base64
import hashlib
import json
from urllib.parse import quote

import jwt
import pytest
from websockets.frames import Opcode

from push1st import auth
from push1st.config.model import Networks, ProtocolConfig, ServerConfig
from push1st.core.session import CHARGE_SECONDS, MAX_CHARGES, MAX_WAITING_COMMANDS
from push1st.transports.admission import AUTHORIZE_SECONDS, origin_allowed
from push1st.transports.context import LINGER_BYTES, LINGER_SECONDS
from push1st.transports.sweep import NEVER
from push1st.transports.turn import MAX_WAITING
from push1st.transports.websocket import MAX_FRAMES, SMALL_FRAGMENT
from push1st.transports.websocket_output import CLOSE_SECONDS, PONG_SECONDS
from tests.support.frames import close, close_of, frames, masked, text, texts
from tests.support.http import Answer, handshake, request
from tests.support.loop import WALL, turns
from tests.support.node import APP, KEY, SECRET, app_config, token
from tests.support.transport import Site, Transport

PUSHER = f"/app/{KEY}?protocol=7&client=js&version=8.6.0&flash=false"
RAW = f"/ws/app/{KEY}/c"
TIMEOUT = 120
PING = (Opcode.PING, b"")


def body(transport: Transport) -> bytes:
    """Returns the bytes after the answer to the handshake."""
    head, separator, rest = transport.data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert separator
    return rest


async def opened(site: Site, path: str = PUSHER, *headers: str) -> Transport:
    """Opens a connection and reads its first frames."""
    transport = await site.websocket(path, *headers)
    transport.take()
    return transport


async def send(transport: Transport, *data: bytes) -> None:
    for one in data:
        transport.protocol.data_received(one)
    await turns()


def said(transport: Transport) -> list:
    """Returns the text messages since the last call."""
    return texts(transport.take())


# The handshake


async def test_the_answer_proves_that_the_key_was_read(site):
    transport = await site.websocket(PUSHER, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in transport.data  # RFC 6455 §1.3


async def test_the_answer_and_the_first_frame_leave_in_one_write(site):
    transport = await site.websocket(PUSHER)
    assert len(transport.writes) == 1


@pytest.mark.parametrize("path", ["/app/", "/pusher/app/"])
async def test_pusher_client_gets_its_socket_id(site, path):
    transport = await site.websocket(f"{path}{KEY}?protocol=7")
    (first,) = texts(body(transport))
    assert first["event"] == "pusher:connection_established"
    assert json.loads(first["data"]) == {"socket_id": "7.1", "activity_timeout": TIMEOUT}


async def test_a_raw_client_gets_no_welcome(site):
    assert body(await site.websocket(RAW)) == b""


async def test_frames_after_the_handshake_in_one_chunk_are_read(site):
    transport = await site.ask(handshake(PUSHER) + text({"event": "pusher:ping", "data": {}}))
    assert [one["event"] for one in texts(body(transport))] == ["pusher:connection_established", "pusher:pong"]


async def test_message_published_in_the_turn_of_the_handshake_follows_its_answer(site):
    """This holds even if the direct reply of another subscriber flushes the channel."""
    other = await opened(site, RAW)
    connection, transport = site.connect()
    connection.data_received(handshake(RAW))
    site.connect()[0].data_received(request("POST", f"/apps/{APP}/events", '{"name":"e","channel":"c","data":1}'))
    other.protocol.data_received(text({"no": "message"}))
    await turns()
    assert transport.data.startswith(b"HTTP/1.1 101 ")
    assert [one["data"] for one in texts(body(transport))] == [1]


PUSHER_ENDS = {
    "an unknown app": ("/app/unknown?protocol=7", 4001),
    "no app": ("/app/?protocol=7", 4005),
    "a longer path": (f"/app/{KEY}/more?protocol=7", 4005),
    "a version that is no number": (f"/app/{KEY}?protocol=seven", 4006),
    "a negative version": (f"/app/{KEY}?protocol=-7", 4006),
    "a version with a point": (f"/app/{KEY}?protocol=7.0", 4006),
    "an old version": (f"/app/{KEY}?protocol=3", 4007),
    "a version of the future": (f"/app/{KEY}?protocol=8", 4007),
    "a huge version": (f"/app/{KEY}?protocol={10**8}", 4007),
}


@pytest.mark.parametrize(("path", "code"), PUSHER_ENDS.values(), ids=PUSHER_ENDS.keys())
async def test_a_rejected_pusher_handshake_is_answered_with_an_error_frame_and_a_close_of_the_same_code(site, path, code):
    transport = await site.websocket(path)
    (error,) = texts(body(transport))
    assert (error["event"], error["data"]["code"]) == ("pusher:error", code)
    assert close_of(body(transport)) == (code, error["data"]["message"])
    assert len(frames(body(transport))) == 2
    assert not transport.closed
    assert site.metrics.refusals[str(code)] == 1
    assert site.metrics.connections["pusher"] == 0


@pytest.mark.parametrize("version", [4, 5, 6, 7])
async def test_versions_4_to_7_are_spoken(site, version):
    assert texts(body(await site.websocket(f"/app/{KEY}?protocol={version}")))


@pytest.mark.parametrize(
    "path",
    [
        f"/app/{KEY}",
        f"/app/{KEY}?protocol=",
        f"/app/{KEY}/?protocol=7",
        f"/app/{KEY}?x=%20&protocol=7",
        f"/app/{KEY}?protocol=7&version=odd",
    ],
)
async def test_unusual_valid_paths_are_accepted(site, path):
    assert texts(body(await site.websocket(path)))


@pytest.mark.parametrize(
    ("changes", "code", "status"),
    [({"enable": False}, 4003, 403), ({"limits": {"connections": 0}, "origins": ("http://a",)}, 4009, 403)],
)
async def test_limits_of_the_app_apply_to_both_protocols(changes, code, status):
    site = Site(app_config(**changes))
    transport = await site.websocket(PUSHER, "Origin: http://evil")
    assert close_of(body(transport))[0] == code
    answer = Answer((await site.ask(handshake(RAW, "Origin: http://evil"))).data)
    assert answer.status == status


async def test_quota_and_capacity_have_different_close_codes():
    site = Site(app_config({"connections": 1}))
    await opened(site)
    assert close_of(body(await site.websocket(PUSHER)))[0] == 4004
    assert Answer((await site.ask(handshake(RAW))).data).status == 503


async def test_draining_server_rejects_connections(site):
    site.node.draining = True
    assert close_of(body(await site.websocket(PUSHER)))[0] == 4100
    assert Answer((await site.ask(handshake(RAW))).data).status == 503


async def test_a_whitelist_binds_its_protocol():
    nets = Networks.parse(["10.0.0.0/8"])
    site = Site(server=ServerConfig(pusher=ProtocolConfig(path="/pusher/", whitelist=nets)))
    assert close_of(body(await site.websocket(PUSHER)))[0] == 4009
    assert texts(body(await site.websocket(PUSHER, peer=("10.1.1.1", 1))))
    assert texts(body(await site.websocket(PUSHER, peer="")))
    assert body(await site.websocket(RAW)) == b""


async def test_a_protocol_that_is_off_has_no_path():
    site = Site(server=ServerConfig(proto=frozenset({"websocket"})))
    assert Answer((await site.ask(handshake(PUSHER))).data).status == 404
    site = Site(server=ServerConfig(proto=frozenset({"pusher"})))
    assert Answer((await site.ask(handshake(RAW))).data).status == 404


async def test_paths_can_be_configured():
    server = ServerConfig(
        app_path="/application/", pusher=ProtocolConfig(path="/p/", activity_timeout=20), websocket=ProtocolConfig(path="/w/")
    )
    site = Site(server=server)
    for path in (f"/application/{KEY}?protocol=7", f"/p/application/{KEY}?protocol=7"):
        (first,) = texts(body(await site.websocket(path)))
        assert json.loads(first["data"])["activity_timeout"] == 20
    assert body(await site.websocket(f"/w/application/{KEY}/c")) == b""


# Raw clients


async def answer_without_a_user(site, path):
    """Returns the reply to a presence subscription whose `channel_data` names no user."""
    transport = await opened(site, f"{path}?protocol=7")
    (session,) = site.world.app.tenant.sessions.values()
    data = '{"user-id": 1}'
    wanted = {"channel": "presence-c", "auth": token(session, "presence-c", data), "channel_data": data}
    await send(transport, text({"event": "pusher:subscribe", "data": wanted}))
    return said(transport)[0]["event"]


async def test_a_presence_channel_needs_a_user_on_the_path_of_pusher(site):
    assert await answer_without_a_user(site, f"/app/{KEY}") == "pusher:subscription_error"


@pytest.mark.parametrize("path", [f"/pusher/app/{KEY}", f"/pusher//app/{KEY}/"])
async def test_a_presence_channel_needs_no_user_on_the_path_of_push1st(site, path):
    assert await answer_without_a_user(site, path) == "pusher_internal:subscription_succeeded"


async def test_a_path_that_both_share_is_that_of_pusher():
    config = ServerConfig(pusher=ProtocolConfig(path="/", activity_timeout=TIMEOUT))
    assert await answer_without_a_user(Site(server=config), f"/app/{KEY}") == "pusher:subscription_error"


async def test_a_raw_client_is_on_all_its_channels(site):
    transport = await opened(site, f"/ws/app/{KEY}/a/b/%D0%B6%2Fx/a/")
    for name in ("a", "b", "ж/x"):
        assert site.world.publish(name, b"1") == 1
    await turns()
    assert [one["channel"] for one in said(transport)] == ["a", "b", "ж/x"]


async def test_several_slashes_count_as_one(site):
    await opened(site, f"//ws//app/{KEY}//c//d/")
    assert list(site.world.app.tenant.channels) == ["c", "d"]
    for path in (f"//app/{KEY}", f"/app//{KEY}//", f"/pusher//app/{KEY}"):
        assert texts(body(await site.websocket(f"{path}?protocol=7")))[0]["event"] == "pusher:connection_established"


async def test_a_raw_clients_id_has_its_prefix(site):
    await opened(site, f"{RAW}?session=p.q")
    assert list(site.world.app.tenant.sessions) == ["p.q.7.1"]


RAW_ENDS = {
    "no channel": f"/ws/app/{KEY}",
    "no channel but a slash": f"/ws/app/{KEY}/",
    "a channel that needs a token": f"/ws/app/{KEY}/private-c",
    "a name that is not allowed": f"/ws/app/{KEY}/a%00b",
    "a name that is too long": f"/ws/app/{KEY}/{'c' * 256}",
    "a reserved name": f"/ws/app/{KEY}/%23server-to-user-1",
    "a path that is not UTF-8": f"/ws/app/{KEY}/%ff",
    "a prefix with a control character": f"{RAW}?session=a%0ab",
    "a prefix with another control character": f"{RAW}?session=a%c2%85b",
    "a prefix that is too long": f"{RAW}?session={'a' * 256}",
    "a prefix whose bytes are too many": f"{RAW}?session={'%D0%B6' * 128}",
}


@pytest.mark.parametrize("path", RAW_ENDS.values(), ids=RAW_ENDS.keys())
async def test_raw_client_without_allowed_channels_is_closed_with_1008(site, path):
    transport = await site.websocket(path)
    assert close_of(body(transport))[0] == 1008
    assert site.world.app.tenant.sessions == {}
    assert site.world.app.tenant.channels == {}
    assert site.metrics.connections["websocket"] == 0


@pytest.mark.parametrize(
    ("sent", "prefix"),
    [
        ("a:b+c/d|e*f{g}", "a:b+c/d|e*f{g}"),
        ("a%20b", "a b"),
        ("50%", "50%"),
        ("a%2Bb+c%25", "a+b+c%"),
        ("a..b", "a..b"),
        (".".join("a" * 100), ".".join("a" * 100)),
        ("x" * 255, "x" * 255),
        ("%D0%B6%22%5C", 'ж"\\'),
    ],
)
async def test_a_prefix_is_any_text_of_255_bytes(site, sent, prefix):
    raw = await opened(site, f"{RAW}?session={sent}")
    other = await opened(site, RAW)
    (id,) = (one for one in site.world.app.tenant.sessions if one.startswith(prefix))
    assert id.removeprefix(prefix).count(".") == 2
    await send(raw, text({"channel": "c", "event": "e", "data": 1}))
    assert said(other)[0]["#msg-from"] == id


async def test_channels_without_authorisation_are_skipped(site):
    await opened(site, f"/ws/app/{KEY}/private-a/b/presence-c")
    assert list(site.world.app.tenant.channels) == ["b"]


def access(channel="*", origin="*", ttl=0, app=APP, secret=SECRET) -> str:
    return auth.access_token(secret, app, origin, channel, ttl, WALL + 1000)


PRIVATE = f"/ws/app/{KEY}/private-c"


async def test_a_token_in_the_query_authorises(site):
    await opened(site, f"{PRIVATE}?token={access()}")
    assert "private-c" in site.world.app.tenant.channels


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_a_token_in_the_header_authorises(site, scheme):
    await opened(site, PRIVATE, f"Authorization: {scheme} {access()}")
    assert "private-c" in site.world.app.tenant.channels


async def test_a_token_in_the_header_needs_no_scheme(site):
    await opened(site, PRIVATE, f"Authorization: {access()}")
    assert "private-c" in site.world.app.tenant.channels


@pytest.mark.parametrize("header", ["x", "Basic YTpi"])
async def test_a_header_without_bearer_does_not_hide_the_token_of_the_query(site, header):
    await opened(site, f"{PRIVATE}?token={access()}", f"Authorization: {header}")
    assert "private-c" in site.world.app.tenant.channels


@pytest.mark.parametrize(
    "token",
    [access("private-x"), access(app="other"), access(secret="wrong"), access(origin="http://a"), "x", quote("ж"), "a.b.c", ""],
    ids=["another channel", "another app", "another secret", "a fixed origin", "x", "letters", "parts", "empty"],
)
async def test_token_of_another_app_authorises_nothing(site, token):
    transport = await site.websocket(f"{PRIVATE}?token={token}")
    assert close_of(body(transport))[0] == 1008


async def test_connection_ends_when_its_token_expires(site):
    token = access(ttl=10)
    site.clock.advance(9)
    await opened(site, f"{PRIVATE}?token={token}")
    site.clock.advance(1)
    assert close_of(body(await site.websocket(f"{PRIVATE}?token={token}")))[0] == 1008


async def test_a_token_that_is_not_valid_yet_authorises_nothing(site):
    token = jwt.encode({"app": APP, "channel": "*", "nbf": WALL + 1010}, SECRET.ljust(32, "\0"), algorithm="HS256")
    assert close_of(body(await site.websocket(f"{PRIVATE}?token={token}")))[0] == 1008
    site.clock.advance(10)
    await opened(site, f"{PRIVATE}?token={token}")


@pytest.mark.parametrize("path", [PRIVATE, RAW], ids=["private", "public"])
@pytest.mark.parametrize("ttl", [5, 4000])
async def test_a_connection_ends_when_its_token_does(path, ttl):
    """This holds whether or not the connection needs the token, and for any number of messages of the client."""
    site = Site(server=ServerConfig(websocket=ProtocolConfig(path="/ws/", activity_timeout=3600)))
    transport = await opened(site, f"{path}?token={access(ttl=ttl)}")
    for _ in range(ttl - 1):
        site.pass_seconds(1)
        await send(transport, masked(Opcode.PONG, b""))
    assert transport.take() == b""
    site.pass_seconds(1)
    await turns()
    error, end = frames(transport.take())
    assert json.loads(error[1]) == {"event": "error", "data": {"code": 401, "message": "access token has expired"}}
    assert end == (Opcode.CLOSE, (1008).to_bytes(2, "big") + b"access token has expired")
    assert site.metrics.cut_offs["token-expired"] == 1
    assert site.world.app.tenant.sessions == {}
    assert transport.ended
    site.pass_seconds(LINGER_SECONDS + 1)
    assert transport.closed


async def test_a_silent_client_with_a_token_is_pinged_as_any(site):
    transport = await opened(site, f"{PRIVATE}?token={access(ttl=10_000)}")
    site.pass_seconds(3600)
    await turns()
    assert frames(transport.take()) == [PING]


async def test_when_the_clock_is_set_back_a_token_lasts_longer_and_causes_no_ping(site):
    transport = await opened(site, f"{PRIVATE}?token={access(ttl=10)}")
    wall, site.clock.wall = site.clock.wall, lambda: wall() - 7_000_000_000
    site.pass_seconds(16)
    await turns()
    assert transport.take() == b""
    site.pass_seconds(2)
    await turns()
    assert close_of(transport.take())[0] == 1008


async def test_a_token_without_an_end_keeps_its_connection(site):
    transport = await opened(site, f"{PRIVATE}?token={access()}")
    site.pass_seconds(3000)
    assert transport.take() == b""


async def test_a_token_for_an_origin_is_good_for_that_origin(site):
    token = access(origin="http://a")
    await opened(site, f"{PRIVATE}?token={token}", "Origin: http://a")
    assert close_of(body(await site.websocket(f"{PRIVATE}?token={token}", "Origin: http://b")))[0] == 1008


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


# Clients that must authorise themselves


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


# Origins


@pytest.mark.parametrize(
    ("origin", "allowed", "lets_in"),
    [
        (None, ("http://a",), True),
        ("http://evil", (), True),
        ("http://evil", ("*",), True),
        ("http://a", ("http://a",), True),
        ("HTTP://A", ("http://a/",), True),
        ("http://a:8080", ("http://a",), False),
        ("http://a:8080", ("a",), True),
        ("http://a:8080", ("a:8080",), True),
        ("http://a", ("a:8080",), False),
        ("https://a", ("http://a",), False),
        ("http://a.evil", ("a",), False),
        ("http://evil-a", ("a",), False),
        ("http://sub.a", ("a",), False),
        ("http://[::1]:80", ("[::1]",), True),
        ("null", ("a",), False),
        ("", ("a",), False),
        ("http://", ("a",), False),
    ],
)
def test_origins_are_compared_whole(origin, allowed, lets_in):
    assert origin_allowed(origin, allowed) is lets_in


def test_accept_value_matches_the_rfc():
    digest = hashlib.sha1(b"dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    assert base64.b64encode(digest) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


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
