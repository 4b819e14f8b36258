"""A cluster of servers that changes while nodes use it: a slot moves, masters and replicas swap their roles, a master dies."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.servers import slot_of
from tests.cluster.places import ROOM, Client, Place, on, status, until
from tests.support.servers import Cluster, Move, at_once, key_by_key
from tests.support.valkey import Valkey

_prefixes = count(1)
TIMINGS = Timings(renew=0.5, recovery=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Starts three masters, each with a replica."""
    one = Cluster(replicas=True)
    yield one
    one.close()


class Busy:
    """Two nodes that publish, a client of each that stays on a channel, and clients that join and leave."""

    def __init__(self, cluster: Cluster, places: list[Place], clients: list[Client]) -> None:
        self.cluster = cluster
        self.places = places
        self.clients = clients
        self.acknowledged: list[str] = []
        self.statuses: list[int] = []
        self.slowest = 0.0
        self.joined = 0
        self.slot = slot_of(places[0].broker._shard(places[0].app.config.id, ROOM).tag)
        self._over = asyncio.Event()
        self._tasks = [asyncio.ensure_future(one) for place in places for one in (self._publish(place), self._visit(place))]

    @property
    def master(self) -> Valkey:
        """Returns the slot of the channel."""
        (found,) = self.cluster.holders(self.slot)
        return found

    async def _publish(self, place: Place) -> None:
        for n in count():
            data = f"{place.name}-{n}"
            began = time.monotonic()
            code = await status(place.publish(ROOM, data.encode()))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.statuses.append(code)
            if code == 200:
                self.acknowledged.append(data)
            if self._over.is_set():
                return
            await asyncio.sleep(0.001)

    async def _visit(self, place: Place) -> None:
        for n in count():
            client = place.client()
            client.join(ROOM, f"{place.name}-visitor{n % 5}")
            await until(lambda: client.replies)  # noqa: B023 - used at once
            self.joined += ROOM in client.messages
            client.lose()
            if self._over.is_set():
                return
            await asyncio.sleep(0.01)

    async def goes_on(self) -> None:
        """Waits until both nodes serve again."""
        await until(lambda: all(place.connected for place in self.places))
        for _ in range(2):
            done, joined = len(self.acknowledged), self.joined
            await until(lambda: len(self.acknowledged) > done + 20 and self.joined > joined + 4, lambda: self.statuses[-50:])  # noqa: B023

    async def end(self) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def busy(cluster: Cluster) -> AsyncIterator[Busy]:
    places = [await Place(f"{cluster.url}?prefix=p{next(_prefixes)}", TIMINGS).open()]
    places.append(await Place(cluster.url + "?prefix=" + places[0].broker._shards.all[0].address.prefix, TIMINGS).open())
    try:
        clients = [await on(place, ROOM, place.name) for place in places]
        one = Busy(cluster, places, clients)
        await one.goes_on()
        yield one
        await one.goes_on()
        await one.end()
        everybody = {place.name for place in places}
        await until(lambda: all(client.members[ROOM] == everybody for client in clients))
        for place in places:
            found = await place.node.channel(place.app, ROOM)
            assert found is not None
            assert (found.subscriptions, found.users) == (2, 2)
            assert {one.user_id for one in await place.node.members(place.app, ROOM)} == everybody
            assert [one.channel for one in await place.node.channels(place.app)] == [ROOM]
            assert place.failures == []
    finally:
        for place in places:
            await place.close()
        await asyncio.sleep(0.01)


def lost(one: Busy) -> list[list[str]]:
    """Returns the acknowledged events that were not delivered, for each client."""
    return [sorted(set(one.acknowledged) - set(client.messages[ROOM])) for client in one.clients]


def in_order(one: Busy) -> bool:
    """Returns whether acknowledged events arrived in their order; events answered with 503 may arrive late."""
    acknowledged = set(one.acknowledged)
    for client, place in itertools.product(one.clients, one.places):
        mine = [data for data in client.messages[ROOM] if data in acknowledged and data.startswith(f"{place.name}-")]
        if mine != sorted(mine, key=lambda data: int(data.partition("-")[2])):
            return False
    return True


@pytest.mark.parametrize("move", [key_by_key, at_once])
async def test_a_slot_moves_while_clients_publish_and_join(cluster: Cluster, move: Move) -> None:
    async with busy(cluster) as one:
        source = one.master
        target = next(server for server in cluster.all if cluster.is_master(server) and server is not source)
        await asyncio.to_thread(move, cluster, one.slot, source, target)
        await until(lambda: one.cluster.holders(one.slot) == [target])
    assert lost(one) == [[], []]
    assert in_order(one)
    assert one.slowest < 2.5


async def test_a_master_hands_over_to_its_replica(cluster: Cluster) -> None:
    async with busy(cluster) as one:
        replica = cluster.replica_of(one.master)
        assert replica.ask("CLUSTER", "FAILOVER") == b"+OK\r\n"
        await until(lambda: cluster.holders(one.slot) == [replica])
    assert lost(one) == [[], []]
    assert in_order(one)
    assert one.slowest < 2.5


async def test_a_master_dies_and_its_replica_takes_its_place(cluster: Cluster) -> None:
    async with busy(cluster) as one:
        killed = one.master
        killed.kill()
        await until(lambda: not any(place.connected for place in one.places))
        seen = len(one.statuses)
        await until(lambda: len(one.statuses) > seen + 20)
        assert set(one.statuses[seen + 2 :]) == {503}, "it did not fail loudly"
        await one.goes_on()
        killed.start()
    assert lost(one) == [[], []]
    assert in_order(one)
    assert one.slowest < 2.5
