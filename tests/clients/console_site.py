"""A server with a console whose lists have rows, and a page of it in a browser that checks itself.

Names and data of clients are hostile: markup, characters that reorder text, text from right to left, and the longest names.
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from push1st.console.guard import PLAIN_COOKIE
from push1st.console.passwords import stored
from push1st.console.sessions import OperatorSession, OperatorSessions
from tests.clients.browser import Browser, PageLeft, Tab
from tests.support.console import PASSWORD, Operator, console
from tests.support.nodejs import MODULES
from tests.support.paho import paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, wait_until
from tests.support.pusher_socket import pusher_socket, sign_in
from tests.support.raw_socket import raw_socket
from tests.support.receiver import receiving
from tests.support.valkey import Valkey

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
COOKIE = PLAIN_COOKIE + stored(PASSWORD).cookie_name
KEYS = dict(zip(SCREENS, "oacneihmls", strict=True))
"""the second key of the shortcut of each screen"""
APP_SCREENS = ("channels", "connections", "events", "inspector", "hooks", "mqtt")
MARKUP = "<img src=x onerror=window.hacked=1>"
REORDERED = "a\u202eb"
ARABIC = "\u0642\u0646\u0627\u0629-\u0623\u062e\u0628\u0627\u0631"
LONGEST = "W" * 255
PRESENCE = "presence-" + "M" * 155
NAMES = (MARKUP, REORDERED, ARABIC, LONGEST)
PLACES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    **{screen: (screen, {"app": "app-test"} if screen in APP_SCREENS else {}) for screen in SCREENS},
    "retained": ("mqtt", {"app": "app-test", "view": "retained"}),
    "channel": ("channel", {"app": "app-test", "name": LONGEST}),
    "members": ("channel", {"app": "app-test", "name": PRESENCE, "view": "members"}),
    "history": ("channel", {"app": "app-test", "name": "news", "view": "history"}),
}
"""the screens and their parts: name, screen, parameters"""
WATCHERS = """
window.violations = []; window.problems = []; window.shift = 0; window.useful = 0;
document.addEventListener("securitypolicyviolation", event => violations.push(event.violatedDirective));
addEventListener("error", event => problems.push(String(event.message)));
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
new PerformanceObserver(list => { for (const entry of list.getEntries()) if (!entry.hadRecentInput) shift += entry.value; })
  .observe({type: "layout-shift", buffered: true});
