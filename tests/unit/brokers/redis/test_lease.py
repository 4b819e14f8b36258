"""Renewals of a lease, and evictions of dead nodes."""

from collections.abc import Callable

import hiredis
import pytest

from push1st.brokers.redis.bounds import Timings
from tests.unit.brokers.redis.server import EPOCH, Node, Server, settle


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Server]:
    return lambda: Server(monkeypatch)


def renewal(dead: tuple[bytes, ...] = (), deferred: int = 0, alive: tuple[bytes, ...] = ()) -> list[object]:
    return [EPOCH, 0, 0, list(dead), deferred, 0, list(alive)]


async def test_lease_is_renewed_when_it_is_time(serve):
    server = serve()
    node = await Node().start()
    server.names()
    node.tick()
    await settle()
    assert server.names() == []
    node.tick(Timings().renew + 0.1)
    await settle()
    assert server.names() == ["RENEW"]


async def test_dead_node_is_evicted_step_by_step_and_once(serve):
    server = serve()
    node = await Node().start()
    server.names()
    server.replies["RENEW"] = renewal(dead=(b"gone",))
    steps: list[object] = [[b"m9", []], [b"c0", [b"app", b"c"]], [None, []]]
    server.replies["EVICT_NODE"] = lambda _: steps.pop(0)
    node.shard.lease.renew()
    node.shard.lease.renew()
    await settle()
    assert server.names() == ["RENEW", "RENEW", "EVICT_NODE", "EVICT_NODE", "EVICT_NODE"]
    assert node.recounted == [("app", "c")]


async def test_eviction_that_fails_is_started_again_by_a_later_renewal(serve):
    server = serve()
    node = await Node().start()
    server.replies["RENEW"] = renewal(dead=(b"gone",))
    steps: list[object] = [hiredis.ReplyError("OOM"), [None, []]]
    server.replies["EVICT_NODE"] = lambda _: steps.pop(0)
    for _ in range(2):
        node.shard.lease.renew()
        await settle()
    assert steps == []


async def test_node_whose_own_lease_had_expired_evicts_no_other_for_the_length_of_a_lease(serve):
    server = serve()
    server.replies["REGISTER"] = [EPOCH, 0, 7, 0, 1, b""]
    server.replies["RENEW"] = renewal(dead=(b"gone",))
    node = await Node().start()
    node.shard.lease.renew()
    await settle()
    assert "EVICT_NODE" not in server.names()


async def test_deferred_leaves_are_published_until_none_is_left(serve):
    server = serve()
    node = await Node().start()
    server.names()
    server.replies["RENEW"] = renewal(deferred=1)
    left = [1, 1, 0]
    server.replies["FLUSH_DEFERRED"] = lambda _: left.pop(0)
    node.shard.lease.renew()
    await settle()
    assert server.names() == ["RENEW", "FLUSH_DEFERRED", "FLUSH_DEFERRED", "FLUSH_DEFERRED"]


async def test_registration_names_the_nodes_that_were_alive(serve):
    server = serve()
    node = await Node().start()
    server.replies["RENEW"] = renewal(alive=(b"two", b"one"))
    node.shard.lease.renew()
    await settle()
    server.commands.clear()
    server.connections[0].abort()
    await settle()
    (register,) = (arguments for name, arguments in server.commands if name == "REGISTER")
    assert register[10:] == [b"one", b"two"]


async def test_list_of_the_supervisor_replaces_the_list_of_the_server(serve):
    server = serve()
    node = await Node().start()
    server.replies["RENEW"] = renewal(alive=(b"dead",))
    node.shard.lease.renew()
    await settle()
    node.shard.lease.workers(["node", "living"])
    assert node.shard.lease.others == ["living"]


async def test_message_of_a_node_that_has_subscribed_is_followed_by_a_renewal_while_publishes_wait(serve):
    server = serve()
    server.missing = 1
    node = await Node().start()
    server.names()
    server.missing = 0
    node.shard.lease.node_subscribed("other")
    await settle()
    assert server.names() == ["RENEW"]
    assert node.connection.publish_connection is not None
    node.shard.lease.node_subscribed("other")
    await settle()
    assert server.names() == []
