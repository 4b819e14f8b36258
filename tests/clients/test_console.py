"""The pages of the console in a real Chromium: every screen, hostile names, the keyboard, colours, and a steady layout."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.browser import Browser, Tab
from tests.support.console import PASSWORD, Operator, console
from tests.support.nodejs import MODULES
from tests.support.process import APP, ServerProcess, wait_until
from tests.support.pusher_socket import PusherSocket, pusher_socket

SCREENS = {
    "overview": "Overview",
    "apps": "Apps",
    "channels": "Channels",
    "connections": "Connections",
    "events": "Event creator",
    "inspector": "Inspector",
    "hooks": "Hooks",
    "mqtt": "MQTT",
    "cluster": "Cluster",
    "configuration": "Configuration",
}
ARABIC = "\u0642\u0646\u0627\u0629"
HOSTILE = ("<img src=x onerror=window.hacked=1>", "a\u202eb", "x" * 160, f"{ARABIC}-{ARABIC}")
LONGEST = "presence-" + "W" * 155
MAX_TEXT_SIZES = 5
WATCHERS = """
window.violations = []; window.problems = []; window.shift = 0;
document.addEventListener("securitypolicyviolation", event => violations.push(event.violatedDirective));
addEventListener("error", event => problems.push(String(event.message)));
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
new PerformanceObserver(list => { for (const entry of list.getEntries()) if (!entry.hadRecentInput) shift += entry.value; })
  .observe({type: "layout-shift", buffered: true});
"""
AXE = """axe.run(document, {resultTypes: ["violations"]}).then(
  found => [found.passes.length, found.violations.map(one => [one.id, one.nodes.map(node => node.html)])])"""
STYLES = """(() => {
  const sizes = new Set(), odd = new Set(), ragged = new Set();
  for (const one of document.querySelectorAll("body *")) {
    if (!one.checkVisibility()) continue;
    const style = getComputedStyle(one);
    if ([...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())) {
      sizes.add(style.fontSize);
      if (one.closest("td, th") && /^[\\d.,\\s]+$/.test(one.textContent) && !style.fontVariantNumeric.includes("tabular-nums"))
        ragged.add(one.outerHTML.slice(0, 100));
    }
    if (one.closest("svg, option")) continue;
    const sides = ["paddingTop", "paddingRight", "paddingBottom", "paddingLeft", "marginTop", "marginBottom", "rowGap"];
    for (const side of sides) {
      const value = parseFloat(style[side]);
      if (value > 0 && value % 4 && value !== 1 && value !== 2) odd.add(`${one.tagName}.${one.className} ${side} ${style[side]}`);
    }
  }
  return {sizes: [...sizes], odd: [...odd], ragged: [...ragged]};
})()"""


class Site:
    """A server with a console, its clients, and a signed-in page."""

    def __init__(self, server: ServerProcess, operator: Operator, tab: Tab) -> None:
        self.server = server
        self.operator = operator
        self.tab = tab

    def go(self, screen: str, **params: str) -> None:
        """Goes to a screen, and waits until it has loaded."""
        query = "&".join(f"{name}={value}" for name, value in params.items())
        self.tab.evaluate(f"location.hash = {json.dumps(f'#/{screen}?{query}')}")
        self.until_loaded(SCREENS.get(screen, ""))

    def until_loaded(self, title: str) -> None:
        code = "[document.querySelector('main h1')?.textContent, !document.querySelector('.loading, .bone, .busy')]"

        def loaded() -> bool:
            shown, is_complete = self.tab.evaluate(code)
            return bool(is_complete and shown and title in shown)

        wait_until(loaded, f"the screen {title} is loaded")


def sign_in(tab: Tab) -> None:
    """Signs in with the keyboard only."""
    wait_until(lambda: tab.evaluate("document.activeElement?.type === 'password'"), "the field has the focus")
    tab.write(PASSWORD)
    tab.press("Enter", "\r")
    wait_until(lambda: tab.evaluate("document.querySelector('main h1')?.textContent") == "Overview", "the overview is shown")


@pytest.fixture(scope="module")
def site(browser: Browser) -> Iterator[Site]:
    apps = {"app-test": {**APP, "history": [{"filter": ["news"], "size": 10, "ttl": 600}]}}
    with (
        console({"server": {"proto": ["pusher", "websocket", "sse"]}}, apps) as (server, operator),
        contextlib.ExitStack() as stack,
    ):
        clients: list[PusherSocket] = []
        for number, name in enumerate(("news", LONGEST, *HOSTILE[2:3])):
            client = stack.enter_context(pusher_socket(server))
            client.subscribe(name, {"user_id": f"u{number}"} if name.startswith("presence-") else None)
            clients.append(client)
        tab = Tab(browser, f"http://127.0.0.1:{operator.port}/")
        tab.evaluate(WATCHERS)
        sign_in(tab)
        operator.sign_in()
        tab.evaluate((MODULES / "axe-core" / "axe.min.js").read_text() + "; null")
        yield Site(server, operator, tab)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the pictures: that of the variable CONSOLE_PICTURES, if there is one."""
    return Path(os.environ.get("CONSOLE_PICTURES") or tmp_path)


