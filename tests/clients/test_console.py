"""The console in a real Chromium: every screen, hostile names, the keyboard, live figures, and losses.

The pictures of the screens are in the folder `.pictures`. `test_console_states.py` has the other states.
"""

import contextlib
import json
import math
import signal
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.browser import SHIFT, Browser, Tab
from tests.clients.console_site import (
    ALL_WORK,
    COOKIE,
    KEYS,
    MARKUP,
    PLACES,
    SCREENS,
    SIGN_IN,
    Site,
    picture,
    sign_in_with_keys,
    site,
    until,
    until_signed_in,
    until_signed_out,
)
from tests.cluster.machine import kill
from tests.support.paho import paho_client
from tests.support.process import wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.raw_socket import raw_socket

MAX_TEXT_SIZES = 5
MAX_TABS = 150
NARROWEST = 345
"""the width that a scroll bar leaves of 360 pixels"""
USEFUL_MS = 300
"""the time until the overview shows figures, on a machine that does nothing else"""
LOADS = 10
"""the maximum number of loads of which one must take no longer"""
CALCULATED_SECONDS = 0.1
BUSY = 10
"""the factor of this time in `make test`, because other tests run at the same time"""
SIGNED_OUT = "status of 401"
"""a part of the browser's message about the first request of a page, which checks whether the operator is signed in"""
FOCUS = """(() => {
  const one = document.activeElement, box = one.getBoundingClientRect();
  const shown = one.matches(".theme input") ? one.nextElementSibling : one, style = getComputedStyle(shown);
  const isVisible = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && shown.checkVisibility();
  const region = ["dialog", ".bar, .side", "main"].findIndex(part => one.closest(part));
  return {html: one.outerHTML.slice(0, 120), index: [...document.querySelectorAll("*")].indexOf(one), isVisible, region,
    left: box.left, right: box.right, top: box.top + scrollY, bottom: box.bottom + scrollY};
})()"""
TEXTS = """(markup, escape, character) => {
  const text = document.body.textContent;
  return [text.includes(markup), text.includes(escape), document.documentElement.outerHTML.includes(character)];
}"""
FOCUSABLE = """[...document.querySelectorAll('a[href], button:enabled, input:enabled, select, textarea, [tabindex="0"]')]
  .filter(one => one.checkVisibility() && !one.matches("[type=radio]:not(:checked)")).length"""
DIALOG = "Boolean(document.querySelector('dialog[open]'))"


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Iterator[Site]:
    with site(browser) as one:
        one.tab.show(360)
        assert one.faults()[0] == {}, "the sign-in"
        picture(one.tab, "sign-in-360-light")
        sign_in_with_keys(one.tab, "a wrong password")
        one.until_text("The password is wrong.")
        one.tab.evaluate("document.activeElement.value = ''")
        sign_in_with_keys(one.tab)
        until_signed_in(one.tab)
        yield one


@pytest.fixture
def page(opened: Site) -> Site:
    """The signed-in page, as wide as a desk."""
    opened.tab.to_front()
    opened.tab.show(1280)
    return opened


class Visit:
    """The state of all screens. texts: whether the text of a place has markup and an escape, and its HTML what is escaped."""

    def __init__(self) -> None:
        self.faults: dict[str, Any] = {}
        self.sizes: set[str] = set()
        self.texts: dict[str, tuple[bool, bool, bool]] = {}


@pytest.fixture(scope="module")
def visit(opened: Site) -> Visit:
    """Visits every screen on a phone, in both themes, and takes pictures."""
    seen = Visit()
    tab = opened.tab
    for name, (screen, params) in PLACES.items():
        tab.show(NARROWEST)
        opened.go(screen, **params)
        if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
            seen.faults[f"{name}, {NARROWEST}"] = "the page scrolls to the side"
        for theme, rules in (("light", ()), ("dark", ("color-contrast",))):
            tab.show(360, theme)
            faults, sizes = opened.faults(*rules)
            seen.sizes |= sizes
            if faults:
                seen.faults[f"{name}, {theme}"] = faults
            picture(tab, f"{name}-360-{theme}")
        seen.texts[name] = tuple(tab.do(f"({TEXTS})", MARKUP, "U+202E", "\u202e"))
    return seen


