"""The arguments of publishes for logs, and the publishes that the broker confirms after a log was added."""

import asyncio
from collections.abc import Callable

import pytest

from push1st.brokers.redis.shard_logs import EXPIRE_SECONDS
from push1st.brokers.redis.sharded_logs import CountedLogs
from push1st.brokers.sessions import MAX_LOGS_OF_MESSAGE
from push1st.errors import LimitReached
from push1st.messages import Message, MqttFields, MqttMessage
from tests.unit.brokers.redis.server import Node, Server, settle


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Server]:
    return lambda: Server(monkeypatch)


def event(channel: str = "a.b", qos: int = 1) -> Message:
    return MqttMessage("app", channel, "e", b"1", 1, 5_000_000, "1.1", mqtt=MqttFields(qos))


async def test_publish_without_a_log_is_no_script(serve):
    server = serve()
    node = await Node().start()
    node.shard.interest.known.change("other", "a.b", "", 1)
    server.names()
    node.shard.publish(event())
    await settle()
    assert server.names() == ["PUBLISH", "HGET"]


@pytest.mark.parametrize(("name", "filter"), [("a.+", "a.+"), ("", "a.b")])
async def test_publish_with_logs_is_one_script_with_their_filters(serve, name, filter):
    server = serve()
    node = await Node().start()
    node.shard.interest.known.change("app", name, "", 1)
    server.replies["APPEND_ALL"] = [b"2", b"", 0, 1, 3]
    server.names()
    published = node.shard.publish(event())
    await settle()
    assert (published.result().count, published.result().logs) == (2, 1)
    ((called, arguments),) = server.commands
    assert called == "APPEND_ALL"
    assert arguments[-7:] == [b"", b"1", b"5", b"10000", b"605400000", b"1", filter.encode()]
    assert node.context.metrics.mqtt_dropped["trimmed"] == 3


async def test_message_is_appended_to_all_its_logs_although_nodes_have_exceeded_the_bound(serve):
    serve()
    node = await Node().start()
    levels = [".".join("+" if number >> bit & 1 else level for bit, level in enumerate("abcdefg")) for number in range(128)]
    for filter in levels[1 : MAX_LOGS_OF_MESSAGE + 4]:
        node.shard.interest.known.change("app", filter, "", 1)
    assert len(node.shard.logs.filters("app", "a.b.c.d.e.f.g")) == MAX_LOGS_OF_MESSAGE + 3


async def test_message_with_qos_0_is_not_appended(serve):
    server = serve()
    node = await Node().start()
    node.shard.interest.known.change("app", "a.+", "", 1)
    server.names()
    node.shard.publish(event(qos=0))
    await settle()
    assert server.names() == ["PUBLISH", "HGET"]


async def test_unconfirmed_publish_is_appended_to_a_log_that_is_reported_before_its_reply(serve):
    server = serve()
    node = await Node().start()
    server.replies["HGET"] = b"2"
    server.names()
    published = node.shard.publish(event())
    await asyncio.sleep(0)
    assert not published.done()
    node.shard.interest.known.change("app", "a.+", "", 1)
    node.shard.interest.known.change("app", "x.+", "", 1)
    await settle()
    names = [name for name, _ in server.commands]
    assert names == ["PUBLISH", "HGET", "APPEND_LOGS"]
    arguments = server.commands[-1][1]
    assert (arguments[:2], arguments[3:7], arguments[-1]) == ([b"app", b"a.b"], [b"", b"", b"", b"0"], b"a.+")
    assert published.result().count == 2


async def test_late_copy_for_a_node_and_its_log_are_one_script(serve):
    server = serve()
    node = await Node().start()
    node.shard.interest.known.change("app", "a.+", "", 1)
    server.replies["APPEND_ALL"] = [b"2", b"", 0, 1, 0]
    server.names()
    published = node.shard.publish(event())
    await asyncio.sleep(0)
    node.shard.interest.known.change("app", "a.+", "n1", 1)
    await settle()
    assert [name for name, _ in server.commands] == ["APPEND_ALL", "APPEND_LOGS"]
    arguments = server.commands[-1][1]
    assert (arguments[3][:1], arguments[6:8], arguments[-1]) == (b"\x07", [b"1", b"n1"], b"a.+")
    assert published.result().filters == 1


def test_logs_of_a_message_are_bounded_over_all_nodes():
    logs = CountedLogs()
    levels = ["+", "="]
    shapes = [".".join([*(levels[number >> bit & 1].replace("=", "x") for bit in range(6)), "+"]) for number in range(64)]
    logs.update(dict.fromkeys(shapes, 1))
    with pytest.raises(LimitReached):
        logs.check("#", False)
    logs.update(dict.fromkeys(shapes[:60], 1))
    logs.check("#", False)
    logs.update(dict.fromkeys(shapes[:10:2], 2))
    with pytest.raises(LimitReached):
        logs.check("#", True)
    logs.check("#", False)
    logs.update({})
    logs.check("#", True)


async def test_sweep_of_the_clients_of_logs_begins_once_a_minute(serve):
    serve()
    node = await Node().start()
    node.shard.interest.known.change("app", "a.+", "", 1)
    logs, begun = node.shard.logs, []
    logs.sweep = lambda: begun.append(1)
    now = asyncio.get_running_loop().time()
    for seconds in (0, 1, EXPIRE_SECONDS + 1, EXPIRE_SECONDS + 2):
        logs.tick(now + seconds)
    assert len(begun) == 1
