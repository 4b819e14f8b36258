"""A machine that cannot reach the broker for a while, and then can again, while the broker and the other machine work."""

import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from push1st.brokers.redis.bounds import Timings
from push1st.messages import HookEvent, SignedIn
from tests.cluster.machine import GONE_SECONDS, ROOM, again_and_again, connect_to, machine, users_of
from tests.cluster.places import Place, on, status, until
from tests.cluster.road import Road, road
from tests.support.process import APP, ServerProcess, merged, wait_until
from tests.support.pusher_socket import PusherSocket
from tests.support.receiver import Receiver, receiving
from tests.support.valkey import Valkey

TIMINGS = Timings(renew=0.1, lease=1.5, silent=0.4)
"""shorter than in production, in proportion"""
BLOCK = {"swallow": Road.swallow, "forget": Road.swallow, "refuse": Road.refuse}
"""the ways to block the connections; `forget` also kills the connections from before, without a reset"""


class Divided:
    """Two machines: `near` reaches the broker directly, the two nodes of `far` reach it through a proxy."""

    def __init__(self, valkey: Valkey, road: Road, near: Place, far: list[Place]) -> None:
        self.valkey = valkey
        self.road = road
        self.near = near
        self.far = far
        self.hook_events: list[HookEvent] = []
        """the hook events of all nodes, in their order"""
        for place in self.all:
            place.hooks.hook_events = self.hook_events

    @property
    def all(self) -> list[Place]:
        return [self.near, *self.far]

    def heal(self, how: str) -> None:
        self.road.open(forget=how == "forget")

    async def healed(self) -> None:
        await until(lambda: all(place.connected for place in self.far))


@asynccontextmanager
async def divided(timings: Timings = TIMINGS) -> AsyncIterator[Divided]:
    valkey = Valkey()
    try:
        with road(valkey.path) as way:
            # The first node is the consumer of hook events.
            places = [await Place(url, timings).open() for url in (way.url, way.url, valkey.url)]
            try:
                yield Divided(valkey, way, places[2], places[:2])
                assert [place.failures for place in places] == [[], [], []]
            finally:
                for place in places:
                    await place.close()
                await asyncio.sleep(0.01)
    finally:
        valkey.close()


def edges(events: Iterable[HookEvent]) -> dict[tuple[str, str | None], list[str]]:
    """Returns the hook events of each channel, and of each of its members."""
    found: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for event in events:
        if event.kind in ("occupied", "vacated", "member-added", "member-removed"):
            found[event.channel, event.user_id].append(event.kind)
    return found


def alternates(kinds: list[str]) -> bool:
    return kinds[0] in ("occupied", "member-added") and all(one != other for one, other in itertools.pairwise(kinds))


async def agree(cluster: Divided, channel: str, subscriptions: int, users: set[str]) -> None:
    """Checks that all nodes give the same answers."""
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
            assert time.monotonic() - began < TIMINGS.lease + 1
            assert await cluster.near.node.channel(cluster.near.app, "c") is None
        else:
            await asyncio.sleep(TIMINGS.silent + 0.3)
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
        told = lambda: edges(cluster.hook_events)  # noqa: E731
        await until(lambda: told()["c", None][-1:] == ["vacated"] and told()[ROOM, "far1"][-1:] == ["member-removed"], told)
        assert all(map(alternates, told().values())), told()


async def test_consumer_reconnects_when_only_its_own_connection_hangs() -> None:
    async with divided(msgspec.structs.replace(TIMINGS, read_silent=TIMINGS.read + 0.3)) as cluster:
        await on(cluster.near, "c")
        await until(lambda: cluster.hook_events)
        cluster.road.forget(b"push1st-facts-")
        await on(cluster.near, "d")
        await until(lambda: [event.channel for event in cluster.hook_events] == ["c", "d"])


async def test_node_that_becomes_the_consumer_again_builds_a_new_ledger() -> None:
    """With its old ledger the node would drop the `occupied` of a channel for which another node has sent `vacated`."""
    async with divided() as cluster:
        first, key = cluster.far[0], f"{cluster.near.shards[0].keys.base}:reader"
        client = await on(cluster.near, "c")
        await until(lambda: [event.kind for event in cluster.hook_events] == ["occupied"])
        cluster.valkey.ask("SET", key, cluster.near.name, "PX", "1500")
        client.lose()
        await until(lambda: [event.kind for event in cluster.hook_events] == ["occupied", "vacated"], lambda: cluster.hook_events)
        cluster.valkey.ask("SET", key, first.name, "PX", "1500")
        await on(cluster.near, "c")
        await until(lambda: [event.kind for event in cluster.hook_events[2:]] == ["occupied"], lambda: cluster.hook_events)


# -- machines, with the durations of production


class Published:
    """The result of a publish: its number, its status, and its start and end."""

    def __init__(self, server: ServerProcess, channel: str, name: str) -> None:
        self.answers: list[tuple[str, int, float, float]] = []
        self._server = server
        self._channel = channel
        self._name = name

    def __call__(self) -> None:
        began = time.monotonic()
        data = f"{self._name}{len(self.answers)}"
        answer = self._server.post("/apps/app-test/events", {"name": "e", "channels": [self._channel], "data": data})
        self.answers.append((data, answer.status, began, time.monotonic()))
        time.sleep(0.02)

    def acknowledged(self, since: float, until: float) -> list[str]:
        return [data for data, status, began, ended in self.answers if status == 200 and since <= began and ended <= until]


