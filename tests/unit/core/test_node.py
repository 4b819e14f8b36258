"""The node of one worker: ids, quotas, and topics that match the channels, even with a slow broker."""

import pytest

from push1st import auth
from push1st.core.node import WORKER_BITS, Node
from push1st.eager import resolve
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.messages import SignIn, Subscribe, Subscribed, SubscriptionRefused, Unsubscribe
from tests.support.loop import Clock, done, turns
from tests.support.node import APP, SECRET, World, app_config

TOPIC = (APP, "c")


# Ids


def test_a_message_id_begins_at_the_clock_in_nanoseconds(world):
    id, now = world.node.stamp()
    assert now == world.clock.wall()
    assert now - (1 << WORKER_BITS) < id <= now


def test_message_ids_grow_even_if_the_clock_stops_or_goes_back(world):
    ids = []
    for _ in range(5):
        ids.append(world.node.stamp()[0])
        world.clock.advance(-1)
    assert ids == sorted(set(ids))


def test_ids_of_two_workers_never_meet():
    def node_of(worker):
        world = World()
        return Node(world.node.apps, world.fanout, world.metrics, Clock(), lambda _: 0, worker)

    one, two = node_of(3), node_of(4)
    assert not {one.stamp()[0] for _ in range(50)} & {two.stamp()[0] for _ in range(50)}


def test_ids_fit_in_64_bits(world):
    assert world.node.stamp()[0] < 1 << 63


def test_a_connection_id_is_two_numbers(world):
    assert world.node.new_id() == "7.1"


def test_a_connection_id_has_its_prefix_in_front(world):
    assert world.node.new_id("a.b") == "a.b.7.1"


# Apps and quotas


def test_an_app_is_made_once(world):
    assert world.node.app(world.apps[0]) is world.app
    assert list(world.node.live()) == [world.app]


def test_connections_over_the_quota_of_the_app_are_rejected():
    world = World(app_config({"connections": 2}))
    world.session(), world.session()
    with pytest.raises(Disconnect) as end:
        world.session()
    assert end.value.code == 4004


def test_ended_connection_frees_its_quota():
    world = World(app_config({"connections": 1}))
    first, _ = world.session()
    first.expire()
    world.session()


def test_message_for_an_unknown_app_is_not_delivered(world):
    other = app_config(id="other", key="other-key")
    session, outlet = world.session()
    session.handle(Subscribe("c"))
    app = world.node.app(other)
    assert done(resolve(world.node.publish(app, "c", "e", b"1", world.node.stamp()))).count == 0
    world.turns.drain()
    assert outlet.writes == []


def test_messages_stay_within_their_app():
    one, two = app_config(), app_config(id="other", key="other-key")
    world = World(one, two)
    session, _ = world.session()
    session.handle(Subscribe("c"))
    assert done(resolve(world.node.publish(world.node.app(two), "c", "e", b"1", world.node.stamp()))).count == 0
    assert world.publish("c", b"1") == 1


# Topics: confirmed before the client is notified, kept while they have subscribers, then released


def subscribed(outlet):
    return [reply.channel for reply in outlet.replies if isinstance(reply, Subscribed)]


async def heard(world, outlet) -> bool:
    """Returns whether an event that is published now reaches this client."""
    outlet.writes.clear()
    await resolve(world.node.publish(world.app, "c", "e", b"1", world.node.stamp()))
    world.turns.drain()
    return bool(outlet.writes)


async def test_a_first_subscription_is_confirmed_after_the_topic(slow):
    slow.broker.held = {"subscribe"}
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    await turns()
    assert (slow.broker.waiting, outlet.replies) == (["subscribe"], [])
    await slow.broker.let_all()
    assert subscribed(outlet) == ["c"]


async def test_topic_is_subscribed_before_the_roster_is_joined(slow):
    session, _ = slow.session()
    session.handle(Subscribe("c"))
    assert slow.broker.calls == [("subscribe", "c"), ("join", "c")]


async def test_further_subscriptions_need_no_topic(slow):
    for _ in range(3):
        session, _ = slow.session()
        session.handle(Subscribe("c"))
    assert [name for name, _ in slow.broker.calls].count("subscribe") == 1


async def test_topic_is_released_with_the_last_subscriber(slow):
    one, two = slow.session()[0], slow.session()[0]
    for session in (one, two):
        session.handle(Subscribe("c"))
    one.handle(Unsubscribe("c"))
    assert slow.broker.topics[TOPIC] == 1
    two.expire()
    assert slow.broker.topics[TOPIC] == 0


async def test_two_simultaneous_first_subscribers_both_receive(slow):
    slow.broker.held = {"subscribe", "join"}
    (one, first), (two, second) = slow.session(), slow.session()
    one.handle(Subscribe("c"))
    two.handle(Subscribe("c"))
    await slow.broker.let("subscribe", "join", "subscribe", "join")
    assert subscribed(first) == subscribed(second) == ["c"]
    assert await heard(slow, first)
    assert await heard(slow, second)


async def test_subscriber_that_joins_while_the_last_leaves_the_roster_receives(slow):
    one, _ = slow.session()
    two, outlet = slow.session()
    one.handle(Subscribe("c"))
    slow.broker.held = {"leave"}
    one.handle(Unsubscribe("c"))
    two.handle(Subscribe("c"))
    await turns()
    await slow.broker.let_all()
    assert subscribed(outlet) == ["c"]
    assert await heard(slow, outlet)


