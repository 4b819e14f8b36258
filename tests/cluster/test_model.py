"""Several nodes on a real server, with random commands and failures: clients connect, disconnect and publish; nodes crash or lose
their connection; the server loses its state or dies. The test compares the events of each client with a model. It also checks
that the edges in webhooks alternate, and that a backend derives the correct state from them.

`make model-cluster` runs many more examples and prints the seed; `ARGS=--hypothesis-seed=N` repeats a run.
"""

import asyncio
import os
import time
from collections import Counter, defaultdict
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from push1st.errors import Refused
from tests.cluster.places import SETTLED_SECONDS, Backend, Client, Place, fast, until
from tests.support.valkey import Valkey

NODES, CLIENTS = 3, 6
CHANNELS = ("presence-a", "presence-b", "private-c")
USERS = ("u0", "a/u1", "u2")
HOLD = 0.3
"""seconds for which a leaving edge is held"""
TIMINGS = fast(recovery=0.3, backoff=0.05, hold=HOLD)
WAIT_SECONDS = 0.08
"""seconds in which nodes detect the failures of others"""
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "25"))

clients = st.integers(0, CLIENTS - 1)
nodes = st.integers(0, NODES - 1)
channels = st.sampled_from(CHANNELS)
step = st.one_of(
    st.tuples(st.just("join"), clients, channels),
    st.tuples(st.just("join"), clients, channels),
    st.tuples(st.just("leave"), clients, channels),
    st.tuples(st.just("lose"), clients),
    st.tuples(st.just("return"), clients, nodes),
    st.tuples(st.just("pause")),
    st.tuples(st.just("publish"), nodes, channels),
    st.tuples(st.just("publish"), nodes, channels),
    st.tuples(st.just("sign in"), clients),
    st.tuples(st.just("turn")),
    st.tuples(st.just("wait")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("drop"), nodes),
    st.tuples(st.just("crash"), nodes),
    st.tuples(st.just("replace"), nodes),
    st.tuples(st.just("flush")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("freeze"), nodes),
    st.tuples(st.just("thaw")),
)
plans = st.lists(step, min_size=5, max_size=40)


