"""Handshakes of Pusher clients, and handshakes that are rejected."""

import json

import pytest

from push1st.config.addresses import Networks
from push1st.config.model import ProtocolConfig, ServerConfig
from tests.support.frames import close_of, frames, text, texts
from tests.support.http import Answer, handshake, request
from tests.support.loop import turns
from tests.support.node import APP, KEY, app_config
from tests.support.transport import Site
from tests.support.websocket import PUSHER, RAW, TIMEOUT, body, opened

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
