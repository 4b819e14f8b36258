"""Requests and messages between workers: the handlers of topics."""

import asyncio

import pytest

from push1st.brokers import ALL_WORKERS
from push1st.core.controller import CONNECTIONS, TopicHandler
from push1st.errors import Refused
from push1st.messages import Options, Subscribe
from tests.support.loop import done, turns
from tests.support.node import APP, World, app_config


def test_request_for_a_removed_topic_handler_gets_no_reply(world):
    """The broker may deliver such a request while the topic is being released."""
    handler = TopicHandler(lambda request: b"here: " + request, lambda _: None)
    done(world.node.controller.handle_topic(world.app, "#xhr-1", handler))
    assert done(world.node.controller.request(world.app, "#xhr-1", b"who?")) == [b"here: who?"]
    done(world.node.controller.release_topic(world.app, "#xhr-1"))
    assert done(world.node.controller.request(world.app, "#xhr-1", b"who?")) == []


async def test_topic_handler_that_the_broker_rejects_is_removed(slow):
    slow.broker.fail["subscribe"] = Refused(503, "the broker is away")
    with pytest.raises(Refused):
        await slow.node.controller.handle_topic(slow.app, "#t", TopicHandler(lambda _: b"", lambda _: None))
    assert slow.node.controller._topics == {}
    assert ("unsubscribe", "#t") in slow.broker.calls


def handle(world: World, received: list[bytes]) -> "asyncio.Task[None]":
    handler = TopicHandler(lambda _: b"", received.append)
    return asyncio.get_running_loop().create_task(world.node.controller.handle_topic(world.app, "#t", handler))


async def sent_to_topic(world: World) -> None:
    world.node.controller.send_to_topic(world.app, "#t", b"1", lambda: None)
    await turns()


async def test_topic_handler_stays_if_the_broker_rejects_one_of_two_calls_at_once(slow):
    """Two requests of fallback sessions may subscribe to the topic of the worker while the broker is away."""
    received: list[bytes] = []
    slow.broker.held.add("subscribe")
    calls = [handle(slow, received) for _ in range(2)]
    await turns()
    slow.broker.fail["subscribe"] = Refused(503, "the broker is away")
    await slow.broker.let("subscribe")
    slow.broker.fail.clear()
    await slow.broker.let_all()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert list(map(type, results)) == [Refused, type(None)]
    await sent_to_topic(slow)
    assert received == [b"1"]


async def test_topic_handler_stays_if_another_call_is_rejected_after_its_confirmation(slow):
    received: list[bytes] = []
    await handle(slow, received)
    slow.broker.fail["subscribe"] = Refused(503, "the broker is away")
    await asyncio.gather(handle(slow, received), return_exceptions=True)
    await sent_to_topic(slow)
    assert received == [b"1"]


async def test_topic_that_is_released_stays_for_a_call_that_still_waits(slow):
    received: list[bytes] = []
    slow.broker.held.add("subscribe")
    one, two = handle(slow, received), handle(slow, received)
    await turns()
    await slow.broker.let("subscribe")
    await one
    await slow.node.controller.release_topic(slow.app, "#t")
    await slow.broker.let_all()
    await two
    await sent_to_topic(slow)
    assert (received, slow.broker.topics[APP, "#t"]) == ([b"1"], 1)
    await slow.node.controller.release_topic(slow.app, "#t")
    assert (slow.node.controller._topics, slow.broker.topics[APP, "#t"]) == ({}, 0)


def test_message_to_a_topic_reaches_its_handler_only(world):
    received: list[bytes] = []
    done(world.node.controller.handle_topic(world.app, "#one", TopicHandler(lambda _: b"", received.append)))
    lost: list[str] = []
    world.node.controller.send_to_topic(world.app, "#one", b"1", lambda: lost.append("one"))
    world.node.controller.send_to_topic(world.app, "#two", b"2", lambda: lost.append("two"))
    assert (received, lost) == ([b"1"], [])


async def test_sender_is_notified_of_a_message_that_the_broker_rejects(slow):
    slow.broker.fail["publish"] = Refused(503, "the broker is away")
    lost: list[str] = []
    slow.node.controller.send_to_topic(slow.app, "#one", b"1", lambda: lost.append("one"))
    assert lost == ["one"]


def test_connections_are_those_of_one_app():
    world = World(app_config(), app_config(id="other", key="other-key"))
    for _ in range(2):
        world.session()
    other = world.node.app(world.apps[1])
    assert [done(world.node.controller.connections(app)) for app in (world.app, other)] == [2, 0]


def test_app_that_this_worker_has_not_used_has_no_connections(world):
    assert world.node.controller.reply("", ALL_WORKERS, CONNECTIONS + b"unused") == b"0"


def test_worker_of_an_older_version_counts_no_connections(world):
    async def request(*_: object) -> list[bytes]:
        return [b"", b"2"]

    world.memory.request = request
    assert done(world.node.controller.connections(world.app)) == 2


def test_unknown_request_to_all_workers_gets_no_reply(world):
    assert world.node.controller.reply("", ALL_WORKERS, b"of a newer version") == b""


def test_sessions_and_reach_are_those_of_all_workers(world):
    one, _ = world.session()
    two, _ = world.session()
    for session in (one, two):
        session.handle(Subscribe("c"))
    controller = world.node.controller
    assert [info.id for info in done(controller.listed(world.app, "c"))] == [one.id, two.id]
    assert done(controller.listed(world.app, "nowhere")) == []
    assert done(controller.reach(world.app, "c", one.id, Options())) == 1
    assert done(controller.reach(world.app, "c", "", Options(0, "unicast", two.id))) == 1