const look = () => {
  if (!document.querySelector(".tile .big")) requestAnimationFrame(look);
  else requestAnimationFrame(() => requestAnimationFrame(() => useful = performance.now()));
};
look();
"""
"""Runs before the page. `useful`: the milliseconds until the first frame after the one with the figures of the overview."""
AXE = """(only => axe.run(document, {resultTypes: ["violations"], ...(only.length ? {runOnly: only} : {})}).then(
  found => [found.passes.length, found.violations.map(one => [one.id, one.nodes.map(node => node.html.slice(0, 200))])]))"""
STYLES = """(() => {
  const sizes = new Set(), odd = new Set(), ragged = new Set(), wide = new Set(), cut = new Set();
  const sides = ["top", "right", "bottom", "left"].flatMap(side => [`padding-${side}`, `margin-${side}`]);
  const uncut = "button, h1, h2, th, label span, .badge, .note, .lead, .big, .caption span:last-child";
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) wide.add(`the page is ${page.scrollWidth} px wide`);
  for (const one of document.querySelectorAll("body *")) {
    if (!one.checkVisibility() || one.closest("svg *, option, .hidden, thead")) continue;
    const style = getComputedStyle(one), name = `${one.tagName}.${one.getAttribute("class") ?? ""}`;
    if ([...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())) {
      sizes.add(style.fontSize);
      if (/[0-9]/.test(one.textContent) && !style.fontVariantNumeric.includes("tabular-nums"))
        ragged.add(one.outerHTML.slice(0, 100));
      const box = one.getBoundingClientRect();
      if (one.matches(uncut) && one.scrollWidth > one.clientWidth + 1
        && style.display !== "inline" && !one.closest(".name")) cut.add(`${name} ${one.textContent.slice(0, 60)}`);
      if (box.width && box.right > page.clientWidth + 1 && !one.closest("td, .line, pre, .log-head, .skip"))
        wide.add(`${name} ends at ${box.right}`);
    }
    if (one.matches("td:is(.number, .w-t)") && one.scrollWidth > one.clientWidth + 1) cut.add(`${name} ${one.textContent}`);
    const computed = one.computedStyleMap();  // unlike getComputedStyle, it does not turn `auto` into pixels
    for (const side of [...sides, "row-gap", "column-gap"])
      if (parseFloat(computed.get(side)) % 4) odd.add(`${name} ${side} ${computed.get(side)}`);
  }
  return {sizes: [...sizes], odd: [...odd], ragged: [...ragged], wide: [...wide], cut: [...cut]};
})()"""
SIGN_IN = "Boolean(document.querySelector('input[type=password]')) && !document.querySelector('nav')"
"""whether the page shows the sign-in and nothing else"""
ALL_WORK = """(document.querySelector('main section table')?.tBodies[0].rows.length === 2
  && !/has not answered|broker is away since/.test(document.querySelector("main").innerText))"""
"""whether the overview shows two workers and the broker; it may also say that the machine is busy, or what has happened"""
MODULE_NAMES = [f"/{screen}.js" for screen in SCREENS]
LOADED = "performance.getEntriesByType('resource')"
PICTURES = Path(__file__).parents[2] / ".pictures"
"""the folder of the pictures, which git ignores"""
MAX_HEIGHT = 2400
"""the maximum height of a picture"""
FAULTS = ("odd", "ragged", "wide", "cut")


class Site:
    """A server with a console, its broker and clients, and a browser's tab with the console. mqtt: the port of MQTT."""

    def __init__(self, server: ServerProcess, broker: Valkey, operator: Operator, browser: Browser, mqtt: int) -> None:
        self.server = server
        self.broker = broker
        self.operator = operator
        self.browser = browser
        self.mqtt = mqtt
        self.url = f"http://127.0.0.1:{operator.port}/"
        self.tab = self.open()
        _load_axe(self.tab)

    def open(self, script: str = "") -> Tab:
        """Opens the console in a tab. script: JavaScript that runs before the console's scripts."""
        return Tab(self.browser, self.url, f"{WATCHERS};{script}")

    @contextlib.contextmanager
    def another(self, script: str) -> Iterator["Site"]:
        """Opens another page, signed in, with JavaScript that runs before it. It has the site's server and clients."""
        other = copy.copy(self)
        other.tab = self.open(script)
        try:
            until_signed_in(other.tab)
            _load_axe(other.tab)
            yield other
        finally:
            other.tab.close()
            self.tab.to_front()

    def go(self, screen: str, **params: str) -> None:
        """Goes to a screen, and waits until it has loaded."""
        self.begin(screen, **params)
        self.until_loaded(SCREENS.get(screen, ""))

    def begin(self, screen: str, **params: str) -> None:
        """Goes to a screen, and waits only until its heading is shown."""
        query = urlencode(params, quote_via=quote)
        title = json.dumps(SCREENS.get(screen, ""))
        self.tab.evaluate(f"location.hash = {json.dumps(f'#/{screen}?{query}')}")
        until(self.tab, f"(document.querySelector('main h1')?.textContent ?? '').includes({title})")

    def until_loaded(self, title: str) -> None:
        shown = f"(document.querySelector('main h1')?.textContent ?? '').includes({json.dumps(title)})"
        until(self.tab, f"{shown} && !document.querySelector('.loading, .bone, .busy')")

    def until_modules(self) -> None:
        """Waits until the page has loaded the modules of all screens, which it does while nothing else happens."""
        until(
            self.tab,
            f"{json.dumps(MODULE_NAMES)}.every(name => {LOADED}.some(one => one.name.endsWith(name) && one.responseEnd))",
        )

    def until_text(self, text: str, deadline: float = 30) -> None:
        """Waits until the page shows a text."""
        until(self.tab, f"document.body.innerText.includes({json.dumps(text)})", deadline)

    def faults(self, *only: str) -> tuple[dict[str, Any], set[str]]:
        """Returns the findings of axe and of the checks of styles on the page, and the sizes of its text.

        only: the rules of axe; without any, all rules and the checks of styles.
        """
        passes, violations = self.tab.do(AXE, only)
        assert passes, "axe has checked the page"
        found: dict[str, Any] = {"axe": violations} if violations else {}
        if only:
            return found, set()
        styles = self.tab.evaluate(STYLES)
        return found | {name: styles[name] for name in FAULTS if styles[name]}, set(styles["sizes"])

    def cookie(self, seconds: float) -> str:
        """Returns the cookie of a session that expires after some seconds."""
        expires = int(time.time() + seconds)
        sessions = OperatorSessions(stored(PASSWORD).key)
        return sessions.value(OperatorSession("nonce-of-the-tests", expires, expires))


def _load_axe(tab: Tab) -> None:
    tab.evaluate((MODULES / "axe-core" / "axe.min.js").read_text() + "; null")


def until(tab: Tab, code: str, deadline: float = DEADLINE) -> Any:
    """Waits in the page until JavaScript returns a true value; returns that value. Fails after `deadline` seconds.

    If the page reloads, the wait ends with it, so the wait begins again in the reloaded page.
    """
    waiting = f"""new Promise(done => {{
      const end = performance.now() + {deadline * 1000};
      const look = () => {{
        const value = {code};
        if (value || performance.now() > end) done(value);
        else setTimeout(look, 50);
      }};
      look();
    }})"""
    end = time.monotonic() + deadline
    found = None
    while found is None and time.monotonic() < end:
        with contextlib.suppress(PageLeft):
            found = tab.evaluate(waiting, deadline + DEADLINE)
    assert found, f"not within {deadline} s: {code}; the page shows {tab.evaluate('document.body.innerText')[:500]!r}"
    return found


