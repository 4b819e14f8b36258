"""clients/js/push1st.js in a real browser: in scripts, modules and workers, over WebSockets and event streams."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.browser import Browser, Tab
from tests.clients.scripted import Road
from tests.support.blackhole import Blackhole, blackhole
from tests.support.process import APP, ServerProcess, merged, running, wait_until

ROADS: tuple[Road, ...] = ("ws", "sse")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    apps = {"app-test": merged(APP, {"history": {"size": 1000}})}
    with running({"server": {"proto": ["pusher", "websocket", "sse"]}}, apps=apps) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(server.ws_port) as made:
        yield made


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> Road:
    found: Road = request.param
    return found


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    made = browser.tab("push1st.html")
    yield made
    made.close()


def start(tab: Tab, road: Road, port: int, *channels: str, place: str = "script", key: str = "app-key", **options: Any) -> None:
    url = f"ws://127.0.0.1:{port}/ws/app/{key}" if road == "ws" else f"http://127.0.0.1:{port}/sse/app/{key}"
    tab.do("start", place, url, {"channels": channels, **options})


def publish(server: ServerProcess, channel: str, numbers: range) -> None:
    for number in numbers:
        server.publish(channel, "e", number)


def until_numbers(tab: Tab, numbers: range) -> None:
    wait_until(lambda: tab.evaluate("numbers().length") >= len(numbers), "all events are there", 20)
    assert tab.evaluate("numbers()") == list(numbers)


@pytest.mark.parametrize("place", ["script", "module", "worker"])
def test_a_page_misses_no_event(tab: Tab, server: ServerProcess, proxy: Blackhole, road: Road, channel: str, place: str) -> None:
    start(tab, road, proxy.port, channel, place=place)
    tab.until("gap", channel, "unknown")
    publish(server, channel, range(10))
    until_numbers(tab, range(10))
    proxy.cut_next_after(1200)  # in the middle of the replay
    proxy.cut()
    publish(server, channel, range(10, 30))
    until_numbers(tab, range(30))
    assert [one for one in tab.seen if one[0] == "gap"] == [["gap", channel, "unknown"]]


def test_a_page_that_is_online_again_connects_at_once(
    tab: Tab, server: ServerProcess, proxy: Blackhole, road: Road, channel: str
) -> None:
    """The connection that the page had is silent, and the page would notice this only after 40 seconds."""
    start(tab, road, proxy.port, channel)
    tab.until("gap", channel, "unknown")
    proxy.freeze(later=False)
    publish(server, channel, range(3))
    tab.go_offline(True)
    tab.go_offline(False)
    tab.until("resumed", channel, 3)
    until_numbers(tab, range(3))


def test_a_page_with_a_wrong_key_stops(tab: Tab, server: ServerProcess, road: Road, channel: str) -> None:
    start(tab, road, server.ws_port, channel, key="nobodys-key")
    tab.until("state", "closed")
    (error,) = [one for one in tab.seen if one[0] == "error"]
    assert error[1] == (4001 if road == "ws" else 404)
    assert "nobodys-key" in error[2]


def test_a_page_uses_a_token(tab: Tab, server: ServerProcess, road: Road, channel: str) -> None:
    name = f"private-{channel}"
    token = server.post("/apps/app-test/token/access/", {"origin": "*", "channel": name, "ttl": 0}).body.decode()
    start(tab, road, server.ws_port, name, token=token)
    tab.until("gap", name, "unknown")
    publish(server, name, range(1))
    until_numbers(tab, range(1))