def test_every_screen_is_sound_on_a_phone_in_both_themes(page: Site, visit: Visit) -> None:
    assert visit.faults == {}
    assert len(visit.sizes) <= MAX_TEXT_SIZES, visit.sizes
    assert page.tab.evaluate("[violations, problems]") == [[], []]
    assert [text for text in page.tab.complaints() if SIGNED_OUT not in text] == []


def test_checks_of_a_page_find_what_is_wrong(page: Site) -> None:
    """The checks of this file would pass on any page if they did not see these faults."""
    page.go("apps")
    page.tab.evaluate("""(() => {
      const one = document.querySelector("main").appendChild(document.createElement("button"));
      one.style.cssText = "margin: 5px 0 0 1500px; font: 9px monospace; color: #888; background: #999";
      one.style.fontVariantNumeric = "normal";
      one.textContent = "12";
      const number = document.querySelector("td.number span");
      number.title = number.textContent;
      number.textContent = "9".repeat(30);
      console.error("a complaint");
    })()""")
    faults, sizes = page.faults()
    page.tab.evaluate("""(() => {
      document.querySelector("main").lastElementChild.remove();
      const number = document.querySelector("td.number span");
      number.textContent = number.title;
    })()""")
    assert [name for name, _ in faults["axe"]] == ["color-contrast"]
    assert set(faults) == {"axe", "odd", "ragged", "wide", "cut"}
    assert "9px" in sizes
    assert any("a complaint" in text for text in page.tab.complaints())


def test_names_and_data_of_clients_are_text(page: Site, visit: Visit) -> None:
    places = {"channels", "connections", "members", "history"}
    assert {name for name, (markup, _, _) in visit.texts.items() if markup} >= {*places, "apps", "mqtt", "retained"}
    # The queue of the hook endpoint decides which channels have a dead letter.
    assert {name for name, (_, escape, _) in visit.texts.items() if escape} - {"hooks"} == places
    assert {name for name, (_, _, character) in visit.texts.items() if character} == set()
    with raw_socket(page.server, "news", query="rewind=1") as client:
        client.expect("resumed", "news")
        page.go("overview")  # so that the history is loaded again
        page.go("channel", app="app-test", name="news", view="history")
    page.tab.evaluate("[...document.querySelectorAll('main td button')].at(-1).click()")
    page.until_text(f'"name": "{MARKUP}"')
    text = "Subscriptions whose position the server does not know, mostly of new clients: 1."
    page.until_text(f"Resumptions in all channels: none. {text}")
    page.tab.press("Escape")
    assert page.tab.evaluate("window.hacked === undefined && !document.querySelector('img, iframe, object')")


def test_dialogs_keep_the_focus_and_give_it_back(page: Site) -> None:
    tab = page.tab
    page.go("connections", app="app-test")
    tab.evaluate("document.querySelector('td .danger').focus()")
    for opens, title in ((("?", "?"), "Keyboard"), (("Enter", "\r"), "Terminate the connection?")):
        tab.press(*opens)
        until(tab, DIALOG)
        assert tab.evaluate("document.querySelector('dialog h2').textContent") == title
        assert page.faults()[0] == {}, title
        for modifiers in (0, 0, 0, 0, 0, SHIFT):
            tab.press("Tab", modifiers=modifiers)
            assert tab.evaluate("document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))")
        tab.press("Escape")
        until(tab, f"!{DIALOG}")
        assert tab.evaluate("document.activeElement.matches('td .danger')"), "the focus is where it was"


PAUSE = "document.querySelector('main .pause')"
LAST = "[...document.querySelectorAll('main .line .about')].at(-1)?.textContent"


