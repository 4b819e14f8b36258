"""Subscription counts: at most one a second for each channel, even with a slow broker."""

import json

import pytest

from push1st.core import counts
from push1st.core.counts import COUNT_SECONDS, LARGE_CHANNEL
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.messages import Subscribe, Subscribed, Unsubscribe
from tests.support.frames import frames
from tests.support.loop import turns
from tests.support.node import APP, World, app_config

AWAY = Refused(503, "the broker is away")


@pytest.mark.parametrize("call", ["channel", "publish"])
async def test_failed_count_does_not_reject_the_subscription(call):
    """The subscription is valid without the count, and the next change sends the count."""
    world = World(app_config(subscription_count=True), slow=True)
    session, outlet = world.session()
    world.broker.fail[call] = AWAY
    session.handle(Subscribe("c"))
    session.handle(Unsubscribe("c"))
    session.handle(Subscribe("c"))
    assert [type(reply) for reply in outlet.replies] == [Subscribed, Subscribed]
    await world.node.tick()


async def test_count_that_another_worker_may_have_changed_is_published_again():
    world = World(app_config(subscription_count=True), slow=True)
    session, outlet = world.session()
    world.broker.held = {"publish"}
    session.handle(Subscribe("c"))
    await turns()
    await world.memory.join(
        APP, "c", "elsewhere", None, 0
    )  # and the other worker publishes the count 2 before this worker has published 1
    await world.broker.let_all()
    await world.node.tick()
    world.turns.drain()
    assert numbers(outlet) == [1, 2]


async def test_held_counts_are_sent_after_a_broker_outage():
    world = World(app_config(subscription_count=True), slow=True)
    for _ in range(LARGE_CHANNEL + 2):
        world.session()[0].handle(Subscribe("c"))
    world.broker.calls.clear()
    world.clock.advance(COUNT_SECONDS)
    world.broker.fail["publish"] = AWAY
    await world.node.tick()
    world.broker.fail.clear()
    world.clock.advance(COUNT_SECONDS)
    await world.node.tick()
    assert world.broker.calls.count(("publish", "c")) == 2


async def test_slow_broker_gets_one_count_request_at_a_time():
    world = World(app_config(subscription_count=True), slow=True)
    world.broker.fail["channel"] = AWAY
    for name in ("a", "b"):
        world.session()[0].handle(Subscribe(name))
    world.broker.fail.clear()
    world.broker.held = {"channel"}
    for _ in range(3):
        spawn(world.node.tick())
        world.clock.advance(1)
    assert world.broker.waiting == ["channel"]
    await world.broker.let_all()
    assert [call for call in world.broker.calls if call[0] == "publish"] == [("publish", "a"), ("publish", "b")]


def numbers(outlet) -> list[int]:
    """Returns the counts that a client received, in order."""
    told = [json.loads(payload) for _, payload in frames(b"".join(outlet.writes))]
    return [json.loads(one["data"])["subscription_count"] for one in told]


async def test_channel_gets_at_most_one_count_a_second():
    world = World(app_config(subscription_count=True))
    watching = [world.session() for _ in range(95)]
    for session, _ in watching:
        session.handle(Subscribe("c"))
    await world.node.tick()
    world.turns.drain()
    for _, outlet in watching:
        outlet.writes.clear()
    before = world.metrics.messages_out
    flapping, _ = world.session()
    for _ in range(500):
        flapping.handle(Subscribe("c"))
        flapping.handle(Unsubscribe("c"))
    flapping.handle(Subscribe("c"))
    await world.node.tick()
    world.turns.drain()
    assert world.metrics.messages_out - before <= 2 * 96
    assert {tuple(numbers(outlet)) for _, outlet in watching} == {(96,)}
    for second in range(3):
        flapping.handle(Unsubscribe("c") if second % 2 == 0 else Subscribe("c"))
        await world.node.tick()
    world.turns.drain()
    assert numbers(watching[0][1]) == [96, 95, 96, 95]


async def test_the_first_change_is_sent_at_once():
    world = World(app_config(subscription_count=True))
    (one, outlet), (two, _), (three, _) = world.session(), world.session(), world.session()
    one.handle(Subscribe("c"))
    await world.node.tick()
    two.handle(Subscribe("c"))
    world.turns.drain()
    assert numbers(outlet) == [1, 2]
    three.handle(Subscribe("c"))
    two.expire()
    three.expire()
    world.turns.drain()
    assert numbers(outlet) == [1, 2]
    await world.node.tick()
    world.turns.drain()
    assert numbers(outlet) == [1, 2, 1]


async def test_counts_of_many_channels_are_spread_over_turns(monkeypatch):
    monkeypatch.setattr(counts, "MAX_COUNTED", 10)
    world = World(app_config(subscription_count=True))
    session, outlet = world.session()
    for number in range(100):
        session.handle(Subscribe(f"c{number}"))
    world.turns.drain()
    assert len(numbers(outlet)) == 10
    spawn(world.node.tick())
    world.turns.drain()
    assert 10 < len(numbers(outlet)) < 30
    await turns(100)
    world.turns.drain()
    assert len(numbers(outlet)) == 100


async def test_client_that_ends_leaves_all_channels_before_it_waits_for_a_count():
    world = World(app_config(subscription_count=True), slow=True)
    session, _ = world.session()
    for name in ("a", "b"):
        session.handle(Subscribe(name))
    await turns()
    await world.node.tick()
    world.broker.held.add("channel")
    session.expire()
    await turns()
    assert [channel for name, channel in world.broker.calls if name == "leave"] == ["a", "b"]
    assert await world.memory.channels(APP) == []
    await world.broker.let_all()