def test_two_machines_agree_again_after_a_partition(stack: contextlib.ExitStack) -> None:
    """The proxy swallows the bytes of one machine for longer than the lease, then cuts its connections once."""
    receiver = stack.enter_context(receiving())
    events = ["channel_occupied", "channel_vacated", "member_added", "member_removed"]
    app = {"app-test": merged(APP, {"webhooks": [{"url": receiver.url, "events": events}]})}
    valkey = stack.enter_context(contextlib.closing(Valkey()))
    way = stack.enter_context(road(valkey.path))
    two = stack.enter_context(machine(config={"broker": way.url}, apps=app))
    one = stack.enter_context(machine(config={"broker": valkey.url}, apps=app))
    near, far = ([connect_to(server, number, stack) for number in (0, 1)] for server in (one, two))
    for number, client in enumerate([*near, *far]):
        client.subscribe(ROOM, {"user_id": str(number)})
    far[0].request_subscription("far")
    wait_until(lambda: users_of(one) == users_of(two) == {"0", "1", "2", "3"}, "all members are present")

    failures: list[str] = []
    published = [Published(server, ROOM, name) for server, name in ((one, "one"), (two, "two"))]
    with contextlib.ExitStack() as publishing:
        for publish in published:
            publishing.enter_context(again_and_again(publish, failures))
        wait_until(lambda: all(len(publish.answers) > 5 for publish in published), "both publish")
        way.swallow()
        blocked = time.monotonic()
        wait_until(lambda: users_of(one) == {"0", "1"}, "the members of the other are gone", GONE_SECONDS + 1)
        gone = time.monotonic()
        lost = [("far", None), (ROOM, "2"), (ROOM, "3")]
        wait_until(lambda: all(len(told(receiver)[one]) == 2 for one in lost), "the hooks received the events")
        way.open()
        wait_until(lambda: users_of(one) == {"0", "1", "2", "3"}, "the members are registered again")
        wait_until(lambda: users_of(two) == {"0", "1", "2", "3"}, "the members are registered on the other machine")
        healed = time.monotonic()
        time.sleep(0.5)
        cut = time.monotonic()
        way.cut()
        time.sleep(1)
        wait_until(lambda: published[1].answers[-1][1] == 200, "it publishes again")
        end = time.monotonic()
    assert failures == []
    for server in (one, two):
        server.publish(ROOM, "last", 1)
        for _ in range(4):  # any worker may answer
            assert users_of(server) == {"0", "1", "2", "3"}
            listed = {entry["channel"]: entry["sess_count"] for entry in server.get("/apps/app-test/channels/").json}
            assert listed == {ROOM: 4, "far": 1}

    assert {status for _, status, _, _ in published[0].answers} == {200}
    assert {status for _, status, _, _ in published[1].answers} == {200, 503}
    assert max(ended - began for one in published for _, _, began, ended in one.answers) < 2.5
    assert published[1].acknowledged(blocked + 0.1, gone) == []
    for client in [*near, *far]:
        seen = until_last(client, 2)
        got = [frame["data"] for frame in seen if frame["event"] == "e"]
        assert len(got) == len(set(got)), "an event came twice"
        due = published[0].acknowledged(healed, cut) + published[1].acknowledged(healed, cut)
        if client in near:
            due = published[0].acknowledged(0, end) + published[1].acknowledged(0, end)
        assert set(due) <= set(got)
        for name in ("one", "two"):
            numbers = [int(data.removeprefix(name)) for data in got if data.startswith(name)]
            assert numbers == sorted(numbers)
        moves = [(frame["event"], json.loads(frame["data"])["user_id"]) for frame in seen if "member_" in frame["event"]]
        for user in "0123":
            mine = [event.rpartition("_")[2] for event, who in moves if who == user]
            if client in near and user in "23":
                assert mine[-2:] == ["removed", "added"]
                assert mine.count("removed") == 1
            assert all(first != then for first, then in itertools.pairwise(mine)), (user, mine)
    wait_until(lambda: all(len(told(receiver)[one]) == 3 for one in lost), "the hooks received the events")
    members: dict[tuple[str, str | None], list[str]] = {
        (ROOM, user): ["added", "removed", "added"] if user in "23" else ["added"] for user in "0123"
    }
    assert told(receiver) == {(ROOM, None): ["occupied"], ("far", None): ["occupied", "vacated", "occupied"], **members}


def until_last(client: PusherSocket, count: int) -> list[dict[str, Any]]:
    """Returns all events up to the last event of each machine."""
    while sum(frame["event"] == "last" for frame in client.frames) < count:
        client.receive()
    return client.frames


def told(receiver: Receiver) -> dict[tuple[str, str | None], list[str]]:
    """Returns the webhook events of each channel, and of each of its members."""
    found: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for event in receiver.events:
        found[event["channel"], event.get("user_id")].append(event["name"].rpartition("_")[2])
    return found
