"""Raw WebSocket clients that resume by position, over real sockets (Push1st API, section 7)."""

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import pytest

from tests.support.process import APP, ServerProcess, merged, running
from tests.support.raw_socket import RawSocket, raw_socket
from tests.support.recovery import Answer, Joined, Log, Lost, Received, Sent, check

HISTORY = {"history": [{"filter": ["private-"], "rewind": 2}, {"filter": ["other-"], "size": 3}, {"size": 1000}]}
KEY = "history-key"
APPS = {"app-history": merged(APP, {"key": KEY, **HISTORY})}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def raw(server: ServerProcess, stack: contextlib.ExitStack) -> Callable[..., RawSocket]:
    return lambda *channels, **options: stack.enter_context(raw_socket(server, *channels, key=KEY, **options))


def publish(server: ServerProcess, channel: str, *values: int) -> None:
    for value in values:
        body = {"name": "e", "channels": [channel], "data": value}
        assert server.post("/apps/app-history/events", body).status == 200


def resumed(socket: RawSocket, channel: str) -> dict[str, Any]:
    """Returns the data of the next message, which must be `resumed`."""
    data: dict[str, Any] = socket.expect("resumed", channel)
    return data


def test_client_that_reconnects_with_its_last_position_misses_nothing(server, raw, channel):
    first = raw(channel, query="positions=1")
    assert resumed(first, channel)["reason"] == "unknown"
    publish(server, channel, 1, 2)
    position = [first.receive()["#msg-pos"] for _ in range(2)][-1]
    first.connection.close()
    publish(server, channel, 3, 4)
    second = raw(channel, query=f"since={position}")
    assert resumed(second, channel) == {"recovered": True, "replayed": 2, "repeats": False, "position": f"{position[:-1]}4"}
    publish(server, channel, 5)
    assert [second.expect("e", channel) for _ in range(3)] == [3, 4, 5]


def test_client_of_an_idle_channel_resumes_at_the_position_of_its_subscription(server, raw, channel):
    first = raw(channel, query="positions=1")
    position = resumed(first, channel)["position"]
    first.connection.close()
    publish(server, channel, 1)
    second = raw(channel, query=f"since={position}")
    assert resumed(second, channel)["recovered"]
    assert second.expect("e", channel) == 1


def test_client_without_the_parameters_gets_no_position_and_no_resumed(server, raw, channel):
    publish(server, channel, 1)
    socket = raw(channel)
    other = raw(channel, query="positions=1")
    resumed(other, channel)
    publish(server, channel, 2)
    assert set(socket.receive()) == {"event", "channel", "data", "#msg-id", "#msg-from", "#msg-time"}
    assert other.receive()["#msg-pos"].endswith(":2")


def test_a_trimmed_position_replays_nothing(server, raw, channel):
    name = f"other-{channel}"
    first = raw(name, query="positions=1")
    position = resumed(first, name)["position"]
    publish(server, name, *range(1, 5))
    second = raw(name, query=f"since={position}")
    assert resumed(second, name)["reason"] == "trimmed"
    assert second.round_trip() == []
    third = raw(name, query=f"since={position}&rewind=100")
    assert resumed(third, name) == {
        "recovered": False,
        "reason": "trimmed",
        "replayed": 3,
        "position": position.replace(":0", ":4"),
    }
    assert [third.expect("e", name) for _ in range(3)] == [2, 3, 4]


def test_private_channel_allows_the_rewind_of_its_section_only(server, raw, channel):
    name = f"private-{channel}"
    publish(server, name, *range(1, 6))
    token = server.post("/apps/app-history/token/access/", {"origin": "*", "channel": "*", "ttl": 0}).body.decode()
    socket = raw(name, query=f"rewind=100&token={token}")
    assert resumed(socket, name)["replayed"] == 2
    assert [socket.expect("e", name) for _ in range(2)] == [4, 5]
    assert socket.round_trip() == []
    epoch, _, _ = resumed(raw(name, query=f"positions=1&token={token}"), name)["position"].partition(":")
    assert resumed(raw(name, query=f"since={epoch}:0&token={token}"), name)["replayed"] == 5


def test_channels_that_are_not_permitted_keep_their_places_in_since(server, raw, channel):
    names = [f"private-{channel}", f"{channel}-1", f"{channel}-2", f"{channel}-1"]
    first = raw(*names, query="positions=1")
    one, two = resumed(first, names[1])["position"], resumed(first, names[2])["position"]
    publish(server, names[1], 1)
    publish(server, names[2], 2)
    second = raw(*names, query=f"since=-,{one},{two},-")
    for name, value in ((names[1], 1), (names[2], 2)):
        assert resumed(second, name)["recovered"]
        assert second.expect("e", name) == value


def test_client_gets_an_error_for_each_of_many_channels_that_are_not_permitted(server, raw, channel):
    names = [f"private-{channel}-{n}" for n in range(300)]
    socket = raw(*names, channel, query="positions=1")
    assert resumed(socket, channel)["reason"] == "unknown"
    assert [socket.expect_error()["code"] for _ in names] == [401] * 300
    publish(server, channel, 1)
    assert socket.expect("e", channel) == 1


@pytest.mark.parametrize("since", ["x", "a:1,b:2", "%00", "a:" + "9" * 30, "," * 10_000, "x" * 5000, "%f0%9f%98%80"])
def test_odd_positions_are_unknown_and_harm_nobody(server, raw, channel, since):
    socket = raw(channel, query=f"since={since}")
    assert resumed(socket, channel)["reason"] == "unknown"
    publish(server, channel, 1)
    assert socket.expect("e", channel) == 1


@pytest.mark.parametrize("query", ["rewind=0", "rewind=101", "rewind=5m", "positions=true"])
def test_a_malformed_query_is_closed_with_1008(raw, channel, query):
    assert raw(channel, query=query).close_code() == 1008


def test_a_client_that_is_cut_twenty_times_sees_each_event_once(server, channel):
    """The first message after a recovery is no gap, a recovery works many times, and a second recovery repeats nothing."""
    sent: list[Sent] = []
    stop = Event()

    def publish_all() -> None:
        while not stop.is_set():
            began = time.monotonic()
            publish(server, channel, len(sent) + 1)
            sent.append(Sent(channel, len(sent) + 1, began, time.monotonic()))
            time.sleep(0.005)

    log = Log("client", [channel], receives_own=True)
    publisher = Thread(target=publish_all)
    publisher.start()
    position = ""
    try:
        for number in range(21):
            query = f"since={position}" if position else "positions=1"
            with raw_socket(server, channel, key=KEY, query=query) as socket:
                left = 10
                while left:
                    message = socket.receive()
                    at = time.monotonic()
                    if message["event"] == "resumed":
                        data = message["data"]
                        log.entries.append(Joined(at, channel))
                        log.entries.append(
                            Answer(at, channel, data.get("reason"), data.get("replayed", 0), False, data["position"])
                        )
                        position = position or data["position"]
                        left = max(data.get("replayed", 0), 10)
                        continue
                    position = message["#msg-pos"]
                    log.entries.append(Received(at, channel, message["data"], position))
                    left -= 1
                if number == 20:
                    stop.set()
                    publisher.join()
                    while log.seqs(channel)[-1] < len(sent):
                        message = socket.receive()
                        log.entries.append(Received(time.monotonic(), channel, message["data"], message["#msg-pos"]))
            log.entries.append(Lost(time.monotonic()))
    finally:
        stop.set()
        publisher.join()
    check(log, sent, recovered=20)