class World:
    """The nodes, their clients, and the events that must have reached them."""

    def __init__(self, valkey: Valkey, url: str) -> None:
        self.valkey = valkey
        self.url = url
        self.numbers = count(1)
        self.places: list[Place] = []
        self.clients: list[Client] = []
        self.due: dict[tuple[Client, str], list[str]] = defaultdict(list)
        """the acknowledged events for a client since the last comparison"""
        self.left: Counter[tuple[Client, str]] = Counter()
        """number of times that a client has left a channel"""
        self.cut: set[Place] = set()
        """the nodes that lost only their own connection: events that others published in the meantime have not reached them"""
        self.refused: list[str] = []
        """publishes that were rejected although nothing had failed"""
        self.calm = True
        self.backend = Backend()
        self.dead_reader = self.state_lost = self.doubtful = False
        """whether the consumer of hook events died or was evicted, since the last comparison; whether the broker lost its state
        since then; and whether both ever happened together, so that the state of that consumer alone is lost"""
        self.tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self.places = [await Place(self.url, TIMINGS).send_edges_to(self.backend).open() for _ in range(NODES)]
        for place in self.places:
            place.watch_own()
        self.clients = [self.places[n % NODES].client() for n in range(CLIENTS)]
        await until(lambda: any(place.shards[0].hook_events.ledger.there is not None for place in self.places))

    async def step(self, what: str, *args: Any) -> None:
        if self.is_frozen(what, *args):
            return
        match what, *args:
            case "join", n, channel:
                if channel not in self.clients[n].on:
                    self.clients[n].join(channel, USERS[n % len(USERS)] if channel.startswith("presence-") else "")
            case "leave", n, channel:
                self.left[self.clients[n], channel] += 1
                self.due.pop((self.clients[n], channel), None)
                self.clients[n].leave(channel)
            case "lose", n:
                self.clients[n].lose()
                self.clients[n] = self.clients[n].place.client()
            case "return", n, k:
                client = self.clients[n]
                on = sorted(client.on)
                client.lose()
                self.clients[n] = self.places[k].client()
                for channel in on:
                    await self.step("join", n, channel)
            case ("pause",):
                await asyncio.sleep(HOLD / 3)
            case "sign in", n:
                if self.clients[n].session.user is None:
                    self.clients[n].sign_in(USERS[n % len(USERS)], *USERS)
            case "publish", n, channel:
                self.spawn(self.places[n], channel)
            case ("turn",):
                await asyncio.sleep(0)
            case ("wait",):
                await self.wait()
            case ("settle",):
                await self.settle()
            case "drop", n:
                self.calm = False
                self.cut.add(self.places[n])
                self.places[n].drop()
            case "crash", n:
                self.calm = False
                await self.crash(n)
            case "replace", n:
                self.calm = False
                await self.replace(n)
            case ("flush",):
                self.calm, self.state_lost = False, True
                self.valkey.ask("FLUSHALL")
            case ("restart",):
                self.calm, self.state_lost = False, True
                self.valkey.kill()
                try:
                    await self.wait()  # nodes notice a failure at different times, and reconnect at different times
                finally:
                    await asyncio.to_thread(self.valkey.start)
            case "freeze", n:
                if self.places[n].connected:
                    self.calm = False
                    self.dead_reader |= self.places[n].reads
                    self.places[n].freeze(self.valkey)
            case ("thaw",):
                self.thaw()

    def is_frozen(self, what: str, *args: Any) -> bool:
        """Returns whether a step is a command of a node that stands still."""
        place: Place
        match what:
            case "join" | "leave" | "lose" | "sign in":
                place = self.clients[args[0]].place
            case "publish" | "drop" | "freeze" | "replace":
                place = self.places[args[0]]
            case _:
                return False
        return place.frozen

    def thaw(self) -> None:
        for place in self.places:
            place.thaw()

    def spawn(self, place: Place, channel: str) -> None:
        task = asyncio.create_task(self.publish(place, channel))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def traffic(self) -> None:
        """Publishes to each channel from each running node."""
        for place in self.places:
            for channel in CHANNELS if not place.frozen else ():
                self.spawn(place, channel)
        await asyncio.sleep(0.002)

    async def wait(self) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            await self.traffic()

    async def publish(self, place: Place, channel: str) -> None:
        text = str(next(self.numbers))
        on = {one: self.left[one, channel] for one in self.clients if channel in one.on}
        try:
            await place.publish(channel, text.encode())
        except Refused as refused:
            if self.calm:
                self.refused.append(str(refused))
        else:
            for client, left in on.items():
                if self.left[client, channel] == left:
                    self.due[client, channel].append(text)

    async def crash(self, n: int) -> None:
        """Ends a node, whose lease expires; another node replaces it."""
        gone = self.places[n]
        self.dead_reader |= gone.reads
        gone.crash()
        for k in range(CLIENTS):
            if self.clients[k].place is gone:
                self.clients[k].session.closed = True
        self.valkey.ask("DEL", f"{gone.shards[0].keys.base}:lease:{gone.name}")
        await until(lambda: self.noticed(but=gone))
        await self.open_place(n)
        for k in range(CLIENTS):
            if self.clients[k].place is gone:
                self.clients[k] = self.places[n].client()

    async def open_place(self, n: int) -> None:
        place = self.places[n] = Place(self.url, TIMINGS).send_edges_to(self.backend)
        names = [one.name for one in self.places]
        for one in self.places:
            one.broker.workers(names)  # the supervisor sends this list
        await place.open()
        place.watch_own()

    async def replace(self, n: int) -> None:
        """Replaces a node: the new node starts before the old node stops gracefully.

        The new node starts after the others have noticed a failure of the broker: a faster node would become the consumer, and
        would have no ledger (docs/webhooks.md).
        """
        gone = self.places[n]
        await until(self.noticed)
        await self.open_place(n)
        for k in range(CLIENTS):
            if self.clients[k].place is gone:
                self.clients[k].lose()
                self.clients[k] = self.places[n].client()
        was_reading = gone.reads
        await gone.close()
        if was_reading:  # a loss of the state before the next node reads loses hook events (docs/webhooks.md)
            await until(lambda: any(place.reads for place in self.places if not place.frozen))

    async def settle(self) -> None:
        """Waits until all messages have arrived, then compares."""
        if any(place.frozen for place in self.places):
            await self.wait()
        self.thaw()
        deadline = time.monotonic() + SETTLED_SECONDS
        while not self.in_step():
            assert time.monotonic() < deadline, self.told()
            await self.traffic()
        await until(lambda: not self.tasks, self.told)
        await until(lambda: not any(client.session._busy for client in self.clients), self.told)
        await until(lambda: self.told() == self.expected(), lambda: f"{self.told()}\nshould be\n{self.expected()}")
        assert [place.failures for place in self.places] == [[]] * NODES
        assert self.refused == []
        for (client, channel), texts in self.due.items():
            if channel in client.on and not client.session.closed and client.place not in self.cut:
                await until(lambda c=client, n=channel, t=texts: set(t) <= set(c.messages[n]), self.told)  # type: ignore[misc]
        self.due.clear()
        self.cut.clear()
        self.compare_orders()
        await self.compare_edges()
        self.calm = True

    async def compare_edges(self) -> None:
        """Checks that the state of the backend is correct, and that its edges alternated."""
        self.doubtful |= self.dead_reader and self.state_lost
        self.dead_reader = self.state_lost = False
        if self.doubtful:
            return
        await until(
            lambda: self.backend.there == self.true_edges(), lambda: f"{self.backend.there}\nshould be\n{self.true_edges()}"
        )
        assert self.backend.contradictions == []

    def true_edges(self) -> set[tuple[str, str | None]]:
        there: set[tuple[str, str | None]] = {(name, None) for client in self.clients for name in client.on}
        for client in self.clients:
            there |= set(client.joined_as.items())
        return there

    def in_step(self) -> bool:
        """Returns whether each node is registered on the server in its present state."""
        epoch = self.valkey.ask("GET", f"{self.places[0].shards[0].keys.base}:epoch").split(b"\r\n")[1:2]
        return all(
            place.connected and place.publishes and [place.shards[0].lease.epoch.encode()] == epoch for place in self.places
        )

    def noticed(self, but: Place | None = None) -> bool:
        """Returns whether each running node has noticed a failure of the broker. but: a node that has ended."""
        epoch = self.valkey.ask("GET", f"{self.places[0].shards[0].keys.base}:epoch").split(b"\r\n")[1:2]
        running = [place for place in self.places if place is not but and not place.frozen]
        return all(place.connected and [place.epoch] == epoch for place in running)

    def told(self) -> dict[str, Any]:
        """Returns the members according to clients."""
        return {
            "members": [{name: sorted(client.members.get(name, ())) for name in sorted(client.on)} for client in self.clients],
            "online": [sorted(client.online) if client.session.user else None for client in self.clients],
        }

    def expected(self) -> dict[str, Any]:
        """Returns the members according to the model."""
        there: dict[str, set[str]] = defaultdict(set)
        for client in self.clients:
            for name, user in client.joined_as.items():
                there[name].add(user)
        online = {client.session.user.id for client in self.clients if client.session.user}
        return {
            "members": [{name: sorted(there[name]) for name in sorted(client.on)} for client in self.clients],
            "online": [sorted(online) if client.session.user else None for client in self.clients],
        }

    def compare_orders(self) -> None:
        """Checks that all clients received the messages of a channel in one order."""
        for channel in CHANNELS:
            orders = [client.messages.get(channel, []) for client in self.clients]
            for one, other in pairwise(orders):
                both = set(one) & set(other)
                assert [text for text in one if text in both] == [text for text in other if text in both]

    async def check_api(self) -> None:
        """Checks that all nodes give the same answers to the API."""
        deadline = time.monotonic() + SETTLED_SECONDS
        while (answered := await self.answers()) != self.right_answers():
            assert time.monotonic() < deadline, f"{answered}\nshould be\n{self.right_answers()}"
            await asyncio.sleep(0.01)

    async def answers(self) -> list[dict[str, Any]]:
        """Returns subscriptions, users and connections of each channel according to a node."""
        found = []
        for place in self.places:
            node, app = place.node, place.app
            there = {one.channel: one for one in await node.channels(app)}
            of_place: dict[str, Any] = {}
            for channel in CHANNELS:
                one = await node.channel(app, channel)
                members = sorted(member.user_id for member in await node.members(app, channel))
                listed = sorted(session.id for session in await node.controller.listed(app, channel))
                for found_so in (one, there.get(channel)):
                    counts = (found_so.subscriptions, found_so.users) if found_so else (0, 0)
                    of_place.setdefault(channel, []).append(counts)
                of_place[channel] += [members, listed]
            found.append(of_place)
        return found

    def right_answers(self) -> list[dict[str, Any]]:
        right: dict[str, Any] = {}
        for channel in CHANNELS:
            on = [client for client in self.clients if channel in client.on]
            users = sorted({one.joined_as[channel] for one in on if channel in one.joined_as})
            counts = len(on), len(users)
            right[channel] = [counts, counts, users, sorted(one.session.id for one in on)]
        return [right] * NODES

    async def close(self) -> None:
        for place in self.places:
            await place.close()
        await asyncio.sleep(0.01)  # time for transports to close


