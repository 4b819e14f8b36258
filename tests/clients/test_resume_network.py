"""Clients recover from networks that fail: they miss no event without a notification, and are not notified without need.

Clients are real pusher-js, a Pusher client that hides no frame, and a raw client. The server has one worker.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.blackhole import Blackhole, blackhole
from tests.support.process import ServerProcess, merged, running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    BOUND,
    CONFIG,
    Clients,
    NodePages,
    PageClient,
    Publisher,
    RawClient,
    StreamClient,
    kept,
    page_name,
    running_with,
    together,
    until,
    until_joined,
    until_received,
    updated,
    verify,
)
from tests.support.recovery import Answer, Joined

RATE = 20
"""requests a second of a publisher"""
HASTY = {"activityTimeout": 1000, "pongTimeout": 1000}
"""options of pusher-js that notice a silent connection early"""
PATIENCE = 2.0
KINDS = (PageClient, RawClient, StreamClient)


@pytest.fixture(scope="module", params=["memory", pytest.param("Valkey", marks=pytest.mark.long)])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    sections = ({"filter": ["small-"], "size": 10, "ttl": 600}, {"size": 2000, "ttl": 600})
    with running_with(request.param, kept(*sections)) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(server.ws_port) as made:
        yield made


def pages(proxy: Blackhole, *channels: str, **client: Any) -> NodePages:
    return NodePages(proxy.port, {page_name(): channels}, **{**HASTY, **client})


def all_kinds(proxy: Blackhole, channel: str, patience: float = 1e9) -> tuple[list[str], list[Clients]]:
    """Returns channels, and clients of each kind on some of these channels."""
    channels = [channel, f"private-{channel}", f"presence-{channel}"]
    return channels, [
        pages(proxy, *channels),
        PageClient(proxy.port, channels, patience=patience),
        RawClient(proxy.port, channels[:1], patience=patience),
        StreamClient(proxy.port, channels[:1], patience=patience),
    ]


# A dead network


@pytest.mark.parametrize("later", [True, False], ids=["the network comes back", "the client changes its network"])
def test_connection_that_stops_forwarding_for_5_seconds_recovers(
    server: ServerProcess, proxy: Blackhole, channel: str, later: bool
) -> None:
    channels, clients = all_kinds(proxy, channel, PATIENCE)
    publisher = Publisher([server.api_port], channels, RATE)
    with together(*clients, publisher):
        until_joined(clients)
        time.sleep(1.5)
        at = proxy.freeze(later=later)
        if later:
            time.sleep(5)
            proxy.thaw()
        until_joined(clients, 2)
        verify(clients, [publisher], recovered=1, repeat_seconds=BOUND, cuts=[at])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [500, 60, 200])  # no idle process of `make test-long` takes over the test after the first
def test_connection_that_stops_forwarding_for_minutes_recovers_within_its_window(channel: str, seconds: int) -> None:
    """The server ends a silent connection after 150 s, and keeps positions for 300 s more."""
    config = {"server": {"pusher": {"activity-timeout": 120}, "websocket": {"activity-timeout": 120}}}
    with running(merged(CONFIG, config), kept(resume={"seconds": 300})) as server, blackhole(server.ws_port) as proxy:
        channels = [channel, f"private-{channel}"]
        by_page: list[Clients] = [NodePages(proxy.port, {page_name(): channels}), PageClient(proxy.port, channels, patience=60)]
        by_position: list[Clients] = [kind(proxy.port, channels[:1], patience=60) for kind in (RawClient, StreamClient)]
        clients = [*by_page, *by_position]
        publisher = Publisher([server.api_port], channels, 1)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(5)
            at = proxy.freeze()
            time.sleep(seconds)
            proxy.cut()
            proxy.thaw()
            until_joined(clients, 2, deadline=240)
            publisher.stop()
            verify(by_position, [publisher], recovered=1, repeat_seconds=0)
            if seconds < 450:
                verify(by_page, [publisher], recovered=1, repeat_seconds=BOUND, cuts=[at])
            else:
                verify(by_page, [publisher], recovered=0, reasons={"unknown": 2})


# Ends of connections


def test_page_that_closes_first_while_events_are_on_their_way_recovers(
    server: ServerProcess, proxy: Blackhole, channel: str
) -> None:
    client = pages(proxy, channel)
    publisher = Publisher([server.api_port], [channel], 100)
    with together(client, publisher):
        until_joined([client])
        (log,) = client.logs
        for times in range(2, 5):
            time.sleep(BOUND)  # until then, the page has acknowledged nothing
            client.process.tell("disconnect", page=log.name)
            time.sleep(0.1)
            client.process.tell("connect", page=log.name)
            until_joined([client], times)
        verify([client], [publisher], recovered=3, repeat_seconds=BOUND)


def test_idle_channel_recovers_before_its_first_event(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """A subscription that never received an event has a position too."""
    channels, clients = all_kinds(proxy, channel)
    publisher = Publisher([server.api_port], channels, 1)
    with together(*clients):
        until_joined(clients)
        time.sleep(2 * ACKNOWLEDGE)
        proxy.cut()
        until_joined(clients, 2)
        assert {one.replayed for log in updated(clients) for one in log.entries if isinstance(one, Answer)} == {0}
        proxy.refuses = True
        proxy.cut()
        publisher.publish()
        proxy.refuses = False
        until_joined(clients, 3)
        publisher.publish()
        verify(clients, [publisher], recovered=2)


def test_lost_notification_of_a_first_subscription_is_sent_again(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """A page that never got `recovered: false` must not get `recovered: true`."""
    proxy.cut_next_before(b"pusher:resumed")
    client = PageClient(proxy.port, [channel])
    publisher = Publisher([server.api_port], [channel], RATE)
    with together(client, publisher):
        until_joined([client])
        assert len(proxy.links) == 2
        time.sleep(2 * ACKNOWLEDGE)
        at = proxy.cut()
        until_joined([client], 2)
        verify([client], [publisher], recovered=1, repeat_seconds=BOUND, cuts=[at])


@pytest.mark.parametrize("count", [1, 5])
def test_lost_notification_of_a_trimmed_channel_is_sent_again(
    server: ServerProcess, proxy: Blackhole, channel: str, count: int
) -> None:
    channels = [f"small-{channel}-{number}" for number in range(count)]
    client = PageClient(proxy.port, channels)
    publisher = Publisher([server.api_port], channels, 1)
    with together(client):
        until_joined([client])
        publisher.publish()
        until_received([client], publisher.published)
        time.sleep(2 * ACKNOWLEDGE)
        proxy.refuses = True
        proxy.cut()
        wait_until(lambda: not client.is_connected, "the client notices the cut")
        for _ in range(12):
            publisher.publish()
        proxy.cut_next_before(b"pusher:resumed")
        links = len(proxy.links)
        proxy.refuses = False
        until_joined([client], 2)
        assert len(proxy.links) == links + 2
        publisher.publish()
        until_received([client], publisher.published)
        verify([client], [publisher], recovered=0, reasons=[{"unknown": 2}, {"unknown": 1, "trimmed": 1}])


# Cuts in bad moments


def test_cuts_within_a_replay_lose_nothing(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """Each connection ends at another byte of the replay; the first event after a replay is not taken for a gap."""
    clients: list[Clients] = [kind(proxy.port, [channel]) for kind in KINDS]
    publisher = Publisher([server.api_port], [channel], 50)
    with together(*clients, publisher):
        until_joined(clients)
        time.sleep(2 * ACKNOWLEDGE)
        for size in range(300, 5000, 900):
            proxy.refuses = True
            proxy.cut()
            time.sleep(0.3)
            proxy.cut_next_after(size)
            proxy.refuses = False
            time.sleep(0.3)
        links = len(proxy.open_links)
        until(clients, lambda log, name: log.answers(name)[-1] is None and links > 0, "a recovery")
        time.sleep(1)
        joins = max(log.count(channel, Joined) for log in updated(clients))
        verify(clients, [publisher], recovered=range(1, joins + 1), repeat_seconds=BOUND + 1)


def cut_at_random(server: ServerProcess, proxy: Blackhole, channel: str, times: int, pauses: list[float]) -> None:
    channels, clients = all_kinds(proxy, channel)
    publisher = Publisher([server.api_port], channels, RATE)
    with together(*clients, publisher):
        until_joined(clients)
        time.sleep(2 * ACKNOWLEDGE)
        cuts = []
        for number in range(times):
            time.sleep(pauses[number % len(pauses)])
            cuts.append(proxy.cut(reset=number % 2 == 0))
        time.sleep(2 * ACKNOWLEDGE)
        until(clients, lambda log, name: log.answers(name)[-1] is None, "a recovery")
        verify(clients, [publisher], recovered=range(1, times + 1), repeat_seconds=BOUND, cuts=cuts)


def test_cuts_at_irregular_moments_lose_nothing(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """Two of the cuts are less than a second apart."""
    cut_at_random(server, proxy, channel, 4, [1.3, 0.4, 0.7, 1.1])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_20_cuts_at_irregular_moments_lose_nothing(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    cut_at_random(server, proxy, channel, 20, [0.3, 2.9, 0.7, 4.1, 1.6, 5.3, 0.9, 2.2])


# Two connections of one page


def test_two_live_connections_with_one_name_are_both_notified(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    one = PageClient(proxy.port, [channel])
    other = PageClient(proxy.port, [channel], one.name)
    publisher = Publisher([server.api_port], [channel], RATE)
    with together(one, publisher), contextlib.ExitStack() as stack:
        until_joined([one])
        time.sleep(2 * ACKNOWLEDGE)
        stack.enter_context(other)
        until_joined([other])
        time.sleep(1)
        links = len(proxy.links)
        proxy.open_links[0].cut()
        until_joined([one], 2)
        time.sleep(1.5)
        assert len(proxy.links) == links + 1, "the two connections do not end each other"
        verify([one], [publisher], recovered=0, reasons={"unknown": 1, "shared": 1})
        verify([other], [publisher], recovered=0, reasons={"shared": 1})


def test_connection_that_never_subscribes_does_not_prevent_a_recovery(
    server: ServerProcess, proxy: Blackhole, channel: str
) -> None:
    """pusher-js opens several connections at once, and drops all but one."""
    client = PageClient(proxy.port, [channel])
    loser = PageClient(proxy.port, [], client.name)
    publisher = Publisher([server.api_port], [channel], RATE)
    with together(client, publisher):
        until_joined([client])
        time.sleep(2 * ACKNOWLEDGE)
        with loser:
            wait_until(lambda: bool(loser.socket_id), "the second connection is established")
            proxy.links[0].cut()
            until_joined([client], 2)
        proxy.cut()
        until_joined([client], 3)
        verify([client], [publisher], recovered=2, repeat_seconds=BOUND)


def opened(server: ServerProcess) -> float:
    """Returns the number of connections that the server has established."""
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(one.split()[-1]) for one in lines if one.startswith("push1st_connections_opened_total{"))


def test_transports_that_race_with_each_other_are_no_twins(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """pusher-js opens an HTTP stream too if its WebSocket is slow, and drops the one that is established later."""
    with blackhole(server.ws_port) as streams:
        client = pages(proxy, channel, enabledTransports=["ws", "xhr_streaming"], httpPort=streams.port)
        publisher = Publisher([server.api_port], [channel], RATE)
        with together(client, publisher):
            until_joined([client])
            cuts: list[Any] = []
            races = 0

            def race(first: Blackhole, second: Blackhole) -> bool:
                """Lets both transports connect at the same time. Returns whether the server has established both."""
                nonlocal cuts, races
                time.sleep(2 * ACKNOWLEDGE)
                before, established = (len(proxy.links), len(streams.links)), opened(server)
                proxy.freeze()
                streams.freeze()
                cuts += [proxy.cut(), streams.cut()]
                wait_until(lambda: len(proxy.links) > before[0] and len(streams.links) > before[1], "both transports connect")
                first.thaw()
                second.thaw()
                races += 1
                until_joined([client], races + 1)
                with contextlib.suppress(AssertionError):  # on a busy machine, pusher-js may drop one before it is established
                    return wait_until(lambda: opened(server) == established + 2, "both transports are established", 1)
                return False

            for first, second in ((streams, proxy), (proxy, streams)):
                assert any(race(first, second) for _ in range(5)), "both transports are established in one of the races"
            verify([client], [publisher], recovered=races, repeat_seconds=BOUND, cuts=cuts)


def test_second_cut_after_a_dead_connection_repeats_only_what_its_page_may_have_missed(
    server: ServerProcess, proxy: Blackhole, channel: str
) -> None:
    """The record of the dead connection must not hold back the positions of the next connections."""
    client = PageClient(proxy.port, [channel], patience=1)
    publisher = Publisher([server.api_port], [channel], RATE)
    with together(client, publisher):
        until_joined([client])
        time.sleep(2 * ACKNOWLEDGE)
        first = proxy.freeze(later=False)
        until_joined([client], 2)
        time.sleep(12)
        second = proxy.freeze(later=False)
        until_joined([client], 3)
        verify([client], [publisher], recovered=2, repeat_seconds=BOUND, cuts=[first, second])
