"""Hook events that the node and its sessions report, and the apps for which they report them."""

import pytest

from push1st.brokers.redis.wire import decode_event, encode_event
from push1st.config.model import Hook, Webhook
from push1st.core.counts import COUNT_SECONDS, LARGE_CHANNEL
from push1st.messages import HookEvent, Publish, Subscribe, Unsubscribe
from tests.support.loop import done
from tests.support.node import APP, World, app_config, token

PUSH1ST = Hook(trigger=frozenset(("join", "leave", "push")), endpoint=("http://h/",))


def telling(*events: str, **more) -> World:
    return World(app_config(webhooks=(Webhook(url="http://h/", events=events),), **more))


def reported(world, *kinds: str) -> list[HookEvent]:
    return [event for event in world.hooks.hook_events if event.kind in kinds]


@pytest.fixture
def world():
    return World(app_config(hook=PUSH1ST))


def join(session, name, channel_data=""):
    session.handle(Subscribe(name, token(session, name, channel_data), channel_data))


def test_each_connection_joins_and_leaves(world):
    one, two = world.session()[0], world.session()[0]
    for session in (one, two):
        join(session, "c")
    one.handle(Unsubscribe("c"))
    two.expire()
    events = reported(world, "joined", "left")
    assert [(event.kind, event.socket_id) for event in events] == [
        ("joined", one.id),
        ("joined", two.id),
        ("left", one.id),
        ("left", two.id),
    ]
    assert {(event.app, event.channel, event.user_id) for event in events} == {(APP, "c", None)}
    assert {event.at for event in events} == {world.clock.wall()}


def test_join_and_leave_events_have_the_id_and_info_of_the_member(world):
    session, _ = world.session()
    join(session, "presence-c", '{"user_id":"7","user_info":{"a":1}}')
    session.expire()
    assert [(event.kind, event.user_id, event.user_info) for event in reported(world, "joined", "left")] == [
        ("joined", "7", b'{"a":1}'),
        ("left", "7", b'{"a":1}'),
    ]


def test_leave_event_precedes_the_edges_it_causes(world):
    session, _ = world.session()
    join(session, "presence-c", '{"user_id":"7"}')
    session.expire()
    assert [event.kind for event in world.hooks.hook_events] == [
        *("occupied", "member-added", "joined"),
        *("left", "member-removed", "vacated"),
    ]


def test_rejected_subscription_is_not_reported(world):
    session, _ = world.session()
    session.handle(Subscribe("private-c", "wrong"))
    assert world.hooks.hook_events == []


def test_a_client_event_is_reported_with_its_sender(world):
    session, _ = world.session()
    join(session, "presence-c", '{"user_id":"7"}')
    session.handle(Publish("presence-c", "client-e", b'{"a":1}'))
    (event,) = reported(world, "client-event")
    assert (event.event, event.data, event.socket_id, event.user_id) == ("client-e", b'{"a":1}', session.id, "7")


@pytest.mark.parametrize("ttl", [1e20, 1.7e308])
def test_a_client_event_with_any_ttl_can_be_reported_by_a_broker(world, ttl):
    session, _ = world.session()
    join(session, "presence-c", '{"user_id":"7"}')
    session.handle(Publish("presence-c", "client-e", b"1", ttl=ttl))
    (event,) = reported(world, "client-event")
    assert decode_event(encode_event(event)) == event
    assert event.expires > world.clock.wall() // 1_000_000_000


def test_a_refused_client_event_is_not(world):
    session, _ = world.session()
    session.handle(Publish("private-c", "client-e", b"1"))
    assert reported(world, "client-event") == []


def test_an_event_of_the_api_is_not(world):
    world.publish("c", b"1")
    assert reported(world, "client-event") == []


def test_a_cache_channel_without_an_event_is_reported():
    world = telling("cache_miss")
    join(world.session()[0], "cache-c")
    assert [event.channel for event in reported(world, "cache-missed")] == ["cache-c"]
    world.publish("cache-d", b"1")
    join(world.session()[0], "cache-d")
    assert [event.channel for event in reported(world, "cache-missed")] == ["cache-c"]


def test_counts_follow_the_rule_for_large_channels():
    world = telling("subscription_count", subscription_count=True)
    for _ in range(LARGE_CHANNEL + 1):
        join(world.session()[0], "c")
        done(world.node.tick())
    for _ in range(9):
        join(world.session()[0], "c")
    assert [event.count for event in reported(world, "counted")] == list(range(1, LARGE_CHANNEL + 2))
    world.clock.advance(COUNT_SECONDS)
    done(world.node.tick())
    assert reported(world, "counted")[-1].count == LARGE_CHANNEL + 10


def test_counts_are_for_apps_that_opted_in():
    world = telling("subscription_count")
    join(world.session()[0], "c")
    assert reported(world, "counted") == []


def test_app_without_hooks_has_only_the_edges_of_the_roster_reported():
    world = World(app_config(subscription_count=True))
    session, _ = world.session()
    join(session, "presence-c", '{"user_id":"7"}')
    join(session, "cache-c")
    session.handle(Publish("presence-c", "client-e", b"1"))
    session.expire()
    assert {event.kind for event in world.hooks.hook_events} <= {"occupied", "vacated", "member-added", "member-removed"}


def test_channels_of_users_are_never_reported_by_the_node(world):
    world.node.reports.report(world.app, "joined", "#server-to-user-7", "1.2")
    assert reported(world, "joined") == []
