"""The registry of the HTTP fallbacks: paths, admission, and bounds of sessions between requests."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from push1st.config.addresses import Networks
from push1st.config.model import ServerConfig
from push1st.transports.places import Places
from push1st.transports.xhr_session import (
    GAP_SECONDS,
)
from tests.support.http import Answer, answers, request
from tests.support.loop import turns
from tests.support.node import APP, KEY, app_config
from tests.support.transport import Site
from tests.support.xhr import POLL, SEND, STREAM, WELCOME, ask, events, frames_of, polled, publish, stream, subscribe


@pytest.mark.parametrize("path", ["/app/", "/pusher/app/"])
@pytest.mark.parametrize("endpoint", ["xhr", "xhr_streaming"])
async def test_both_paths_serve_both_endpoints(site, path, endpoint):
    transport = await ask(site, f"{path}{KEY}/999/abcdefgh/{endpoint}?protocol=7&t=1&n=2")
    assert transport.data.endswith(b"\n")
    assert events(transport.data.partition(b"\r\n\r\n")[2]) == WELCOME


REFUSALS = {
    "an unknown app": ("/app/unknown/7/abcdefgh/xhr?protocol=7", 4001),
    "a version that is no number": (f"/app/{KEY}/7/abcdefgh/xhr?protocol=seven", 4006),
    "an old version": (f"/app/{KEY}/7/abcdefgh/xhr?protocol=3", 4007),
}


@pytest.mark.parametrize(("path", "code"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("endpoint", ["xhr", "xhr_streaming"])
async def test_rejected_client_gets_a_close_code(site, path, code, endpoint):
    """The code follows a welcome, because without one pusher-js would reconnect forever."""
    answer = Answer((await ask(site, path.replace("/xhr", f"/{endpoint}"))).data)
    assert (answer.status, events(answer.body)) == (200, ["o", "error", code])
    assert site.metrics.refusals == {str(code): 1}
    assert site.fallbacks.detached.taken == 0


async def test_limits_and_origins_of_the_app_hold():
    site = Site(app_config({"connections": 1}, origins=("https://good.example",)))
    answer = Answer((await ask(site, POLL, b"", "Origin: https://bad.example")).data)
    assert events(answer.body) == ["o", "error", 4009]
    await stream(site, "Origin: https://good.example")
    answer = Answer((await ask(site, POLL, b"", "Origin: https://www.good.example")).data)
    assert events(answer.body) == ["o", "error", 4009]
    answer = Answer((await ask(site, POLL)).data)
    assert events(answer.body) == ["o", "error", 4004]
    assert site.fallbacks.detached.taken == 0


async def test_stopping_server_rejects_sessions(site):
    site.node.draining = True
    assert await polled(site) == ["o", "error", 4100]


OFFICE, HOME, ELSEWHERE = "203.0.113.9", "198.51.100.7", "2001:db8::7"


async def polled_as(site: Site, n: int, peer: object = ("127.0.0.1", 40_000), key: str = KEY) -> list:
    """Returns the frames of the first poll of a session. n: the number of the session."""
    path = POLL.replace("session0", f"session{n}").replace(KEY, key)
    return events(Answer((await site.ask(request("POST", path, b""), peer)).data).body)


def bounded(max_detached: int, *apps: Any, **more: Any) -> Site:
    """Makes a site with this bound of sessions without a request."""
    site = Site(*apps, **more)
    site.fallbacks.detached = Places(max_detached)
    return site


async def test_sessions_between_requests_are_bounded():
    site = bounded(4, app_config(), app_config(id="other", key="other-key"), app_config(id="third", key="third-key"))
    for n in range(2):
        assert await polled_as(site, n) == WELCOME
        assert await polled_as(site, n, key="other-key") == WELCOME
    assert await polled_as(site, 2, key="third-key") == ["o", "error", 4100]
    site.pass_seconds(GAP_SECONDS + 1)
    assert await polled_as(site, 3) == WELCOME
    assert site.fallbacks.detached.taken == 1


async def test_an_app_has_three_quarters_of_the_sessions_between_requests():
    site = bounded(8, app_config(), app_config(id="other", key="other-key"))
    for n in range(6):
        assert await polled_as(site, n) == WELCOME
    for n in range(6, 20):
        assert await polled_as(site, n) == ["o", "error", 4100]
    for n in range(2):
        assert await polled_as(site, n, key="other-key") == WELCOME
    site.pass_seconds(GAP_SECONDS + 1)
    assert await polled_as(site, 0) == WELCOME


async def test_an_address_has_half_of_the_sessions_between_requests():
    site = bounded(8)
    for n in range(20):
        assert await polled_as(site, n, (OFFICE, 1)) == (WELCOME if n < 4 else ["o", "error", 4100])
    assert await polled_as(site, 20, (HOME, 1)) == WELCOME
    site.pass_seconds(GAP_SECONDS + 1)
    assert await polled_as(site, 21, (OFFICE, 1)) == WELCOME


async def test_bound_of_an_address_does_not_end_established_sessions():
    site = bounded(4)
    streaming = await site.ask(request("POST", STREAM, b""), (OFFICE, 1))
    for n in range(1, 9):
        await polled_as(site, n, (OFFICE, 1))
    assert await polled_as(site, 9, (OFFICE, 1)) == ["o", "error", 4100]
    streaming.take()
    await subscribe(site)
    await publish(site, "1")
    assert frames_of(streaming) == ["subscription_succeeded", "1"]
    streaming.protocol.connection_lost(None)
    await publish(site, "2")
    again = await site.ask(request("POST", STREAM, b""), (OFFICE, 1))
    assert events(again.data.partition(b"\r\n\r\n")[2]) == ["2"]


@pytest.mark.parametrize("peer", ["", ("127.0.0.1", 1), ("127.8.0.1", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1, 0, 0)])
async def test_loopback_and_unix_sockets_have_no_bound_per_address(peer):
    site = bounded(8)
    assert [await polled_as(site, n, peer) for n in range(6)] == [WELCOME] * 6


async def test_clients_of_a_known_proxy_have_addresses_of_their_own():
    site = bounded(8, server=ServerConfig(proxies=Networks.parse(("10.0.0.1",))))
    for n in range(6):
        path = POLL.replace("session0", f"session{n}")
        asked = request("POST", path, b"", f"X-Forwarded-For: 203.0.113.{n}")
        assert events(Answer((await site.ask(asked, ("10.0.0.1", 1))).data).body) == WELCOME


async def test_the_first_session_over_a_bound_is_logged_and_those_after_it_once_a_minute():
    site = bounded(4)
    with capture_logs() as logged:
        for n in range(30):
            await polled_as(site, n, (OFFICE, 1))
    (line,) = logged
    assert (line["log_level"], line["bound"], line["most"], line["address"]) == ("warning", "address", 2, OFFICE)
    assert "server.proxies" in line["hint"]
    assert site.metrics.refusals == {"4100": 28}
    with capture_logs() as logged:
        site.pass_seconds(5)
        await polled_as(site, 30, (OFFICE, 1))
        assert logged == []
        for n in range(31, 40):
            site.pass_seconds(10)
            for more in range(3):
                await polled_as(site, 10 * n + more, (OFFICE, 1))
    assert 1 <= len(logged) <= 2


async def test_no_fallback_path_reaches_the_api(site):
    """This holds even after headers that are remembered from calls of the API."""
    connection, transport = site.connect()
    connection.data_received(request("POST", f"/apps/{APP}/events", '{"name":"e","channel":"c","data":1}'))
    await turns()
    assert site.handlers.rules.heads
    connection.data_received(request("POST", SEND, '[""]'.ljust(35)))
    connection.data_received(request("GET", SEND))
    connection.data_received(request("OPTIONS", SEND))
    await turns()
    first, missing, wrong, preflight = answers(transport.data)
    assert first.status == 200
    assert (missing.status, missing.json["error"]) == (404, "no session has this id")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert (preflight.status, preflight.headers["access-control-allow-methods"]) == (200, "POST")


async def test_fallbacks_are_off_without_the_pusher_protocol():
    site = Site(server=ServerConfig(proto=frozenset({"websocket"})))
    assert Answer((await ask(site, STREAM)).data).json["error"].startswith("nothing is at")


@pytest.mark.parametrize("id", ["7/short", "7/" + "x" * 65, "1234/abcdefgh", "x/abcdefgh", "7/abcdefg%20"])
async def test_session_id_in_a_wrong_form_is_rejected(site, id):
    answer = Answer((await ask(site, f"/app/{KEY}/{id}/xhr?protocol=7")).data)
    assert answer.status == 400
    assert answer.headers["access-control-allow-origin"] == "*"
