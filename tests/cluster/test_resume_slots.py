"""Clients recover, or are notified, when a slot of a cluster moves to another master while they are connected or away.

The new master is another process, so all positions of the slot's channels are void. The keys move with the slot.
"""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.blackhole import blackhole
from tests.support.process import running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    BOUND,
    CONFIG,
    Clients,
    PageClient,
    Publisher,
    RawClient,
    StreamClient,
    clients_of,
    kept,
    together,
    until_joined,
    verify,
)
from tests.support.servers import Cluster, Move, at_once, key_by_key
from tests.support.valkey import Valkey

STATE_LOST = {"unknown": 1, "state-lost": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with closing(Cluster()) as servers:
        yield servers


def slot_of(cluster: Cluster, kind: str, name: str) -> int:
    """Returns the slot of a key of the server: `hm` has the position of the channel `name`, `r` the records of a page."""
    found = [key for server in cluster.servers for key in server.ask("KEYS", f"*:{kind}:app-test/{name}").split(b"\r\n")[2::2]]
    (key,) = found
    return int(cluster.servers[0].ask("CLUSTER", "KEYSLOT", key.decode())[1:])


def moved(cluster: Cluster, move: Move, slot: int, target: Valkey | None = None) -> Valkey:
    """Moves a slot, by default to any other master; returns its former master."""
    (source,) = cluster.holders(slot)
    to = target or next(one for one in cluster.servers if one is not source)
    move(cluster, slot, source, to)
    wait_until(lambda: cluster.holders(slot) == [to], "the slot has moved", 20)
    return source


def until_published(publisher: Publisher) -> None:
    """Waits until a publish that begins after this call is confirmed."""
    now = time.monotonic()
    wait_until(lambda: any(one.began > now and one.confirmed for one in publisher.published[-5:]), "publishing goes on", 30)


@pytest.mark.parametrize("move", [key_by_key, at_once])
def test_clients_of_a_slot_that_moves_are_notified_and_others_miss_nothing(cluster: Cluster, channel: str, move: Move) -> None:
    broker = CONFIG | {"broker": f"{cluster.url}?prefix={channel}"}
    names = [f"{channel}-{number}" for number in range(8)]
    with running(broker, kept()) as one, running(broker, kept()) as two, blackhole(two.ws_port) as proxy:
        publisher = Publisher([one.api_port, two.api_port], names, 10)
        with together(publisher):
            until_published(publisher)
            slots = {name: slot_of(cluster, "hm", name) for name in names}
            mine = names[0]
            other = next(name for name in names if slots[name] != slots[mine])
            live, stay = (clients_of([one.ws_port, two.ws_port], [name], 1) for name in (mine, other))
            away, gone = ([kind(proxy.port, [name]) for kind in (PageClient, RawClient, StreamClient)] for name in (mine, other))
            with together(*live, *stay, *away, *gone):
                until_joined([*live, *stay, *away, *gone])
                time.sleep(2 * ACKNOWLEDGE)
                proxy.refuses = True
                cut = proxy.cut()
                moved(cluster, move, slots[mine])
                until_published(publisher)
                proxy.refuses = False
                until_joined([*away, *gone], 2)
                until_joined(live, 2)
                verify([*live, *away], [publisher], recovered=0, reasons=STATE_LOST)
                verify(stay, [publisher], recovered=0)
                verify(gone, [publisher], recovered=1, repeat_seconds=BOUND, cuts=[cut])


@pytest.mark.parametrize("move", [key_by_key, at_once])
def test_clients_that_were_away_while_a_slot_moved_there_and_back_are_notified(
    cluster: Cluster, channel: str, move: Move
) -> None:
    """The master is the same as before, and must not have the same generation."""
    broker = CONFIG | {"broker": f"{cluster.url}?prefix={channel}"}
    with running(broker, kept()) as server, blackhole(server.ws_port) as proxy:
        away: list[Clients] = [kind(proxy.port, [channel]) for kind in (PageClient, RawClient, StreamClient)]
        publisher = Publisher([server.api_port], [channel], 10)
        with together(*away, publisher):
            until_joined(away)
            time.sleep(2 * ACKNOWLEDGE)
            proxy.refuses = True
            proxy.cut()
            slot = slot_of(cluster, "hm", channel)
            source = moved(cluster, move, slot)
            until_published(publisher)
            moved(cluster, move, slot, source)
            until_published(publisher)
            proxy.refuses = False
            until_joined(away, 2)
            verify(away, [publisher], recovered=0, reasons=STATE_LOST)


@pytest.mark.parametrize("move", [key_by_key, at_once])
def test_page_whose_records_move_recovers(cluster: Cluster, channel: str, move: Move) -> None:
    """The records are in the slot of the page's name, which need not be the slot of its channels."""
    broker = CONFIG | {"broker": f"{cluster.url}?prefix={channel}"}
    with running(broker, kept()) as server, blackhole(server.ws_port) as proxy:
        pages = [PageClient(proxy.port, [channel]) for _ in range(6)]
        publisher = Publisher([server.api_port], [channel], 10)
        with together(*pages, publisher):
            until_joined(pages)
            time.sleep(2 * ACKNOWLEDGE)
            slots = {page.name: slot_of(cluster, "r", page.name) for page in pages}
            mine = slot_of(cluster, "hm", channel)
            slot = next(slot for slot in slots.values() if slot != mine)
            moved(cluster, move, slot)  # while the pages are connected, and acknowledge
            time.sleep(2 * ACKNOWLEDGE)
            proxy.refuses = True
            cut = proxy.cut()
            time.sleep(ACKNOWLEDGE)
            moved(cluster, move, slot)  # while the pages are away
            proxy.refuses = False
            until_joined(pages, 2)
            verify(pages, [publisher], recovered=1, repeat_seconds=BOUND + 2 * ACKNOWLEDGE, cuts=[cut])
