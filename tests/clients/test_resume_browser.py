"""pusher-js in a real browser recovers from dead networks and crossing closes, over WebSocket and its HTTP fallbacks."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pytest

from tests.clients.browser import Browser, Tab
from tests.support.blackhole import Blackhole, blackhole
from tests.support.process import ServerProcess, running, wait_until
from tests.support.recovering import BOUND, CONFIG, Publisher, PusherPages, kept, page_name, together, until_joined, verify

ROADS = ("ws", "xhr_streaming", "xhr_polling")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(CONFIG, kept()) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(server.ws_port) as made:
        yield made


class TabPage(PusherPages):
    """A page in a tab of the browser."""

    def __init__(self, browser: Browser, port: int, channels: Sequence[str], road: str, **client: Any) -> None:
        name = page_name()
        super().__init__({name: channels})
        self.tab: Tab = browser.tab("recovering.html")
        seconds = float(self.tab.evaluate("performance.now()")) / 1000
        self._offset = time.monotonic() - seconds
        """the seconds from the clock of the page to the clock of this process"""
        hosts = {"wsHost": "127.0.0.1", "wsPort": port, "httpHost": "127.0.0.1", "httpPort": port}
        paths = {"wsPath": f"/resume/{name}", "httpPath": f"/resume/{name}/pusher"}
        options = {**hosts, **paths, "enabledTransports": [road], "activityTimeout": 1000, "pongTimeout": 1000, **client}
        self.tab.do("start", "app-key", "secret", options, name, channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tab.close()

    def rows(self) -> list[list[Any]]:
        rows: list[list[Any]] = self.tab.evaluate("log.splice(0)")
        return [[name, at + self._offset, *rest] for name, at, *rest in rows]


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    "later", [pytest.param(True, marks=pytest.mark.long), False], ids=["the same network", "another network"]
)
def test_page_in_a_browser_recovers_from_a_dead_network(
    browser: Browser, server: ServerProcess, proxy: Blackhole, channel: str, road: str, later: bool
) -> None:
    """later: whether the network of the page is dead for some seconds; otherwise the page has another network at once."""
    channels = [channel]
    # Over HTTP, each subscription is a request. The browser would send it on an idle connection, which is dead.
    if road == "ws":
        channels += [f"private-{channel}", f"presence-{channel}"]
    page = TabPage(browser, proxy.port, channels, road)
    publisher = Publisher([server.api_port], channels, 20)
    with together(page, publisher):
        until_joined([page])
        time.sleep(1.5)
        at = proxy.freeze(later=later)
        if later:
            time.sleep(4)
            proxy.thaw()
        until_joined([page], 2)
        verify([page], [publisher], recovered=1, repeat_seconds=BOUND, cuts=[at])


def test_page_whose_browser_repeats_a_poll_recovers(
    browser: Browser, server: ServerProcess, proxy: Blackhole, channel: str
) -> None:
    """A browser repeats a request by itself if the connection ends before the response, though the response had events."""
    page = TabPage(browser, proxy.port, [channel], "xhr_polling")
    publisher = Publisher([server.api_port], [channel], 20)
    with together(page, publisher):
        until_joined([page])
        time.sleep(1.5)
        cut_before = len(proxy.links) - len(proxy.open_links)

        def is_cut() -> bool:  # between two polls, the browser may open another connection
            proxy.cut_before(b"HTTP/1.1 200")
            return len(proxy.links) - len(proxy.open_links) > cut_before

        wait_until(is_cut, "a response is cut")
        until_joined([page], 2)
        verify([page], [publisher], recovered=1, repeat_seconds=BOUND)


def test_page_in_a_browser_that_closes_first_while_events_are_on_their_way_recovers(
    browser: Browser, server: ServerProcess, proxy: Blackhole, channel: str
) -> None:
    """The page also closes while its script is busy, so that the browser has events that the page does not have."""
    page = TabPage(browser, proxy.port, [channel], "ws", activityTimeout=60_000)
    publisher = Publisher([server.api_port], [channel], 100)
    busy = "{ const end = performance.now() + 300; while (performance.now() < end); pusher.disconnect(); }"
    with together(page, publisher):
        until_joined([page])
        for times, way in enumerate(("pusher.disconnect()", busy, busy), 2):
            time.sleep(BOUND)
            page.tab.evaluate(way)
            page.tab.evaluate("pusher.connect()")
            until_joined([page], times)
        verify([page], [publisher], recovered=3, repeat_seconds=BOUND + 0.3)


def test_page_in_a_browser_that_is_cut_while_its_script_is_busy_recovers(
    browser: Browser, server: ServerProcess, proxy: Blackhole, channel: str
) -> None:
    """The browser has received the last events and pings, and the page has not, when the connection ends."""
    page = TabPage(browser, proxy.port, [channel], "ws", activityTimeout=60_000)
    publisher = Publisher([server.api_port], [channel], 100)
    with together(page, publisher):
        until_joined([page])
        cuts = []
        for times, reset in enumerate((True, False), 2):
            time.sleep(BOUND)
            page.tab.evaluate(
                "setTimeout(() => { const end = performance.now() + 2500; while (performance.now() < end); }, 0); 0"
            )
            time.sleep(2)
            cuts.append(proxy.cut(reset=reset))
            until_joined([page], times)
        verify([page], [publisher], recovered=2, repeat_seconds=BOUND + 2.5, cuts=cuts)
