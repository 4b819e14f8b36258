"""A shard that connects again: its commands on each connection, and how calls that wait in the meantime end."""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from push1st.brokers.redis.bounds import MAX_UNSENT_BYTES, Timings
from push1st.brokers.redis.states import ConnectionState
from push1st.errors import Refused
from push1st.messages import Message
from tests.unit.brokers.redis.server import EPOCH, Node, Server, settle

MESSAGE = Message("app", "c", "e", b"1", 1, 1)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Server]:
    return lambda: Server(monkeypatch)


async def test_node_registers_subscribes_compares_and_renews_in_this_order(serve):
    server = serve()
    node = await Node().start()
    assert server.names() == ["REGISTER", "SUBSCRIBE", "HSCAN", "RENEW"]
    assert node.is_in(ConnectionState.READY)


async def test_publishes_wait_on_a_new_connection_until_no_living_node_is_missing(serve):
    server = serve()
    server.missing = 1
    node = await Node().start()
    assert node.is_in(ConnectionState.GATED)
    with pytest.raises(Refused, match="nothing was published"):
        node.shard.publish(MESSAGE)
    server.missing = 0
    node.tick()
    await settle()
    assert node.is_in(ConnectionState.READY)
    node.shard.publish(MESSAGE)


async def test_publishes_start_after_the_length_of_a_lease_though_a_node_is_missing(serve):
    server = serve()
    server.missing = 1
    node = await Node(lease=0).start()
    assert node.is_in(ConnectionState.READY)


async def test_after_a_failover_the_node_registers_on_the_new_server_and_publishes_wait_again(serve):
    server = serve()
    node = await Node().start()
    server.names()
    server.missing = 1
    server.connections[0].abort()
    assert node.is_in(ConnectionState.AWAY)
    await settle()
    assert len(server.connections) == 2
    assert server.names() == ["REGISTER", "SUBSCRIBE", "HSCAN", "RENEW"]
    assert node.is_in(ConnectionState.GATED)


async def test_node_whose_lease_is_lost_registers_on_its_connection_and_still_publishes(serve):
    server = serve()
    node = await Node().start()
    server.names()
    node.connection.fault("NOLEASE no lease")
    assert node.is_in(ConnectionState.READY_NO_LEASE)
    node.shard.publish(MESSAGE)
    await settle()
    assert len(server.connections) == 1
    assert server.names() == ["REGISTER", "PUBLISH", "HGET", "HSCAN", "RENEW"]
    assert node.is_in(ConnectionState.READY)


async def test_node_keeps_its_connection_while_a_full_disk_rejects_its_registration(serve):
    server = serve()
    node = await Node().start()
    replies = [hiredis.ReplyError("MISCONF disk"), [EPOCH, 0, 7, 0, 0, b""]]
    server.replies["REGISTER"] = lambda _: replies.pop(0)
    node.connection.fault("NOLEASE no lease")
    await settle()
    assert len(server.connections) == 1
    assert node.is_in(ConnectionState.READY)
    assert replies == []


async def test_node_that_cannot_register_for_the_first_time_connects_again(serve):
    server = serve()
    replies = [hiredis.ReplyError("MISCONF disk"), [EPOCH, 0, 7, 0, 0, b""]]
    server.replies["REGISTER"] = lambda _: replies.pop(0)
    node = await Node().start()
    assert len(server.connections) == 2
    assert node.is_in(ConnectionState.READY)
    assert node.connection.reason == "MISCONF disk"


async def test_node_connects_again_after_a_reply_that_the_slot_has_moved(serve):
    server = serve()
    node = await Node().start()
    replies: list[Any] = [hiredis.ReplyError("MOVED 1 host:1"), 3]
    server.replies["HLEN"] = lambda _: replies.pop(0)
    assert await node.shard.roster.user_count("app", "presence-c") == 3
    assert len(server.connections) == 2


async def test_call_is_repeated_on_the_next_connection(serve):
    server = serve()
    node = await Node().start()
    server.is_silent = True
    call = asyncio.ensure_future(node.connection.call("PING"))
    await settle()
    server.is_silent = False
    server.connections[0].abort()
    server.replies["PING"] = b"PONG"
    assert await call == b"PONG"


async def test_call_that_the_server_rejects_is_rejected(serve):
    server = serve()
    node = await Node().start()
    server.replies["PING"] = hiredis.ReplyError("OOM command not allowed")
    with pytest.raises(Refused, match="the broker refused: OOM command not allowed"):
        await node.connection.call("PING")
    assert len(server.connections) == 1


async def test_calls_wait_for_the_broker_and_are_rejected_at_the_end_of_their_patience(serve):
    server = serve()
    server.is_silent = True
    node = await Node().start()
    call = asyncio.ensure_future(node.connection.call("PING"))
    await settle()
    node.tick(Timings().patience - 1)
    assert not call.done()
    node.tick(Timings().patience + 1)
    with pytest.raises(Refused, match="the broker is away, try again"):
        await call


@pytest.mark.parametrize(("silent", "unread"), [(True, 0), (False, MAX_UNSENT_BYTES + 1)], ids=["silent", "slow"])
async def test_connection_to_a_silent_or_slow_server_is_dropped(serve, silent, unread):
    server = serve()
    node = await Node().start()
    server.is_silent, server.unread = silent, unread
    asyncio.ensure_future(node.connection.call("PING"))  # noqa: RUF006 - it ends with the connection
    await settle()
    node.tick(Timings().silent + 1 if silent else 0)
    assert not server.connections[0].alive


async def test_failed_attempts_to_connect_are_repeated(serve):
    server = serve()
    server.failures = [OSError("refused"), TimeoutError()]
    node = await Node().start()
    assert node.is_in(ConnectionState.READY)


async def test_node_that_stops_evicts_its_own_entries_and_ends_its_connection(serve):
    server = serve()
    node = await Node().start()
    server.names()
    server.replies |= {"GET": EPOCH, "EVICT_NODE": [None, []]}
    await node.shard.close()
    assert server.names() == ["GET", "DEL", "EVICT_NODE"]
    assert server.connections[0]._transport.is_closing()
    assert node.is_in(ConnectionState.CLOSED)


async def test_node_that_stops_while_it_registers_ends_its_connection_at_once(serve):
    server = serve()
    server.is_silent = True
    node = await Node().start()
    await node.shard.close()
    assert not server.connections[0].alive
    assert server.names() == []
