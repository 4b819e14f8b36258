"""The screens of the console in all states, at both widths and in both themes: checked, and pictured for readers.

The pictures are in the folder `.pictures`.
"""

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from push1st.core.tap import MAX_WATCHES
from tests.clients.browser import Browser, Tab
from tests.clients.console_site import (
    ALL_WORK,
    APP_SCREENS,
    NAMES,
    PLACES,
    SCREENS,
    Site,
    enter,
    picture,
    sign_in_with_keys,
    site,
    until,
)
from tests.cluster.machine import kill, workers
from tests.support.console import live
from tests.support.paho import paho_client
from tests.support.pusher_socket import pusher_socket, sign_in

pytestmark = pytest.mark.long

VIEWS = ((360, "light"), (360, "dark"), (1280, "light"), (1280, "dark"))
MANY = 10_000
BATCH = 10
"""the number of events in one call of the API"""
LABEL = "document.activeElement.labels?.[0].querySelector('span').textContent"
"""the label of the field that has the focus"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Site]:
    with site(browser) as one:
        one.tab.show(1280)
        enter(one.tab)
        yield one


MEASURED = """(
  [...document.querySelectorAll('main section tr')].some(({ textContent: row }) => /ready/.test(row) && !row.includes('–'))
  && !document.querySelector('.tiles').textContent.includes('–'))"""
"""whether the overview has the rates of a worker: they need two samples"""


def look(page: Site, state: str, name: str) -> dict[str, Any]:
    """Checks and pictures what the page shows, in all views. Returns the faults."""
    found: dict[str, Any] = {}
    if name == "overview" and state not in ("loading", "refused"):
        until(page.tab, MEASURED, 30)
    for width, theme in VIEWS:
        page.tab.show(width, theme)
        faults, _ = page.faults(*() if theme == "light" else ("color-contrast",))
        if faults:
            found[f"{state} {name} {width} {theme}"] = faults
        picture(page.tab, f"{state}-{name}-{width}-{theme}")
    page.tab.show(1280)
    return found


def test_screens_with_hostile_and_longest_names(page: Site) -> None:
    found: dict[str, Any] = {}
    for name, (screen, params) in PLACES.items():
        page.go(screen, **params)
        if screen in HAPPENINGS:
            HAPPENINGS[screen](page)
        found |= look(page, "filled", name)
    assert found == {}


def publish_an_event(page: Site) -> None:
    """Publishes an event with the event creator."""
    fill(page, "news")
    until(page.tab, "Boolean(document.querySelector('td .badge.ok'))")


def cause_events(page: Site) -> None:
    """Causes events of several kinds, and selects the first that the server has refused."""
    with pusher_socket(page.server) as client:
        sign_in(client, "customer-17")
        client.subscribe("news")
        client.request_subscription("private-invoices", secret="wrong")
        client.round_trip()
        for name in (*NAMES, "price"):
            page.server.publish("news", name[:200], json.dumps({"name": name}))
    until(page.tab, "[...document.querySelectorAll('.what')].some(one => one.textContent === 'disconnected')")
    page.tab.evaluate("document.querySelector('.what.bad').click()")


def wait_for_warnings(page: Site) -> None:
    """Waits until the overview shows what needs attention."""
    page.until_text("The server has given up hook events")
    page.until_text("The configuration has 1 warning")


HAPPENINGS = {"events": publish_an_event, "inspector": cause_events, "overview": wait_for_warnings}


def fill(page: Site, channel: str, event: str = "order") -> None:
    """Fills in the form of the event creator with the keyboard, and submits it."""
    page.go("events", app="app-test", channel=channel)
    until(page.tab, f"document.querySelector('[data-search]').value === {json.dumps(channel)}")
    page.tab.evaluate("document.querySelector('[data-search]').focus()")
    page.tab.press("Tab")
    page.tab.evaluate("document.activeElement.select()")
    page.tab.write(event)
    page.tab.press("Enter", "\r")


def test_screens_without_rows(page: Site) -> None:
    found: dict[str, Any] = {}
    for screen in APP_SCREENS:
        page.go(screen, app="empty")
        found |= look(page, "empty", screen)
    page.go("mqtt", app="empty", view="retained")
    found |= look(page, "empty", "retained")
    page.go("apps", search="no such app")
    found |= look(page, "empty", "apps")
    page.tab.evaluate("location.hash = '#/nothing'")
    page.until_text("There is no such screen")
    found |= look(page, "empty", "screen")
    assert found == {}


LARGEST = """(() => {
  const parse = JSON.parse, now = Date.now() / 1000;
  const sizes = /^(bytes|bytes_out|rss|behind|size|memory|memory_most)$/, times = /^(since|began)$/;
  const seconds = /^(uptime|lease|loop_lag|oldest_seconds|next_try_in|expiry|away_seconds)$/;
  const counts = new RegExp("^(connections|channel_count|channels|subscriptions|users|events_in|messages_out|refusals|sent|"
    + "queued|waiting|filter_count|inflight|fds|fds_most|unconfirmed|clients|ops|offset|pid)$");
  JSON.parse = text => parse(text, (key, value) =>
    typeof value !== "number" ? value : sizes.test(key) ? 1023.4 * 2 ** 40 : times.test(key) ? now - 399.99 * 86400
    : key === "expires" ? now + 399.99 * 86400 : seconds.test(key) ? 399.99 * 86400 : counts.test(key) ? 999999 : value);
})()"""
"""Puts the numbers with the most characters into what the server answers: terabytes, more than a year, 999,999 clients."""
TABLE_WIDTHS = (360, 800, 1024, 1280)


def test_largest_numbers_are_shown_in_full(page: Site) -> None:
    """The page shows the answers of a server that is used more, and for longer, than a test can use it."""
    found: dict[str, Any] = {}
    with page.another(LARGEST) as large:
        for name, (screen, params) in PLACES.items():
            if screen == "events":
                continue
            large.tab.show(1280)
            large.go(screen, **params)
            if name == "overview":
                until(large.tab, MEASURED, 30)
            for width in TABLE_WIDTHS:
                large.tab.show(width)
                if faults := large.faults()[0]:
                    found[f"{name} {width}"] = faults
                if width in (360, 1024, 1280):
                    picture(large.tab, f"largest-{name}-{width}-light")
    assert found == {}


def test_screens_while_they_load(page: Site) -> None:
    """Stopped workers accept connections and answer nothing."""
    found: dict[str, Any] = {}
    page.until_modules()
    pids = list(workers(page.server).values())
    for screen in SCREENS:
        if screen in ("events", "inspector", "overview"):  # they need no answer, or have one already
            continue
        page.go("events", app="app-test")
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        try:
            page.begin(screen, app="app-test")
            until(page.tab, "Boolean(document.querySelector('.loading'))")
            found |= look(page, "loading", screen)
        finally:
            for pid in pids:
                kill(pid, signal.SIGCONT)
        page.until_loaded(SCREENS[screen])
    assert found == {}


def without_overview(answer: str) -> str:
    """Returns JavaScript that answers requests of the overview, and opens no WebSocket."""
    return f"""(() => {{
      const usual = fetch;
      fetch = (url, ...rest) => String(url).endsWith("/overview") ? {answer} : usual(url, ...rest);
      WebSocket = class {{ static OPEN = 1; close() {{}} }};
    }})()"""


def test_live_screens_while_they_load(page: Site) -> None:
    with page.another(without_overview("new Promise(() => {})")) as other:
        until(other.tab, "Boolean(document.querySelector('.loading'))")
        found = look(other, "loading", "overview")
        other.begin("inspector", app="app-test")
        other.until_text("Connecting …")
        assert found | look(other, "loading", "inspector") == {}


def test_overview_with_the_refusal_of_the_server(page: Site) -> None:
    refusal = '{"error": "the overview failed: see the log of the worker web-1:0"}'
    answer = f"Promise.resolve(new Response('{refusal}', {{status: 500}}))"
    channel = f"""WebSocket = class {{
      static OPEN = 1; readyState = 1;
      constructor() {{ setTimeout(() => this.onopen()); }}
      send() {{ setTimeout(() => this.onmessage({{data: '{refusal}'}})); }}
      close() {{}}
    }}"""
    with page.another(f"{without_overview(answer)}; {channel}") as other:
        other.until_text("Try again")
        other.until_text("The overview failed: see the log of the worker web-1:0")
        assert look(other, "refused", "overview") == {}


def test_tab_above_the_limit_shows_it_and_gets_the_next_free_place(page: Site) -> None:
    closed = """WebSocket = class {
      static OPEN = 1; readyState = 1;
      constructor() { setTimeout(() => {
        this.onopen();
        if (window.isFree) return;
        this.onclose({code: 1013, reason: "this worker has 10 live connections already, which is the limit"});
      }); }
      send() { setTimeout(() => window.isFree && this.onmessage({data: '{"events": [], "worker": "web-1:0"}'})); }
      close() {}
    }"""
    with page.another(closed) as other:
        other.begin("inspector", app="app-test")
        other.until_text("This tab has no live connection: this worker has 10 live connections already, which is the limit.")
        assert look(other, "refused", "live") == {}
        other.tab.evaluate("window.isFree = true")
        until(other.tab, "!document.body.innerText.includes('no live connection')", 30)
        other.until_text("Watching. Nothing has happened yet")


def test_fifth_inspector_begins_when_another_one_ends(page: Site) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_WATCHES):
            other = stack.enter_context(live(page.operator))
            other.send({"watch": "inspector"})
            assert "error" not in other.receive()
        page.begin("inspector", app="app-test")
        page.until_text("4 inspectors are watching, which is the limit: close one")
        assert page.tab.evaluate("document.querySelector('main .pause').disabled")
        assert look(page, "refused", "fifth-inspector") == {}
    until(page.tab, "!document.querySelector('.problem, .pause:disabled')")


def test_screens_with_the_refusals_of_the_server(page: Site) -> None:
    found: dict[str, Any] = {}
    for screen in ("channels", "connections", "hooks", "inspector", "mqtt"):
        page.begin(screen, app="no-such-app")
        until(page.tab, "Boolean(document.querySelector('.problem'))")
        found |= look(page, "refused", screen)
    page.begin("apps", after="nothing\x00")
    until(page.tab, "Boolean(document.querySelector('.problem'))")
    found |= look(page, "refused", "apps")
    for channel, event, field in (("news", "pusher:hello", "Event name"), ("n" * 300, "order", "Channel")):
        fill(page, channel, event)
        until(page.tab, f"document.activeElement.ariaInvalid === 'true' && {LABEL} === {json.dumps(field)}")
    found |= look(page, "refused", "events")
    page.tab.call("Network.enable")
    page.tab.go_offline(True)
    try:
        for screen in ("cluster", "configuration"):
            page.begin(screen)
            page.until_text("The server cannot be reached.")
            found |= look(page, "refused", screen)
    finally:
        page.tab.go_offline(False)
        page.tab.call("Network.disable")
    assert found == {}


def test_dialogs(page: Site) -> None:
    found: dict[str, Any] = {}
    for name, screen, params, button in (
        ("app", "apps", {}, "td .cell-button"),
        ("connection", "connections", {"app": "app-test", "protocol": "pusher"}, "tr:last-child .plain-button"),
        ("terminate", "connections", {"app": "app-test", "protocol": "pusher"}, "tr:last-child .danger"),
        ("letter", "hooks", {"app": "app-test"}, "td .cell-button"),
        ("session", "mqtt", {"app": "app-test"}, "tr:last-child .plain-button"),
        ("device", "connections", {"app": "app-test", "protocol": "mqtt"}, "tr:last-child .danger"),
        ("retained", "mqtt", {"app": "app-test", "view": "retained"}, "td .cell-button"),
        ("message", "channel", {"app": "app-test", "name": "news", "view": "history"}, "td .cell-button"),
        ("help", "overview", {}, ".foot .row button"),
    ):
        page.go(screen, **params)
        page.tab.evaluate(f"document.querySelector({json.dumps(button)}).click()")
        until(page.tab, "Boolean(document.querySelector('dialog[open]')) && !document.querySelector('dialog .loading')")
        found |= look(page, "dialog", name)
        if name == "app":
            page.tab.evaluate("document.querySelector('dialog').scrollTop = 1e6")
            found |= look(page, "dialog", "app-end")
        page.tab.press("Escape")
    page.go("hooks", app="app-test")
    page.tab.evaluate("document.querySelector('td input:enabled').click()")
    until(page.tab, "!document.querySelector('section .primary').disabled")
    page.tab.evaluate("document.querySelector('section .primary').click()")
    until(page.tab, "document.querySelector('dialog')?.innerText.includes('time_ms')")
    found |= look(page, "dialog", "redrive")
    page.tab.press("Escape")
    page.tab.show(360)
    page.go("channels", app="app-test")
    page.tab.evaluate("document.querySelector('.menu').click()")
    until(page.tab, "Boolean(document.querySelector('.side.open'))")
    assert page.faults()[0] == {}
    for theme in ("light", "dark"):
        page.tab.show(360, theme)
        picture(page.tab, f"menu-360-{theme}")
    assert found == {}


def test_screens_without_the_broker(page: Site) -> None:
    found: dict[str, Any] = {}
    page.go("overview")
    page.broker.kill()
    try:
        page.until_text("The broker is away since")
        for name, (screen, params) in PLACES.items():
            page.go("events")  # so that no answer from before is shown
            page.begin(screen, **params)
            until(page.tab, "!document.querySelector('.loading, .bone, .busy')", 20)
            page.until_text("The broker is away since")
            found |= look(page, "away", name)
    finally:
        page.broker.start()
    page.go("overview")
    until(page.tab, ALL_WORK, 30)
    assert found == {}


def test_sign_in_after_too_many_tries(page: Site) -> None:
    """The last test with this server: it accepts no further sign-in for a minute."""
    page.tab.evaluate("fetch('api/logout', {method: 'POST', headers: {'Push1st-Console': '1'}}).then(() => 0)")
    page.tab.evaluate("location.reload()")
    until(page.tab, "document.activeElement?.type === 'password'", 30)
    found = look_without_axe(page.tab, "sign-in")
    for _ in range(6):
        sign_in_with_keys(page.tab, "wrong")
        until(
            page.tab,
            "Boolean(document.querySelector('.error')) && document.querySelector('form button').textContent === 'Sign in'",
        )
    page.until_text("Try again in")
    assert found | look_without_axe(page.tab, "refused-sign-in") == {}


def look_without_axe(tab: Tab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for width, theme in VIEWS:
        tab.show(width, theme)
        if tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            found[f"{name} {width} {theme}"] = "the page scrolls to the side"
        picture(tab, f"{name}-{width}-{theme}")
    return found


@contextlib.contextmanager
def many_clients(port: int) -> Iterator[None]:
    """Opens `MANY` raw WebSockets, which nobody reads."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    asked = f"GET /ws/app/app-key/crowd HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.sendall(asked.encode())
        yield