def test_events_of_a_pause_are_counted_and_shown_at_its_end(page: Site) -> None:
    page.go("inspector", app="app-test", what="published")
    page.until_text("Nothing matches the filter yet")
    page.server.publish("news", "before", "1")
    page.until_text("1 event")
    page.tab.evaluate(f"{PAUSE}.click()")
    page.until_text("1 event, paused")
    for event in ("during-1", "during-2"):
        page.server.publish("news", event, "1")
    until(page.tab, f"{PAUSE}.textContent.trim() === 'Resume (2 new)'")
    assert page.tab.evaluate(LAST) == "before"
    page.tab.evaluate(f"{PAUSE}.click()")
    page.until_text("3 events")
    assert page.tab.evaluate(LAST) == "during-2"
    page.tab.evaluate(f"{PAUSE}.click()")
    page.server.publish("news", "last", "1")
    until(page.tab, f"{PAUSE}.textContent.includes('(1 new)')")
    page.tab.evaluate(f"{PAUSE}.nextElementSibling.click()")
    page.until_text("Paused. “Resume” shows the new events.")
    assert page.tab.evaluate(f"{PAUSE}.textContent.trim()") == "Resume", "Clear has removed the new events too"


def test_each_screen_is_used_with_the_keyboard_alone(page: Site) -> None:
    """The keys `g` and a letter go to a screen, Tab visits its places in the visual order, and `/` goes to its search."""
    tab = page.tab
    found: dict[str, list[str]] = {}
    page.go("overview")
    for screen, key in reversed(KEYS.items()):
        tab.press("g", "g")
        tab.press(key, key)
        page.until_loaded(SCREENS[screen])
        assert tab.evaluate("document.activeElement === document.querySelector('main h1')"), "a screen reader reads the heading"
        if screen == "inspector":
            page.server.publish("news", "price", "1")
            page.until_text("1 event")
            tab.evaluate("document.querySelector('main .actions button').click()")  # no further event may arrive meanwhile
            page.until_text("paused")
        if complaints := _tab_through(tab):
            found[screen] = complaints
        tab.evaluate("document.activeElement.blur()")
        tab.press("/", "/")
        if tab.evaluate("Boolean(document.querySelector('main [data-search]'))"):
            assert tab.evaluate("document.activeElement.matches('[data-search]')"), screen
            tab.write("g")
            assert tab.evaluate("document.activeElement.value").endswith("g"), "a shortcut is text in a field"
            tab.press("Backspace")
            tab.evaluate("document.activeElement.blur()")
        else:
            assert screen in ("overview", "hooks", "cluster"), screen
    assert found == {}


def _tab_through(tab: Tab) -> list[str]:
    """Presses Tab until the focus returns; returns what is wrong with the places that it has visited."""
    wanted = tab.evaluate(FOCUSABLE)
    tab.evaluate("scrollTo(0, 0); document.querySelector('.skip').focus()")  # a new screen has the focus on its heading
    visited: list[dict[str, Any]] = []
    complaints = []
    for number in range(MAX_TABS):
        if number:
            tab.press("Tab")
        place = tab.evaluate(FOCUS)
        if place["html"].startswith("<body") or any(place["index"] == one["index"] for one in visited):
            break
        if not place["isVisible"]:
            complaints.append(f"the focus is not visible: {place['html']}")
        if visited and not _is_after(visited[-1], place):
            complaints.append(f"not in the visual order: {visited[-1]['html']}, then {place['html']}")
        visited.append(place)
    else:
        complaints.append("the focus does not return")
    if len(visited) != wanted:
        complaints.append(f"{len(visited)} places of {wanted}")
    return complaints