def test_every_screen_is_sound_in_both_themes_at_both_widths(site: Site, folder: Path) -> None:
    sizes: set[str] = set()
    found: dict[str, Any] = {}
    for screen in SCREENS:
        for width, scheme in ((1280, "light"), (360, "dark")):
            site.tab.show(width, scheme)
            site.go(screen)
            place = f"{screen} at {width} px, {scheme}"
            if site.tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found[place] = "the page scrolls to the side"
            passes, violations = site.tab.evaluate(AXE)
            assert passes, "axe has checked the page"
            if violations:
                found[f"{place}: axe"] = violations
            styles = site.tab.evaluate(STYLES)
            sizes |= set(styles["sizes"])
            if styles["odd"] or styles["ragged"]:
                found[f"{place}: styles"] = styles["odd"], styles["ragged"]
            site.tab.picture(folder / f"{screen}-{width}-{scheme}.png")
    site.tab.show(1280)
    assert found == {}
    assert len(sizes) <= MAX_TEXT_SIZES, sizes
    assert site.tab.evaluate("[violations, problems]") == [[], []]


def test_names_and_data_of_clients_are_text(site: Site) -> None:
    for name in HOSTILE[:2]:
        assert site.operator.post("/api/apps/app-test/events", {"name": name, "channel": "news", "data": name}).status == 200
    site.go("channel", app="app-test", name="news", view="history")
    wait_until(lambda: "<img src=x" in site.tab.evaluate("document.body.innerText"), "the hostile name is shown as text")
    assert "U+202E" in site.tab.evaluate("document.body.innerText")
    assert site.tab.evaluate("[window.hacked === undefined, document.querySelectorAll('main img').length]") == [True, 0]
    site.go("channels", app="app-test")
    site.tab.show(360)
    assert not site.tab.evaluate("document.documentElement.scrollWidth > innerWidth"), "the longest name fits"
    site.tab.show(1280)


def test_keyboard_reaches_everything_in_the_visual_order(site: Site) -> None:
    tab = site.tab
    site.go("overview")
    for key, screen in (("a", "apps"), ("l", "cluster"), ("o", "overview")):
        tab.press("g", "g")
        tab.press(key, key)
        site.until_loaded(SCREENS[screen])
    site.go("apps")
    tab.press("/", "/")
    wait_until(lambda: tab.evaluate("document.activeElement?.matches('input')"), "the search has the focus")
    tab.evaluate("document.activeElement.blur()")
    tab.press("?", "?")
    wait_until(lambda: tab.evaluate("Boolean(document.querySelector('dialog[open], [role=dialog]'))"), "the help is open")
    tab.press("Escape")
    wait_until(lambda: not tab.evaluate("Boolean(document.querySelector('dialog[open], [role=dialog]'))"), "the help is closed")
    tab.evaluate("document.activeElement?.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
    where = """(() => {
      const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
      const region = one.closest("main") ? 1 : 0;
      const isVisible = style.outlineStyle !== "none";
      return [one.outerHTML.slice(0, 80), region, Math.round(box.top + scrollY), Math.round(box.left), isVisible];
    })()"""
    visited = []
    for _ in range(60):
        tab.press("Tab")
        place = tab.evaluate(where)
        if place[0].startswith("<body") or place in visited:
            break
        visited.append(place)
    else:
        pytest.fail("the focus does not leave the page")
    assert len(visited) > 10
    assert [one[0] for one in visited if not one[4]] == [], "the focus is visible"
    order = [one[1:3] for one in visited if one[2] >= 0]
    rows = [(region, top // 24) for region, top in order]
    assert rows == sorted(rows), "the order of the tabs is the order on the page"


def _watch(tab: Tab, seconds: float) -> float:
    tab.evaluate("shift = 0")
    tab.evaluate(f"new Promise(done => setTimeout(done, {seconds * 1000}))")
    return float(tab.evaluate("shift"))


def test_live_overview_does_not_move(site: Site, folder: Path) -> None:
    site.go("overview")
    for _ in range(3):
        for number in range(5):
            event = {"name": "price", "channel": "news", "data": str(number)}
            assert site.operator.post("/api/apps/app-test/events", event).status == 200
        assert _watch(site.tab, 1.5) == 0
    site.tab.picture(folder / "overview-live.png")


@pytest.mark.long
def test_live_screens_do_not_move_for_half_a_minute(site: Site) -> None:
    for screen in ("overview", "inspector"):
        site.go(screen)
        for _ in range(6):
            site.operator.post("/api/apps/app-test/events", {"name": "e", "channel": "news", "data": "x"})
            assert _watch(site.tab, 5) == 0, screen


@pytest.mark.long
def test_first_paint_takes_less_than_three_tenths_of_a_second(site: Site, browser: Browser) -> None:
    times = sorted(_first_paint(browser, site.operator.port) for _ in range(5))
    assert times[2] < 300, times


def _first_paint(browser: Browser, port: int) -> float:
    tab = Tab(browser, f"http://127.0.0.1:{port}/")
    code = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    try:
        return float(wait_until(lambda: tab.evaluate(code), "the first paint"))
    finally:
        tab.close()


def test_end_of_the_session_elsewhere_shows_the_sign_in(site: Site) -> None:
    code = "fetch('api/logout', {method: 'POST', headers: {'Push1st-Console': '1'}}).then(answer => answer.status)"
    assert site.tab.evaluate(code) == 200
    wait_until(lambda: site.tab.evaluate("Boolean(document.querySelector('input[type=password]'))"), "the sign-in is shown")
    sign_in(site.tab)
