"""Pages in a real browser recover from lost connections and crossing closes: pusher-js over each transport, and Laravel Echo."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pytest
from pusher.crypto import encrypt

from tests.clients.browser import Browser, Tab
from tests.support.blackhole import Blackhole, blackhole
from tests.support.nodejs import MASTER_KEY
from tests.support.process import ServerProcess, merged, running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    BOUND,
    CONFIG,
    Publisher,
    PusherPages,
    kept,
    page_name,
    together,
    until_joined,
    until_received,
    verify,
)
from tests.support.recovery import Answer
from tests.support.valkey import Valkey

ROADS = ("ws", "xhr_streaming", "xhr_polling")
ENCRYPTED = "private-encrypted-"
ECHO = ("", "private-", "presence-", ENCRYPTED)
KINDS = [
    pytest.param(("cache-", "private-cache-", "presence-cache-"), {}, id="cache channels"),
    pytest.param((ENCRYPTED, f"{ENCRYPTED}cache-"), {}, id="encrypted channels"),
    pytest.param(("#server-to-user-",), {}, id="the channel of a user"),
    pytest.param(ECHO, {"broadcaster": "reverb"}, id="Laravel Echo for Reverb"),
    pytest.param(ECHO, {"broadcaster": "pusher"}, id="Laravel Echo for Pusher"),
]
"""prefixes of channels, and options of the client"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(CONFIG, kept()) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(server.ws_port) as made:
        yield made


class EncryptingPublisher(Publisher):
    """Publishes to one encrypted channel, like a library of a backend."""

    def data(self, seq: int) -> dict[str, Any]:
        found: dict[str, Any] = encrypt(self.channels[0], json.dumps(super().data(seq)), base64.b64decode(MASTER_KEY))
        return found


class TabPage(PusherPages):
    """A page in a tab of the browser. client: further options of pusher-js, or of Laravel Echo if they have a `broadcaster`."""

    def __init__(self, browser: Browser, port: int, channels: Sequence[str], road: str, **client: Any) -> None:
        name = page_name()
        super().__init__({name: channels})
        is_encrypted = any(one.startswith(ENCRYPTED) for one in channels)
        self.tab: Tab = browser.tab("recovering.html" + "#encryption" * is_encrypted)
        seconds = float(self.tab.evaluate("performance.now()")) / 1000
        self._offset = time.monotonic() - seconds
        """the seconds from the clock of the page to the clock of this process"""
        hosts = {"wsHost": "127.0.0.1", "wsPort": port, "httpHost": "127.0.0.1", "httpPort": port}
        paths = {"wsPath": f"/resume/{name}", "httpPath": f"/resume/{name}/pusher"}
        options = {**hosts, **paths, "enabledTransports": [road], "activityTimeout": 1000, "pongTimeout": 1000, **client}
        self.tab.do("start", "app-key", options, name, channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tab.close()

    def be_busy(self, seconds: float) -> None:
        """Starts a script after which the page handles what the browser has received in the meantime."""
        busy = f"const end = performance.now() + {1000 * seconds}; while (performance.now() < end);"
        self.tab.evaluate(f"setTimeout(() => {{ {busy} }}, 0); 0")

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
            page.be_busy(2.5)
            time.sleep(2)
            cuts.append(proxy.cut(reset=reset))
            until_joined([page], times)
        verify([page], [publisher], recovered=2, repeat_seconds=BOUND + 2.5, cuts=cuts)


@pytest.mark.parametrize(("prefixes", "client"), KINDS)
def test_page_in_a_browser_that_is_cut_recovers(
    browser: Browser, server: ServerProcess, proxy: Blackhole, channel: str, prefixes: Sequence[str], client: dict[str, Any]
) -> None:
    """The page has missed no event at the second cut, so the server sends no event again: no cached event either."""
    channels = [prefix + channel for prefix in prefixes]
    publishers = [
        (EncryptingPublisher if one.startswith(ENCRYPTED) else Publisher)([server.api_port], [one], 20) for one in channels
    ]
    page = TabPage(browser, proxy.port, channels, "ws", **client)
    with together(page, *publishers):
        until_joined([page])
        time.sleep(1.5)
        cuts = [proxy.cut()]
        until_joined([page], 2)
        until_received([page], [one for publisher in publishers for one in publisher.stop()])
        time.sleep(2 * ACKNOWLEDGE)
        cuts.append(proxy.cut())
        until_joined([page], 3)
        for publisher in publishers:
            publisher.publish()
        verify([page], publishers, recovered=2, repeat_seconds=BOUND, cuts=cuts)
        answers = [one for one in page.logs[0].entries if isinstance(one, Answer)]
        assert {one.replayed for one in answers[-len(channels) :]} == {0}


@pytest.fixture
def machines() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers with one broker; a test stops the first one."""
    with contextlib.closing(Valkey()) as valkey:
        config = merged(CONFIG, {"broker": valkey.url})
        with running(config, kept()) as first, running(config, kept()) as second:
            yield first, second


@pytest.mark.parametrize("crosses", [True, False], ids=["closes too", "is busy"])
def test_page_in_a_browser_recovers_from_a_server_that_stops_while_the_page(
    browser: Browser, machines: tuple[ServerProcess, ServerProcess], channel: str, crosses: bool
) -> None:
    """crosses: the close frames of the page and of the server cross, so the frame of the page is no answer to the other frame.

    Otherwise, the browser answers the close frame of the server while the script of the page has not received the last events.
    """
    first, second = machines
    with blackhole(first.ws_port) as proxy:
        page = TabPage(browser, proxy.port, [channel], "ws", activityTimeout=60_000)
        publisher = Publisher([second.api_port], [channel], 100)
        with together(page, publisher):
            until_joined([page])
            time.sleep(BOUND)
            proxy.target = second.ws_port
            if crosses:
                cuts = [proxy.freeze(later=False)]
                first.signal()
                wait_until(lambda: "waiting for connections to close" in first.output, "the server has sent its close frame")
                page.tab.evaluate("pusher.disconnect(); pusher.connect()")
                proxy.thaw()
            else:
                cuts = []
                page.be_busy(2.5)
                first.signal()
            first.wait()
            until_joined([page], 2)
            verify([page], [publisher], recovered=1, repeat_seconds=BOUND if crosses else 0, cuts=cuts)
