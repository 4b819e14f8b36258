"""Clients whose messages are no longer kept are notified once, and the others are not."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.support.blackhole import Blackhole, blackhole
from tests.support.process import ServerProcess, merged, running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    CONFIG,
    PageClient,
    Publisher,
    RawClient,
    RecoveringClient,
    StreamClient,
    kept,
    running_with,
    together,
    until_joined,
    until_received,
    verify,
)


@pytest.fixture(scope="module", params=["memory", pytest.param("Valkey", marks=pytest.mark.long)])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    sections = ({"filter": ["small-"], "size": 10, "ttl": 600}, {"filter": ["short-"], "ttl": 1}, {"size": 2000, "ttl": 600})
    with running_with(request.param, kept(*sections)) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(server.ws_port) as made:
        yield made


def each_kind(proxy: Blackhole, channel: str, patience: float = 1e9) -> list[RecoveringClient]:
    return [kind(proxy.port, [channel], patience=patience) for kind in (PageClient, RawClient, StreamClient)]


def away(clients: list[RecoveringClient], proxy: Blackhole) -> None:
    """Cuts the connections of clients that have acknowledged everything; the clients cannot connect."""
    time.sleep(2 * ACKNOWLEDGE)
    proxy.refuses = True
    proxy.cut()
    wait_until(lambda: not any(client.is_connected for client in clients), "the clients notice the cut")


def test_client_that_missed_more_than_the_size_is_notified(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """No part of the missed messages is sent, because a part looks like all of them."""
    channel = f"small-{channel}"
    clients, publisher = each_kind(proxy, channel), Publisher([server.api_port], [channel], 1)
    with together(*clients):
        until_joined(clients)
        publisher.publish()
        for times, missed in enumerate((10, 0, 11), 2):
            until_received(clients, publisher.published)
            away(clients, proxy)
            for _ in range(missed):
                publisher.publish()
            proxy.refuses = False
            until_joined(clients, times)
        publisher.publish()
        verify(clients, [publisher], recovered=2, reasons={"unknown": 1, "trimmed": 1})


def test_client_that_missed_expired_messages_is_notified(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    channel = f"short-{channel}"
    clients, publisher = each_kind(proxy, channel), Publisher([server.api_port], [channel], 1)
    with together(*clients):
        until_joined(clients)
        publisher.publish()
        for times, missed in enumerate((0, 1), 2):  # without missed messages, their expiry does not matter
            until_received(clients, publisher.published)
            away(clients, proxy)
            for _ in range(missed):
                publisher.publish()
            time.sleep(1.2)
            proxy.refuses = False
            until_joined(clients, times)
        publisher.publish()
        verify(clients, [publisher], recovered=1, reasons={"unknown": 1, "trimmed": 1})


def test_client_whose_history_was_deleted_is_notified(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    clients, publisher = each_kind(proxy, channel), Publisher([server.api_port], [channel], 1)
    with together(*clients):
        until_joined(clients)
        publisher.publish()
        until_received(clients, publisher.published)
        away(clients, proxy)
        assert server.request("DELETE", f"/apps/app-test/channels/{channel}/history").status == 200
        publisher.publish()
        proxy.refuses = False
        until_joined(clients, 2)
        publisher.publish()
        verify(clients, [publisher], recovered=0, reasons={"unknown": 1, "state-lost": 1})


def test_client_whose_channel_the_memory_bound_dropped_is_notified(channel: str) -> None:
    channels = [f"{channel}-{number}" for number in range(2)]
    bounded = merged(CONFIG, {"server": {"history": {"channels": 1}}})
    with running(bounded, kept()) as server, blackhole(server.ws_port) as proxy:
        clients = each_kind(proxy, channels[0])
        publisher, other = (Publisher([server.api_port], [one], 1) for one in channels)
        with together(*clients):
            until_joined(clients)
            publisher.publish()
            until_received(clients, publisher.published)
            away(clients, proxy)
            publisher.publish()
            other.publish()
            other.stop()
            proxy.refuses = False
            until_joined(clients, 2)
            publisher.publish()
            verify(clients, [publisher], recovered=0, reasons={"unknown": 1, "state-lost": 1})


def cut_offs(server: ServerProcess) -> int:
    """Returns the number of clients that the server has cut off because they did not read."""
    (count,) = re.findall(r'(?m)^push1st_cut_offs_total\{reason="slow"\} ([0-9]+)', server.get("/metrics").body.decode())
    return int(count)


def test_slow_reader_that_is_cut_off_is_notified_once(server: ServerProcess, proxy: Blackhole, channel: str) -> None:
    """Its messages of 10 KB are more than a quarter of `outbox`: a replay would have it cut off again and again."""
    clients = each_kind(proxy, channel, patience=3)
    publisher = Publisher([server.api_port], [channel], 100, padding=10_000)
    with together(*clients, publisher):
        until_joined(clients)
        time.sleep(2 * ACKNOWLEDGE)
        proxy.freeze(later=False)
        until_joined(clients, 2)
        wait_until(lambda: cut_offs(server) == len(clients), "the server cuts off the connections")
        verify(clients, [publisher], recovered=0, reasons={"unknown": 1, "too-large": 1})
