"""A machine that cannot reach the broker for a while, though the broker and the other machine are well; and that heals."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from push1st.brokers.redis import facts
from push1st.messages import Fact, SignedIn
from tests.cluster.places import Place, hurried, until
from tests.cluster.road import Road, road
from tests.cluster.test_faults import ROOM, on, status
from tests.valkey import Valkey

LEASE = 1.5
SILENT = 0.4
"""seconds: here all is faster than in life, in proportion"""
BLOCK = {"swallow": Road.swallow, "forget": Road.swallow, "refuse": Road.refuse}
"""how the way is lost; with `forget`, the connections from before are lost with it, and nobody is told"""


class Divided:
    """Two machines: `near` reaches the broker directly, the two nodes of `far` reach it by a road."""

    def __init__(self, valkey: Valkey, road: Road, near: Place, far: list[Place]) -> None:
        self.valkey = valkey
        self.road = road
        self.near = near
        self.far = far
        self.facts: list[Fact] = []
        """what hooks are told, wherever, in the order in which it is"""
        for place in self.all:
            place.hooks.facts = self.facts

    @property
    def all(self) -> list[Place]:
        return [self.near, *self.far]

    def heal(self, how: str) -> None:
        self.road.open(forget=how == "forget")

    async def healed(self) -> None:
        await until(lambda: all(place.connected for place in self.far))


@asynccontextmanager
async def divided() -> AsyncIterator[Divided]:
    valkey = Valkey()
    try:
        with road(valkey.path) as way, hurried(BEAT_SECONDS=0.1, LEASE_SECONDS=LEASE, SILENT_SECONDS=SILENT):
            # The first one reads the facts for hooks.
            places = [await Place(url).open() for url in (way.url, way.url, valkey.url)]
            try:
                yield Divided(valkey, way, places[2], places[:2])
                assert [place.failures for place in places] == [[], [], []]
            finally:
                for place in places:
                    await place.close()
                await asyncio.sleep(0.01)
    finally:
        valkey.close()


def edges(facts: Iterable[Fact]) -> dict[tuple[str, str | None], list[str]]:
    """What hooks were told of each channel, and of each member of it."""
    found: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for fact in facts:
        if fact.kind in ("occupied", "vacated", "member-added", "member-removed"):
            found[fact.channel, fact.user_id].append(fact.kind)
    return found


def alternates(kinds: list[str]) -> bool:
    return kinds[0] in ("occupied", "member-added") and all(one != other for one, other in itertools.pairwise(kinds))


async def agree(cluster: Divided, channel: str, subscriptions: int, users: set[str]) -> None:
    """Whoever is asked says the same."""
    for place in cluster.all:
        found = await place.node.channel(place.app, channel)
        assert found is not None
        assert (found.subscriptions, found.users) == (subscriptions, len(users))
        assert {one.user_id for one in await place.node.members(place.app, channel)} == users
        assert channel in {one.channel for one in await place.node.channels(place.app)}


@pytest.mark.parametrize("longer", [False, True], ids=["for less than the lease", "for longer than the lease"])
@pytest.mark.parametrize("how", list(BLOCK))
async def test_a_partition_heals(how: str, longer: bool) -> None:
    async with divided() as cluster:
        near = await on(cluster.near, ROOM, "near")
        far = [await on(place, ROOM, f"far{n}") for n, place in enumerate(cluster.far)]
        alone = await on(cluster.far[0], "c")
        far[0].sign_in("far0")
        await until(lambda: far[0].has(SignedIn))
        near.sign_in("near", "far0")
        everybody = {"near", "far0", "far1"}
        await until(lambda: all(client.members[ROOM] == everybody for client in (near, *far)) and near.online == {"far0"})

        BLOCK[how](cluster.road)
        began = time.monotonic()
        statuses = [asyncio.ensure_future(status(place.publish(ROOM, b"lost"))) for place in cluster.far]
        assert await status(cluster.near.publish(ROOM, b"during")) == 200
        await until(lambda: near.messages[ROOM] == ["during"])
        assert [await one for one in statuses] == [503, 503]
        assert time.monotonic() - began < 2.5
        if longer:
            await until(lambda: near.members[ROOM] == {"near"} and near.online == set())
            assert time.monotonic() - began < LEASE + 1
            assert await cluster.near.node.channel(cluster.near.app, "c") is None
        else:
            await asyncio.sleep(SILENT + 0.3)
            assert near.members[ROOM] == everybody
        late = await on(cluster.near, ROOM, "late")
        assert not any(client.session.closed for client in (*far, alone))

        cluster.heal(how)
        await cluster.healed()
        everybody.add("late")
        await until(lambda: all(client.members[ROOM] == everybody for client in (near, late, *far)))
        await until(lambda: near.online == {"far0"})
        await agree(cluster, ROOM, 4, everybody)
        await agree(cluster, "c", 1, set())
        for n, place in enumerate(cluster.all):
            assert await status(place.publish(ROOM, b"%d" % n)) == 200
        await until(lambda: all(client.messages[ROOM][-3:] == ["0", "1", "2"] for client in (near, late, *far)))
        alone.lose()
        far[1].lose()
        everybody.discard("far1")
        await until(lambda: all(client.members[ROOM] == everybody for client in (near, late, far[0])))
        told = lambda: edges(cluster.facts)  # noqa: E731
        await until(lambda: told()["c", None][-1:] == ["vacated"] and told()[ROOM, "far1"][-1:] == ["member-removed"], told)
        assert all(map(alternates, told().values())), told()


async def test_facts_are_read_on_when_only_the_connection_they_are_read_on_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "SILENT_SECONDS", facts.BLOCK_MS / 1000 + 0.3)
    async with divided() as cluster:
        await on(cluster.near, "c")
        await until(lambda: cluster.facts)
        cluster.road.forget(b"push1st-facts-")
        await on(cluster.near, "d")
        await until(lambda: [fact.channel for fact in cluster.facts] == ["c", "d"])