@pytest.mark.timeout(180)
def test_screens_with_ten_thousand_rows(browser: Browser) -> None:
    apps = {f"shop-{number:05d}": {"key": f"key-{number:05d}", "secret": f"secret {number:05d}"} for number in range(MANY)}
    found: dict[str, Any] = {}
    with site(browser, apps) as page, pusher_socket(page.server) as client:
        with paho_client(page.mqtt) as device:  # before the others: paho uses select(), which needs a low descriptor
            for number in range(MANY):
                device.publish(f"rooms/{number:05d}", "on", qos=1, retain=True)
            device.until_acknowledged()
        page.tab.show(1280)
        enter(page.tab)
        page.go("inspector", app="app-test")
        with many_clients(page.server.ws_port):
            for number in range(MANY):
                client.request_subscription(f"orders-{number:05d}")
            for _ in range(MANY // BATCH):
                batch = [{"name": "price", "channel": "news", "data": "1"}] * BATCH
                assert page.server.signed("POST", "/apps/app-test/batch_events", {"batch": batch}).status == 200
            page.until_text("The last 1,000 of", 60)
            found |= look(page, "many", "inspector")
            page.server.until_sessions("crowd", MANY)
            for name, (screen, params) in PLACES.items():
                if name not in ("inspector", "events", "members"):
                    page.go(screen, **params)
                    if name == "overview":
                        until(page.tab, "document.querySelector('.tiles').textContent.includes('10,0')", 30)
                    found |= look(page, "many", name)
            page.go("channels", app="app-test", prefix="orders-")
            assert 0 < page.tab.evaluate("document.querySelectorAll('main tbody tr').length") <= 50
            page.tab.evaluate("[...document.querySelectorAll('.pager a')].at(-1).click()")
            until(page.tab, "location.hash.includes('after') && !document.querySelector('.busy, .loading')")
            found |= look(page, "many", "second-page")
    assert found == {}
