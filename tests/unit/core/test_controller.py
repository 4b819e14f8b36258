"""Requests and messages between workers: the handlers of topics."""

import pytest

from push1st.core.controller import TopicHandler
from push1st.errors import Refused
from push1st.messages import Options, Subscribe
from tests.support.loop import done


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
    assert slow.node.controller._handlers == {}
    assert ("unsubscribe", "#t") in slow.broker.calls


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