OCCUPIED = [*(("join", n, channel) for n in range(CLIENTS) for channel in CHANNELS), ("settle",)]
"""all clients join all channels"""


async def run(valkey: Valkey, url: str, plan: list[tuple[Any, ...]]) -> None:
    world = World(valkey, url)
    await world.open()
    try:
        for one in plan:
            await world.step(*one)
        await world.settle()
        await world.check_api()
    finally:
        await world.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=plans, prefix=st.integers(0, 1 << 60))
@example([*OCCUPIED, ("restart",)], 1)
@example([*OCCUPIED, ("flush",), ("wait",)], 2)
@example([*OCCUPIED, ("flush",), ("wait",), ("freeze", 1), ("wait",)], 3)
@example([*OCCUPIED, ("freeze", 1), ("restart",), ("wait",)], 4)
@example([("join", 3, "presence-b"), ("join", 3, "presence-b"), ("drop", 2), ("join", 5, "presence-b"), ("flush",)], 0)
@example(
    [
        ("join", 0, "presence-a"),
        ("settle",),
        *[("lose", 0), ("pause",), ("restart",), ("join", 0, "presence-a"), ("settle",)] * 5,
    ],
    0,
)
def model(valkey: Valkey, plan: list[tuple[Any, ...]], prefix: int) -> None:
    note(f"{plan}")
    valkey.ask("FLUSHALL")
    asyncio.run(run(valkey, f"{valkey.url}?prefix=m{prefix}", plan))


@pytest.mark.timeout(300 + 12 * EXAMPLES)  # an example takes about 3 s, mostly waits for leases and held edges
def test_each_client_ends_with_the_true_state_after_any_faults() -> None:
    valkey = Valkey()
    try:
        model(valkey)
    finally:
        valkey.close()
