"""Sessions, node, fan-out and a slow broker together: random commands, and the subscriptions and events that must follow.

`tests/unit/core/test_fanout.py` tests the same with a broker that never waits. Here calls to the broker wait, resume in any
order, and may end after their client has.
"""

import asyncio
import json
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.core import fanout
from push1st.eager import resolve
from push1st.messages import Subscribe, Unsubscribe
from tests.support.frames import texts as texts_of
from tests.support.loop import turns
from tests.support.node import APP, PUSHER, Outlet, World, token

PUBLIC, PRESENCE = "c", "presence-c"
ids = st.integers(0, 2)
rooms = st.sampled_from((PUBLIC, PRESENCE))
held = st.sets(st.sampled_from(("subscribe", "unsubscribe", "join", "leave")))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("toggle"), ids, rooms),
        st.tuples(st.just("lose"), ids, rooms),
        st.tuples(st.just("publish"), ids, rooms),
        st.tuples(st.just("let"), st.integers(0, 5), rooms),
        st.tuples(st.just("turn"), ids, rooms),
    ),
    min_size=6,
    max_size=30,
)


class Wired(Outlet):
    """The connection of a Pusher client; replies take the same way as in production."""

    def send(self, reply) -> None:
        super().send(reply)
        assert self.session is not None
        self._world.fanout.direct(self.session, PUSHER.reply(reply))

    @property
    def read(self):
        return texts_of(b"".join(self.writes))


class Crowd:
    """Three clients that connect and disconnect; two of them are one user on presence channels."""

    def __init__(self) -> None:
        self.world = World(slow=True)
        self.clients = [self.newcomer() for _ in range(3)]
        self.wants: list[set[str]] = [set(), set(), set()]
        self.gone: list[tuple[Wired, int]] = []

    def newcomer(self):
        outlet = Wired(self.world)
        return self.world.session(outlet=outlet)[0], outlet

    def toggle(self, n: int, room: str) -> None:
        session, _ = self.clients[n]
        if room in self.wants[n]:
            self.wants[n].discard(room)
            session.handle(Unsubscribe(room))
        else:
            self.wants[n].add(room)
            data = f'{{"user_id":"u{n % 2}"}}' if room == PRESENCE else ""
            session.handle(Subscribe(room, token(session, room, data) if data else "", data))

    def lose(self, n: int) -> None:
        session, outlet = self.clients[n]
        session.expire()
        self.gone.append((outlet, len(outlet.writes)))
        self.clients[n] = self.newcomer()
        self.wants[n] = set()

    async def live(self, plan, calls) -> None:
        world, broker = self.world, self.world.broker
        broker.held = set(calls)
        for step, n, room in plan:
            if step == "toggle":
                self.toggle(n, room)
            elif step == "lose":
                self.lose(n)
            elif step == "publish":
                await resolve(world.node.publish(world.app, room, "e", b"1", world.node.stamp()))
            elif step == "let" and broker.waiting:
                await broker.let(broker.waiting[n % len(broker.waiting)])
            elif step == "turn":
                await turns(1)
                world.turns.end()
        await turns()
        await broker.let_all()
        await turns()
        world.turns.drain()

    def on(self, room: str) -> list[int]:
        return [n for n, wants in enumerate(self.wants) if room in wants]


@settings(max_examples=150)
@given(plan=steps, calls=held, size=st.sampled_from((1, 2048)))
def test_any_interleaving_leaves_no_stale_entry_and_no_unreached_subscriber(plan, calls, size):
    async def run() -> None:
        crowd = Crowd()
        world = crowd.world
        await crowd.live(plan, calls)
        for outlet, writes in crowd.gone:
            assert len(outlet.writes) == writes, "something was written to a connection that is gone"
        for room in (PUBLIC, PRESENCE):
            on = crowd.on(room)
            assert [n for n, (session, _) in enumerate(crowd.clients) if room in session.subscriptions] == on
            occupancy = await world.memory.channel(APP, room)
            assert (occupancy.subscriptions if occupancy else 0) == len(on), "the roster has ghosts, or misses somebody"
            assert set(world.app.sessions(room)) == {crowd.clients[n][0] for n in on}, "the hub is wrong"
            assert bool(world.broker.topics[APP, room]) == bool(on), "a topic was given up early, or kept for nobody"
            await resolve(world.node.publish(world.app, room, "last", b"1", world.node.stamp()))
        world.turns.drain()
        for n, (_, outlet) in enumerate(crowd.clients):
            heard = {one["channel"] for one in outlet.read if one["event"] == "last"}
            assert heard == crowd.wants[n], "somebody is deaf, or hears what it left"

    with patch.object(fanout, "SLICE_WRITES", size):
        asyncio.run(run())


@settings(max_examples=150)
@given(plan=steps, calls=held)
def test_any_interleaving_keeps_member_list_and_later_edges_consistent(plan, calls):
    """The members that a client got at its join, changed by later edges, equal the members of the channel (invariant 8)."""

    async def run() -> None:
        crowd = Crowd()
        await crowd.live(plan, calls)
        there = {member.user_id for member in await crowd.world.memory.members(APP, PRESENCE)}
        assert there == {f"u{n % 2}" for n in crowd.on(PRESENCE)}
        for n in crowd.on(PRESENCE):
            known: set[str] = set()
            for one in crowd.clients[n][1].read:
                data = json.loads(one["data"])
                if one["event"] == "pusher_internal:member_added":
                    known.add(data["user_id"])
                elif one["event"] == "pusher_internal:member_removed":
                    known.discard(data["user_id"])
                elif one["event"] == "pusher_internal:subscription_succeeded" and one["channel"] == PRESENCE:
                    known = set(data["presence"]["ids"])
            assert known == there

    asyncio.run(run())


@settings(max_examples=150)
@given(plan=steps, calls=held)
def test_any_interleaving_delivers_no_event_before_its_subscription_is_confirmed(plan, calls):
    async def run() -> None:
        crowd = Crowd()
        await crowd.live(plan, calls)
        for outlet in [outlet for _, outlet in crowd.clients] + [outlet for outlet, _ in crowd.gone]:
            confirmed = set()
            for one in outlet.read:
                if one["event"] == "pusher_internal:subscription_succeeded":
                    confirmed.add(one["channel"])
                else:
                    assert one["channel"] in confirmed

    asyncio.run(run())
