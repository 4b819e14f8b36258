"""clients/js/push1st.js with a real server, in Node.js, over WebSockets and event streams.

`test_push1st_js_rules.py` tests the rules that no real server shows at will. `test_browser.py` runs the file in a browser.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.clients.scripted import Road
from tests.support.blackhole import Blackhole, blackhole
from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, merged, running, wait_until
from tests.support.recovering import (
    NodePages,
    Publisher,
    kept,
    together,
    until,
    until_joined,
    updated,
    verify,
)
from tests.support.recovery import Log
from tests.support.valkey import Valkey

ROADS: tuple[Road, ...] = ("ws", "sse")
FLAGS = ("--experimental-websocket", "--no-warnings")
HURRY = 10
"""how many times faster than in use the client connects again"""
HASTE = 15
"""how many times faster than in use the client notices silence"""
RATE = 100
"""events a second"""

SECTIONS = ({"filter": ["small-"], "size": 3}, {"filter": ["none-"], "size": 1}, {"size": 5000, "ttl": 600})
APPS: dict[str, Any] = {
    **kept(*SECTIONS),
    "app-off": merged(APP, {"key": "off-key", "enable": False}),
    "app-bare": merged(APP, {"key": "bare-key"}),
    "app-origins": merged(APP, {"key": "origins-key", "origins": ["https://good.example"]}),
}
PROTOCOLS = {"server": {"proto": ["pusher", "websocket", "sse"]}}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(PROTOCOLS, apps=APPS) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(server.ws_port) as made:
        yield made


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> Road:
    found: Road = request.param
    return found


def address(road: Road, port: int, key: str = "app-key") -> str:
    return f"ws://127.0.0.1:{port}/ws/app/{key}" if road == "ws" else f"http://127.0.0.1:{port}/sse/app/{key}"


@pytest.fixture
def connect(node: Callable[..., NodeProcess], road: Road) -> Callable[..., NodeProcess]:
    """Starts a client."""

    def start(port: int, *channels: str, key: str = "app-key", query: str = "", **options: Any) -> NodeProcess:
        url = address(road, port, key) + query
        return node("push1st_js.mjs", flags=FLAGS, **{"url": url, "channels": channels, "hurry": HURRY, **options})

    return start


class Push1stClient(NodePages):
    """One client for `tests/support/recovery.py`. options: those of the script."""

    def __init__(self, road: Road, port: int, channels: Sequence[str], **options: Any) -> None:
        all_options = {"url": address(road, port), "channels": channels, "hurry": HURRY, **options}
        self.process = NodeProcess("push1st_js.mjs", all_options, FLAGS)
        self.logs = [Log("client", channels, receives_own=True)]
        self._by_name = {"client": self.logs[0]}


def answers(client: Push1stClient) -> dict[str, int]:
    """Returns the number of answers to subscriptions, by channel."""
    (log,) = updated([client])
    return {channel: len(log.answers(channel)) for channel in log.channels}


def until_more(client: Push1stClient, before: Mapping[str, int]) -> None:
    """Waits until the server has answered a further subscription to each channel."""
    until([client], lambda log, channel: len(log.answers(channel)) > before[channel], "further answers")


def token(server: ServerProcess, channel: str = "*", ttl: int = 0) -> str:
    asked = {"origin": "*", "channel": channel, "ttl": ttl}
    return server.post("/apps/app-test/token/access/", asked).body.decode()


# Never a gap


def test_a_client_that_is_cut_often_receives_each_event_once(
    server: ServerProcess, proxy: Blackhole, road: Road, channel: str
) -> None:
    channels = [f"{channel}-{number}" for number in range(3)]
    with together(Push1stClient(road, proxy.port, channels), Publisher([server.api_port], channels, RATE)) as (client, publisher):
        until_joined([client])
        for number in range(10):
            time.sleep(0.05 * (number % 4))
            before = answers(client)
            if not number % 2:
                proxy.cut_next_after(700 * number)  # in the middle of a replay, as a rule
            proxy.cut()
            until_more(client, before)
        assert verify([client], [publisher], recovered=range(10, 40)) == 0


def test_a_client_behind_a_silent_proxy_connects_again(server: ServerProcess, proxy: Blackhole, road: Road, channel: str) -> None:
    with together(Push1stClient(road, proxy.port, [channel], haste=HASTE), Publisher([server.api_port], [channel], RATE)) as (
        client,
        publisher,
    ):
        until_joined([client])
        proxy.freeze(later=False)
        until_joined([client], 2)
        assert verify([client], [publisher], recovered=1) == 0


def test_a_silent_connection_stays_open(server: ServerProcess, connect: Callable[..., NodeProcess], channel: str) -> None:
    """The server answers the pings of WebSockets, and sends heartbeats to streams."""
    client = connect(server.ws_port, channel, haste=2)
    client.next(on="state", state="connected")
    time.sleep(25)  # longer than the client waits for an answer
    server.publish(channel, "e", {"seq": 1})
    client.next(on="event", event="e")
    assert not [one for one in client.seen if one.get("state") == "waiting"]


def test_a_client_of_an_idle_channel_recovers(
    server: ServerProcess, proxy: Blackhole, connect: Callable[..., NodeProcess], channel: str
) -> None:
    client = connect(proxy.port, channel)
    client.next(on="gap")
    proxy.cut()
    client.next(on="resumed", replayed=0)
    server.publish(channel, "e", {"seq": 1})
    client.next(on="event")


# Restarts


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    broker = Valkey()
    yield broker
    broker.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_client_recovers_when_its_server_restarts(valkey: Valkey, road: Road, channel: str, number: int) -> None:
    """A second server, which the publisher uses, stays."""
    broker = merged(PROTOCOLS, {"broker": valkey.url})
    with (
        running(broker, apps=APPS) as other,
        running(broker, apps=APPS) as server,
        together(Push1stClient(road, server.ws_port, [channel]), Publisher([other.api_port], [channel], RATE)) as both,
    ):
        client, publisher = both
        until_joined([client])
        server.signal(number)
        assert server.process is not None
        server.process.wait(20)
        server.start()
        until_joined([client], 2)
        assert verify([client], [publisher], recovered=1) == 0


def test_a_client_is_notified_when_the_history_is_lost(connect: Callable[..., NodeProcess], channel: str) -> None:
    """Without a broker, the history ends with the server."""
    with running(PROTOCOLS, apps=APPS) as server:
        client = connect(server.ws_port, channel)
        client.next(on="gap", reason="unknown")
        server.publish(channel, "e", {"seq": 1})
        client.next(on="event")
        server.signal()
        server.wait()
        server.start()
        position = client.next(on="gap", reason="state-lost")["position"]
        assert client.ask("positions") == {channel: position}
        server.publish(channel, "e", {"seq": 2})
        assert client.next(on="event")["position"] == position.replace(":0", ":1")


def test_a_connected_client_is_notified_when_the_broker_loses_its_data(connect: Callable[..., NodeProcess], channel: str) -> None:
    broker = Valkey()
    try:
        with running(merged(PROTOCOLS, {"broker": broker.url}), apps=APPS) as server:
            client = connect(server.ws_port, channel)
            client.next(on="gap", reason="unknown")
            server.publish(channel, "e", {"seq": 1})
            client.next(on="event")
            broker.kill()
            broker.start()
            position = client.next(on="gap", reason="state-lost")["position"]
            event = {"name": "e", "channels": [channel], "data": {"seq": 2}, "idempotency_key": "2"}
            wait_until(lambda: server.post("/apps/app-test/events", event).status == 200, "publishes are accepted again")
            assert client.next(on="event")["position"].partition(":")[0] == position.partition(":")[0]
            assert not [one for one in client.seen if one.get("state") == "waiting"]
    finally:
        broker.close()


# Gaps


def test_a_client_that_was_away_too_long_is_notified(
    server: ServerProcess, proxy: Blackhole, connect: Callable[..., NodeProcess], channel: str
) -> None:
    name = f"small-{channel}"
    client = connect(proxy.port, name)
    begin = client.next(on="gap", reason="unknown")["position"]
    proxy.freeze()
    proxy.cut()
    for seq in range(5):
        server.publish(name, "e", {"seq": seq})
    proxy.thaw()
    proxy.cut()
    gap = client.next(on="gap")
    assert (gap["reason"], gap["position"]) == ("trimmed", begin.replace(":0", ":5"))
    server.publish(name, "e", {"seq": 5})
    assert client.next(on="event")["data"] == {"seq": 5}


def test_a_channel_without_a_history_is_a_gap_at_each_connection(
    server: ServerProcess, proxy: Blackhole, connect: Callable[..., NodeProcess], channel: str
) -> None:
    client = connect(proxy.port, channel, key="bare-key")
    assert client.next(on="gap") == {"on": "gap", "channel": channel, "reason": "no-history"}
    proxy.cut()
    client.next(on="gap", reason="no-history")
    assert server.post("/apps/app-bare/events", {"name": "e", "channels": [channel], "data": 1}).status == 200
    event = client.next(on="event", event="e", data=1)
    assert event.get("position") is None


def test_a_new_client_may_request_the_latest_events(
    server: ServerProcess, proxy: Blackhole, connect: Callable[..., NodeProcess], channel: str
) -> None:
    for seq in range(5):
        server.publish(channel, "e", {"seq": seq})
    client = connect(proxy.port, channel, query="?rewind=2")
    client.next(on="gap", reason="unknown")
    assert [client.next(on="event")["data"]["seq"] for _ in range(2)] == [3, 4]
    proxy.cut()
    assert client.next(on="resumed")["replayed"] == 0
    server.publish(channel, "e", {"seq": 5})
    assert client.next(on="event")["data"]["seq"] == 5


def test_a_client_continues_at_the_positions_of_an_earlier_client(
    server: ServerProcess, connect: Callable[..., NodeProcess], channel: str
) -> None:
    first = connect(server.ws_port, channel)
    first.next(on="gap")
    server.publish(channel, "e", {"seq": 1})
    first.next(on="event")
    positions = first.ask("positions")
    first.tell("close")
    server.publish(channel, "e", {"seq": 2})
    second = connect(server.ws_port, channel, positions=positions)
    assert second.next(on="resumed")["replayed"] == 1
    assert second.next(on="event")["data"]["seq"] == 2


def test_a_client_begins_at_the_position_of_the_state_that_it_has(
    server: ServerProcess, connect: Callable[..., NodeProcess], channel: str
) -> None:
    """A backend reads a position before it renders a page, so the page misses no event until it is connected."""
    server.publish(channel, "e", {"seq": 1})
    position = server.get(f"/apps/app-test/channels/{channel}?info=position").json["position"]
    server.publish(channel, "e", {"seq": 2})
    client = connect(server.ws_port, channel, positions={channel: position})
    assert client.next(on="resumed")["replayed"] == 1
    assert client.next(on="event")["data"] == {"seq": 2}


def test_a_callback_that_connects_again_gets_no_event_twice(
    server: ServerProcess, connect: Callable[..., NodeProcess], channel: str
) -> None:
    client = connect(server.ws_port, channel, events={"again": "reopen"})
    client.next(on="gap")
    for _ in range(3):
        server.publish(channel, "again", None)
        client.next(on="event", event="again")
        assert client.next(on="resumed")["replayed"] == 0
    server.publish(channel, "e", {"seq": 1})
    client.next(on="event", event="e")


# Tokens and rejections


def test_a_client_whose_token_expires_goes_on_with_another(
    server: ServerProcess, connect: Callable[..., NodeProcess], channel: str
) -> None:
    name = f"private-{channel}"
    server.publish(name, "e", {"seq": 0})
    client = connect(server.ws_port, name, tokens=[token(server, ttl=2), token(server)])
    client.next(on="gap", channel=name)
    client.next(on="state", state="waiting")
    server.publish(name, "e", {"seq": 1})
    client.next(on="resumed", channel=name)
    client.next(on="event", event="e")


@pytest.mark.parametrize("key", ["nobodys-key", "off-key"])
def test_a_client_with_a_wrong_key_stops(
    server: ServerProcess, connect: Callable[..., NodeProcess], key: str, channel: str
) -> None:
    client = connect(server.ws_port, channel, key=key)
    client.next(on="state", state="closed")
    assert client.next(on="error")["code"] in (4001, 4003, 403, 404)


def test_a_client_without_a_token_stops(server: ServerProcess, connect: Callable[..., NodeProcess], channel: str) -> None:
    client = connect(server.ws_port, f"private-{channel}")
    error = client.next(on="error")
    assert error["code"] in (1008, 401)
    assert "access token" in error["message"]


def test_a_client_learns_which_channel_is_rejected(
    server: ServerProcess, connect: Callable[..., NodeProcess], channel: str
) -> None:
    client = connect(server.ws_port, channel, f"private-{channel}")
    client.next(on="gap", channel=channel)
    error = client.next(on="error")
    assert (error["channel"], error["code"]) == (f"private-{channel}", 401)
    server.publish(channel, "e", {"seq": 1})
    client.next(on="event", event="e")