async def test_subscriber_that_joins_while_the_last_disconnects_receives(slow):
    one, _ = slow.session()
    two, outlet = slow.session()
    one.handle(Subscribe("c"))
    slow.broker.held = {"leave"}
    one.expire()
    two.handle(Subscribe("c"))
    await turns()
    await slow.broker.let_all()
    assert await heard(slow, outlet)


async def test_subscriber_whose_join_waits_while_the_last_leaves_receives(slow):
    one, _ = slow.session()
    two, outlet = slow.session()
    one.handle(Subscribe("c"))
    slow.broker.held = {"join"}
    two.handle(Subscribe("c"))
    await turns()
    one.handle(Unsubscribe("c"))
    await turns()
    await slow.broker.let_all()
    assert subscribed(outlet) == ["c"]
    assert await heard(slow, outlet)


async def test_connection_closed_while_joining_keeps_the_topic_for_another(slow):
    (one, _), (two, outlet) = slow.session(), slow.session()
    slow.broker.held = {"join"}
    one.handle(Subscribe("c"))
    two.handle(Subscribe("c"))
    await turns()
    one.expire()
    await slow.broker.let_all()
    assert subscribed(outlet) == ["c"]
    assert await heard(slow, outlet)


async def test_connection_closed_while_joining_releases_the_topic(slow):
    slow.broker.held = {"join"}
    session, _ = slow.session()
    session.handle(Subscribe("c"))
    await turns()
    session.expire()
    await slow.broker.let_all()
    assert slow.broker.topics[TOPIC] == 0
    assert await slow.memory.channel(APP, "c") is None


async def test_join_rejected_by_the_roster_releases_the_topic(slow):
    slow.broker.fail["join"] = LimitReached(403, "full")
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    assert outlet.last == SubscriptionRefused("c", "LimitReached", "full", 403)
    assert slow.broker.topics[TOPIC] == 0
    assert slow.app.tenant.channels == {}


@pytest.mark.parametrize("call", ["subscribe", "join"])
async def test_a_broker_that_is_away_refuses_the_subscription_and_the_client_stays(slow, call):
    slow.broker.fail[call] = Refused(503, "the broker is away")
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    assert outlet.last == SubscriptionRefused("c", "Unavailable", "the broker is away", 503)
    slow.broker.fail.clear()
    session.handle(Subscribe("c"))
    assert subscribed(outlet) == ["c"]
    assert await heard(slow, outlet)


async def test_a_client_that_disconnects_leaves_all_its_channels(slow):
    session, _ = slow.session()
    for name in ("a", "b", "c"):
        session.handle(Subscribe(name))
    session.expire()
    assert [call for call in slow.broker.calls if call[0] != "subscribe" and call[0] != "join"] == [
        ("leave", "a"),
        ("unsubscribe", "a"),
        ("leave", "b"),
        ("unsubscribe", "b"),
        ("leave", "c"),
        ("unsubscribe", "c"),
    ]
    assert slow.app.tenant.channels == {}


async def test_slow_roster_does_not_keep_a_closed_client_in_the_hub(slow):
    session, _ = slow.session()
    for name in ("a", "b"):
        session.handle(Subscribe(name))
    slow.broker.held = {"leave"}
    session.expire()
    assert slow.app.tenant.channels == {}
    assert slow.app.tenant.sessions == {}
    await slow.broker.let_all()
    assert await slow.memory.channels(APP) == []


async def test_unreachable_roster_does_not_prevent_leaving(slow):
    session, _ = slow.session()
    for name in ("a", "b"):
        session.handle(Subscribe(name))
    slow.broker.fail["leave"] = Refused(503, "the broker is away")
    session.expire()
    assert slow.app.tenant.channels == {}
    assert [call for call in slow.broker.calls if call[0] == "leave"] == [("leave", "a"), ("leave", "b")]
    assert not any(slow.broker.topics.values())


AWAY = Refused(503, "the broker is away")


@pytest.mark.parametrize("call", ["leave", "unsubscribe", "channel", "publish", "sign_out"])
async def test_one_failed_broker_call_does_not_keep_other_entries_of_a_closed_client(call):
    """After a failed call the other calls are made; entries left in the broker expire with the lease of this node."""
    world = World(app_config(subscription_count=True), slow=True)
    (session, _), (other, outlet) = world.session(), world.session()
    for name in ("a", "b"):
        session.handle(Subscribe(name))
        other.handle(Subscribe(name))
    session.handle(SignIn(auth.user_signature(SECRET, session.id, '{"id":"u1"}'), '{"id":"u1"}'))
    world.broker.calls.clear()
    world.broker.fail[call] = AWAY
    session.expire()
    await turns()
    assert [name for called, name in world.broker.calls if called == "leave"] == ["a", "b"]
    assert ("sign_out", "u1") in world.broker.calls
    assert ("unsubscribe", "#user-u1") in world.broker.calls
    assert world.app.tenant.sessions.keys() == {other.id}
    assert outlet.failures == []


async def test_channel_left_without_roster_releases_its_topic(slow):
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    slow.broker.fail["leave"] = AWAY
    session.handle(Unsubscribe("c"))
    assert slow.broker.topics[TOPIC] == 0
    assert slow.app.tenant.channels == {}
    slow.broker.fail.clear()
    session.handle(Subscribe("c"))
    assert await heard(slow, outlet)


# Lists


def test_the_sessions_of_a_channel_are_those_on_this_worker(world):
    one, _ = world.session()
    two, _ = world.session()
    one.handle(Subscribe("c"))
    two.handle(Subscribe("other"))
    assert world.app.sessions("c") == [one]
    assert world.app.sessions("nowhere") == []