def sign_in_with_keys(tab: Tab, password: str = PASSWORD) -> None:
    """Signs in with the keyboard only."""
    until(tab, "document.activeElement?.type === 'password'")
    tab.write(password)
    tab.press("Enter", "\r")


def until_signed_in(tab: Tab) -> None:
    until(tab, "Boolean(document.querySelector('nav') && document.querySelector('main h1'))")


def enter(tab: Tab) -> None:
    """Signs in, unless an earlier test has signed in: all ports of a machine share their cookies."""
    until(tab, "Boolean(document.querySelector('nav, input[type=password]'))")
    if tab.evaluate(SIGN_IN):
        sign_in_with_keys(tab)
    until_signed_in(tab)


def until_signed_out(tab: Tab) -> None:
    until(tab, f"({SIGN_IN})")


@contextlib.contextmanager
def site(browser: Browser, more: Mapping[str, Any] | None = None) -> Iterator[Site]:
    """Runs a server with two workers, an app `app-test` that has rows in each list, and an app `empty`. more: further apps."""
    (mqtt,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(receiving())
        backend.act = lambda _: "stall"
        hook = {"url": f"{backend.url}?for={'w' * 200}", "events": ["channel_occupied"], "concurrency": 1}
        app = {"name": f"{ARABIC} {MARKUP}", "webhooks": [hook], "limits": {"subscriptions": 0}}
        app["history"] = [{"filter": ["news"], "size": 10_000, "ttl": 600}]
        broker = Valkey()
        stack.callback(broker.close)
        config = {
            "broker": broker.url,
            "server": {
                "workers": 2,
                "drain": 0,
                "proto": ["pusher", "websocket", "sse", "mqtt"],
                "mqtt": {"listen": f"tcp://127.0.0.1:{mqtt}", "push": ["public"]},
            },
            "hooks": {"folder": "hooks", "events": 2},
        }
        empty = {**APP, "key": "another-key", "name": "An app without clients"}
        apps = {"app-test": merged(APP, app), "empty": empty}
        server, operator = stack.enter_context(console(config, {**apps, **(more or {})}))
        wait_until(lambda: server.output.count("worker ready") == 2, "two workers")
        connect(server, mqtt, stack)
        operator.sign_in()
        for number, name in enumerate(NAMES):
            event = {"name": name[:200], "channel": "news", "data": json.dumps({"name": name, "number": number})}
            assert operator.post("/api/apps/app-test/events", event).status == 200
        yield Site(server, broker, operator, browser, mqtt)


def connect(server: ServerProcess, mqtt: int, stack: contextlib.ExitStack) -> None:
    """Connects clients of all protocols. mqtt: the port of MQTT."""
    for name in NAMES:
        stack.enter_context(raw_socket(server, quote(name, safe="")))
        member = stack.enter_context(pusher_socket(server, user_agent_header=name if name.isascii() else "the client"))
        sign_in(member, name[:128])
        member.subscribe(PRESENCE, {"user_id": name[:128], "user_info": {"name": name}})
    reader = stack.enter_context(pusher_socket(server))
    for name in ("news", "private-orders", "cache-prices"):
        reader.subscribe(name)
    device = stack.enter_context(paho_client(mqtt, client_id=MARKUP))
    device.subscribe("rooms/+", f"{ARABIC}/#")
    with paho_client(mqtt, client_id=f"{ARABIC}-{'d' * 200}", clean=False) as absent:
        absent.subscribe("rooms/#", qos=1)
    for topic in (MARKUP, ARABIC, "rooms/" + "W" * 249):
        device.publish(topic, topic, qos=1, retain=True)
    device.until_acknowledged()


def picture(tab: Tab, name: str) -> None:
    """Writes a picture of a page into `PICTURES`, at most three screens of a phone long.

    The window is as high as the picture, because a browser places bars and dialogs in the window, not in the page.
    """
    PICTURES.mkdir(exist_ok=True)
    width, height, needed = tab.evaluate("[innerWidth, innerHeight, document.documentElement.scrollHeight]")
    if needed > height and not tab.evaluate("Boolean(document.querySelector('dialog[open], .side.open'))"):
        for _ in range(3):  # a part of the page may grow with the window
            tab.resize(width, min(needed, MAX_HEIGHT))
            needed = tab.evaluate("document.documentElement.scrollHeight")
        tab.picture(PICTURES / f"{name}.png", most=MAX_HEIGHT)
        tab.resize(width, height)
    else:
        tab.picture(PICTURES / f"{name}.png", most=height)
