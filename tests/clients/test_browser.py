"""pusher-js on a page in a real browser: over WebSocket, and over each of its HTTP fallbacks."""

from typing import Any

import pytest

from tests.clients.browser import Browser, Tab
from tests.support.process import ServerProcess, free_ports, running, wait_until

ROADS = ("ws", "xhr_streaming", "xhr_polling")
ADA, BOB = {"user_id": "ada", "user_info": {"name": "Ada"}}, {"user_id": "bob", "user_info": {"name": "Bob"}}
GAP = 20
"""seconds after which the server ends the session of a fallback's client that has disappeared"""


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def page(browser: Browser, server: ServerProcess, road: str, user: dict[str, Any] = ADA, **more: Any) -> Tab:
    """Opens a page that has only this transport, and waits until it is connected."""
    tab = browser.tab()
    hosts = {"wsHost": "127.0.0.1", "wsPort": server.ws_port, "httpHost": "127.0.0.1", "httpPort": server.ws_port}
    tab.do("start", "app-key", {**hosts, "enabledTransports": [road], **more}, user)
    tab.until("state", "connected")
    return tab


def test_page_receives_member_changes(browser: Browser, server: ServerProcess, road: str, channel: str) -> None:
    presence = f"presence-{channel}"
    first = page(browser, server, road)
    assert first.do("transport") == road
    first.do("join", presence)
    first.until("joined", presence, {"ada": {"name": "Ada"}})
    second = page(browser, server, road, BOB)
    second.do("join", presence)
    second.until("joined", presence, {"ada": {"name": "Ada"}, "bob": {"name": "Bob"}})
    first.until("added", "bob", {"name": "Bob"})
    second.close()
    first.until("removed", "bob", deadline=GAP)
    assert first.do("people", presence) == {"ada": {"name": "Ada"}}
    first.close()


def test_a_page_gets_events_and_sends_its_own(browser: Browser, server: ServerProcess, road: str, channel: str) -> None:
    private = f"private-{channel}"
    first, second = page(browser, server, road), page(browser, server, road, BOB)
    for tab in (first, second):
        tab.do("join", private, "paid", "client-typing")
        tab.until("joined", private, None)
    server.publish(private, "paid", {"text": "ünïcödé \U0001f980"})
    for tab in (first, second):
        tab.until("paid", {"text": "ünïcödé \U0001f980"})
    first.evaluate(f"pusher.channel('{private}').trigger('client-typing', {{n: 1}}); 0")
    second.until("client-typing", {"n": 1})
    assert ["client-typing", {"n": 1}] not in first.seen
    for tab in (first, second):
        tab.close()


def test_page_receives_all_events_of_a_long_time(browser: Browser, server: ServerProcess, road: str, channel: str) -> None:
    """With a fallback, pusher-js drops a response that has grown over 256 KiB, and requests another."""
    tab = page(browser, server, road)
    tab.do("join", channel, "n")
    tab.until("joined", channel, None)
    for n in range(300):
        server.publish(channel, "n", [n, "x" * 5000])
    wait_until(lambda: tab.evaluate("seen.filter(([what]) => what == 'n').length") == 300, "all events are there")
    assert tab.evaluate("seen.filter(([what]) => what == 'n').map(([, [n]]) => n)") == list(range(300))
    assert tab.evaluate("seen.filter(([what]) => what == 'state')") == [["state", "connected"]]
    tab.close()


def test_page_reconnects_after_a_server_restart(browser: Browser, channel: str) -> None:
    with running() as server:
        tab = page(browser, server, "xhr_streaming")
        tab.do("join", channel, "e")
        tab.until("joined", channel, None)
        server.signal()
        tab.until("error", 4200)
        server.wait()
        server.start()
        wait_until(lambda: tab.seen.count(["joined", channel, None]) == 2, "the page has joined again", 30)
        server.publish(channel, "e", 1)
        tab.until("e", 1)
        tab.close()


@pytest.mark.parametrize("key", ["nobodys-key", "off-key"])
def test_page_with_a_wrong_key_stops_reconnecting(browser: Browser, server: ServerProcess, road: str, key: str) -> None:
    tab = browser.tab()
    hosts = {"wsHost": "127.0.0.1", "wsPort": server.ws_port, "httpHost": "127.0.0.1", "httpPort": server.ws_port}
    tab.do("start", key, {**hosts, "enabledTransports": [road]}, ADA)
    tab.until("state", "disconnected")
    tab.until("error", 4001 if key == "nobodys-key" else 4003)
    tab.close()


def test_page_without_working_websockets_uses_the_http_fallback(browser: Browser, server: ServerProcess, channel: str) -> None:
    tab = browser.tab()
    (closed,) = free_ports(1)
    hosts = {"wsHost": "127.0.0.1", "wsPort": closed, "wssPort": closed, "httpHost": "127.0.0.1", "httpPort": server.ws_port}
    tab.do("start", "app-key", hosts, ADA)
    tab.until("state", "connected", deadline=30)
    assert tab.do("transport") == "xhr_streaming"
    tab.do("join", channel, "e")
    tab.until("joined", channel, None)
    server.publish(channel, "e", 1)
    tab.until("e", 1)
    tab.close()
