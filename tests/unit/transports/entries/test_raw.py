"""Handshakes of raw WebSocket clients: paths, prefixes and access tokens."""

import json
from urllib.parse import quote

import jwt
import pytest
from websockets.frames import Opcode

from push1st import auth
from push1st.config.model import ProtocolConfig, ServerConfig
from push1st.transports.context import LINGER_SECONDS
from tests.support.frames import close_of, frames, masked, text, texts
from tests.support.loop import WALL, turns
from tests.support.node import APP, KEY, SECRET, token
from tests.support.transport import Site
from tests.support.websocket import PING, RAW, TIMEOUT, body, opened, said, send

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