def _is_after(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether a place is below another one, right of it or in it; or in a later region."""
    if one["region"] != other["region"]:
        return bool(one["region"] < other["region"])
    if one["left"] <= other["left"] <= other["right"] <= one["right"] and one["top"] <= other["top"] < one["bottom"]:
        return True
    return bool(other["left"] >= one["right"] - 1 or other["top"] >= one["bottom"] - 1)


def _shift(page: Site, seconds: float) -> float:
    """Publishes events while a page is watched; returns its layout shift in a time without a new line of the verdict.

    A new line moves what is below it, because something needs attention.
    """
    page.tab.evaluate("new Promise(done => setTimeout(done, 500))")
    lines = -1
    while lines != (now := page.tab.evaluate("document.querySelectorAll('.verdict li').length")):
        lines = now
        page.tab.evaluate("shift = 0")
        for _ in range(int(seconds)):
            for number in range(7):
                page.server.publish("news", "price", str(number))
            page.tab.evaluate("new Promise(done => setTimeout(done, 1000))")
    return float(page.tab.evaluate("shift"))


def test_live_overview_does_not_move(page: Site) -> None:
    page.go("overview")
    before = page.tab.evaluate("document.querySelector('.tiles').textContent")
    assert _shift(page, 5) == 0
    assert page.tab.evaluate("document.querySelector('.tiles').textContent") != before, "the figures are live"


@pytest.mark.long
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("screen", ["overview", "inspector"])
def test_live_screen_does_not_move_for_half_a_minute(page: Site, screen: str, width: int) -> None:
    page.tab.show(width)
    page.go(screen)
    assert _shift(page, 30) == 0


def _useful_ms(page: Site) -> float:
    """Opens the console in a new page; returns the milliseconds until it shows the figures."""
    tab = page.open()
    try:
        return float(until(tab, "useful"))
    finally:
        tab.close()


def test_overview_shows_figures_soon(page: Site) -> None:
    assert _useful_ms(page) < USEFUL_MS * BUSY


@pytest.mark.long
def test_overview_shows_figures_within_three_tenths_of_a_second(page: Site) -> None:
    """One load of several must be fast: it shows what the page needs; the others also show what else the machine did.

    On a busy machine, each program waits for a core. The test measures how long, and divides the times by it.
    """
    times: list[float] = []
    while len(times) < LOADS and min(times, default=math.inf) >= USEFUL_MS:
        before = _slowness()
        times.append(_useful_ms(page) / max(before, _slowness()))
    assert min(times) < USEFUL_MS, times


def _slowness() -> float:
    """Returns the time that a calculation takes, divided by its CPU time: 1 on a machine that does nothing else."""
    start, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < CALCULATED_SECONDS:
        pass
    return max(1, (time.perf_counter() - start) / (time.process_time() - used))


# What goes away


MARK = "window.isSameLoad = true"
IS_SAME_LOAD = "window.isSameLoad === true"
CAN_PUBLISH = "!document.querySelector('form .primary').disabled"
IS_LIVE = "Boolean(document.querySelector('.dot.open'))"


def test_history_of_a_channel_without_subscribers_is_opened_by_its_name(page: Site) -> None:
    page.go("channels", app="app-test", prefix="news-of-nobody")
    page.until_text("No channel matches")
    page.server.post("/apps/app-test/events", {"name": "kept", "channels": ["news-of-nobody"], "data": "x" * 10})
    page.tab.evaluate("document.querySelector('p.note a').click()")
    page.until_text("A client that has received all of them")
    page.until_text("kept")
    assert page.faults()[0] == {}


def test_banner_is_shown_until_the_broker_is_back(page: Site) -> None:
    page.go("overview")
    until(page.tab, ALL_WORK)
    page.tab.evaluate(MARK)
    page.broker.kill()
    try:
        page.until_text("The broker is away since")
        page.go("cluster")
        assert page.faults()[0] == {}
        page.go("events", app="app-test")
        until(page.tab, f"{CAN_PUBLISH} === false")
        page.until_text("Nothing can be published while the broker is away.")
        page.begin("hooks", app="app-test")
        # The worker that has the queue knows that it retries.
        until(page.tab, "['unknown', 'retrying'].includes(document.querySelector('td.w-s .badge')?.textContent)")
        page.begin("channel", app="app-test", name="news", view="history")
        page.until_text("Unknown while the broker is away")
    finally:
        page.broker.start()
    # The broker is an empty one now: the list is back, without its messages.
    page.until_text("The history is empty")
    page.go("events", app="app-test")
    until(page.tab, CAN_PUBLISH)
    page.go("overview")
    until(page.tab, f"!document.body.innerText.includes('The broker is away since') && {ALL_WORK}", 30)
    page.until_text("The broker lost its state at")
    assert page.tab.evaluate(IS_SAME_LOAD), "the page recovers without a reload"


ANOTHER_IS_AWAY = """const usual = fetch, every = setInterval; window.asked = 0;
setInterval = (act, ms) => every(act, Math.min(ms, 200));
fetch = async (url, ...rest) => {
  if (!String(url).endsWith("/version")) return usual(url, ...rest);
  setTimeout(() => asked += 1, 50);
  return new Response('{"version": "1", "away": "reason"}');
}"""
"""JavaScript that answers, often, as a worker that has lost the broker alone"""


def test_banner_of_the_overview_follows_the_worker_of_the_live_channel(page: Site) -> None:
    with page.another(ANOTHER_IS_AWAY) as other:
        other.go("overview")
        until(other.tab, f"{IS_LIVE} && {ALL_WORK}")
        asked = other.tab.evaluate("asked")
        until(other.tab, f"asked > {asked + 1}")
        assert "The broker is away since" not in other.tab.evaluate("document.body.innerText")
        other.begin("apps")
        other.until_text("The broker is away since")


def test_page_shows_the_successor_of_the_worker_that_it_watches(page: Site) -> None:
    page.go("overview")
    until(page.tab, ALL_WORK)
    page.tab.evaluate(MARK)
    watched, _ = _watched_and_other(page)
    ready = page.server.output.count("worker ready")
    kill(watched)
    wait_until(lambda: page.server.output.count("worker ready") > ready, "the successor", 30)
    until(page.tab, f"{ALL_WORK} && {IS_LIVE}", 30)
    page.until_text("disappeared without a graceful stop, so its clients had to reconnect. A new worker replaced it at")
    assert watched not in [node["pid"] for node in page.operator.get("/api/overview").json["nodes"]]
    assert not page.tab.evaluate(SIGN_IN), "the session outlives the worker"
    assert page.tab.evaluate(IS_SAME_LOAD)


def _watched_and_other(page: Site) -> tuple[int, int]:
    """Returns the process of the worker that the page watches, and that of the other one."""
    with page.tab.watched_frames() as frames:
        overview = json.loads(wait_until(frames, "the figures of the overview")[0])["overview"]
    pids = {node["id"] == overview["here"]: node["pid"] for node in overview["nodes"]}
    return pids[True], pids[False]


@pytest.mark.long
@pytest.mark.parametrize("is_watched", [True, False])
def test_overview_shows_that_a_worker_hangs(page: Site, is_watched: bool) -> None:
    """The channel to a hanging worker stays open, but no message arrives, so the page connects to another worker."""
    page.go("overview")
    until(page.tab, ALL_WORK)
    page.tab.evaluate(MARK)
    watched, other = _watched_and_other(page)
    kill(watched if is_watched else other, signal.SIGSTOP)
    try:
        until(page.tab, f"!{IS_LIVE}" if is_watched else "/has not answered|hangs/.test(document.body.innerText)", 30)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the server has replaced the worker
            kill(watched if is_watched else other, signal.SIGCONT)
    until(page.tab, f"{ALL_WORK} && {IS_LIVE}", 60)
    assert page.tab.evaluate(IS_SAME_LOAD)


# The event creator

FORM = """(channel, data) => {
  const form = document.querySelector("form.form"), [, to, name] = form.querySelectorAll("input, select");
  for (const [field, value] of [[to, channel], [name, "e"], [form.querySelector("textarea"), data]]) {
    field.value = value;
    field.dispatchEvent(new Event("input", {bubbles: true}));
  }
}"""
SUBMIT = "document.querySelector('form.form button[type=submit]').click()"
ROW = "[...document.querySelectorAll('main tbody tr:first-child td')].slice(-3, -1).map(cell => cell.textContent.trim())"


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('\n{\n "a":  1, "n": 12345678901234567890 }\n', '{\n "a":  1, "n": 12345678901234567890 }'),
        ('{"b": "\u05d0"', '"{\\"b\\": \\"\u05d0\\""'),
    ],
)
def test_all_clients_receive_the_event_of_the_creator_like_that_of_the_api(page: Site, text: str, data: str) -> None:
    """text: what the operator writes. data: the data of the same event in a call of the API."""
    with contextlib.ExitStack() as stack:
        pusher = stack.enter_context(pusher_socket(page.server))
        pusher.subscribe("creator")
        raw = stack.enter_context(raw_socket(page.server, "creator"))
        device = stack.enter_context(paho_client(page.mqtt))
        device.subscribe("creator")
        stream = stack.enter_context(urllib.request.urlopen(f"http://127.0.0.1:{page.server.ws_port}/sse/app/app-key/creator"))
        page.server.until_sessions("creator", 4)

        def received() -> list[object]:
            line = next(line for line in stream if line.startswith(b'data: {"event":"e"'))
            frame = pusher.receive()
            assert (frame["event"], frame["channel"]) == ("e", "creator")
            return [frame["data"], raw.expect("e", "creator"), device.expect(), json.loads(line[6:])["data"]]

        body = f'{{"name": "e", "channel": "creator", "data": {data}}}'
        assert page.server.post("/apps/app-test/events", body.encode()).status == 200
        expected = received()
        page.go("events", app="app-test")
        page.tab.do(f"({FORM})", "creator", text)
        size = f"{len(data.encode())}\u202fB"
        page.until_text("This is not JSON" if data[0] == '"' else f"JSON, {size} as sent")
        page.tab.evaluate(SUBMIT)
        until(page.tab, f"{ROW}[1] === 'published for 4 subscribers' && {ROW}[0] === {json.dumps(size)}")
        assert received() == expected


def test_creator_shows_for_whom_it_has_published(page: Site) -> None:
    page.go("events", app="app-test")
    page.tab.do(f"({FORM})", "bad channel/x", "1")
    page.tab.evaluate(SUBMIT)
    page.until_text(
        "for 0 subscribers; Pusher clients cannot subscribe to bad channel/x: channel name 'bad channel/x' has characters"
    )


# The end of a session


@contextlib.contextmanager
def _second_page(page: Site) -> Iterator[Tab]:
    tab = page.open()
    try:
        until_signed_in(tab)
        yield tab
    finally:
        tab.close()


def test_sign_out_ends_all_pages_of_the_session(page: Site) -> None:
    page.go("overview")
    with _second_page(page) as other:
        other.evaluate("[...document.querySelectorAll('.foot button')].at(-1).focus()")
        other.press("Enter", "\r")
        until_signed_out(other)  # the page has loaded itself again
        page.tab.to_front()
        until_signed_out(page.tab)
        assert "app-test" not in page.tab.evaluate("document.body.textContent")
    sign_in_with_keys(page.tab)
    until_signed_in(page.tab)


def test_page_shows_the_sign_in_however_soon_the_server_answers(page: Site) -> None:
    """The answer may arrive before the page listens to the state of its session."""
    answer = """new Response('{"error": "sign in"}', {status: 401})"""
    tab = page.open(f"fetch = async () => {answer}")
    try:
        until_signed_out(tab)
    finally:
        tab.close()


def test_expired_session_shows_the_sign_in(page: Site) -> None:
    """The page of an operator who only watches sends no request, so the server ends its live channel."""
    page.tab.put_cookie(COOKIE, page.cookie(3), page.url)
    with _second_page(page) as other:
        until_signed_out(other)
        until(other, "document.body.textContent.includes('Your session has ended')")
    page.tab.to_front()
    page.tab.evaluate("location.hash = '#/cluster'")
    until_signed_out(page.tab)
    sign_in_with_keys(page.tab)
    until_signed_in(page.tab)
