"""The groups of several nodes, which share a real server: each message has one owner, whatever fails."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest

from push1st.brokers.redis import Redis
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.scripts import Script
from push1st.config.history import HistorySection
from push1st.errors import LimitReached
from push1st.messages import KeptMessage, Message, MqttFields, MqttMessage, Published
from tests.contract.redis import NOW, cluster, new_prefix, redis_broker, valkey

URLS: dict[str, Callable[[], str]] = {"redis": lambda: valkey().url, "redis-cluster": lambda: cluster().url}
A = "app-a"
GROUP = "$share/g/a.+"
TIMINGS = Timings(lease=1, renew=0.2, recovery=1, last_node=0.1, hold=0, read=0.05)


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    return URLS[request.param]()


class Node:
    """A node whose members take all messages, except the data in `rejects`."""

    def __init__(self, broker: Redis, numbers: "count[int]") -> None:
        self.broker = broker
        self.groups = broker.groups
        self.groups.receive = self._take
        self.received: list[bytes] = []
        self.entries: list[int] = []
        self.rejects: set[bytes] = set()
        self._numbers = numbers

    def _take(self, name: str, entry: int, message: Message) -> bool:
        assert name.startswith("$share/")
        if message.data in self.rejects:
            return False
        self.received.append(message.data)
        self.entries.append(entry)
        return True

    async def join(self, members: int = 1, name: str = GROUP) -> None:
        self.groups.set_members(A, name, members, is_first=True)
        await self.groups.confirmed(A, name)

    async def leave(self, name: str = GROUP) -> None:
        self.groups.set_members(A, name, 0)
        await self.broker.settled()

    async def watch(self, client: str = "c", name: str = GROUP) -> None:
        await self.broker.logs.watch(A, client, 1, name, False)

    def message(self, data: bytes, channel: str = "a.b", qos: int = 1, **more: Any) -> Message:
        return MqttMessage(A, channel, "e", data, next(self._numbers), NOW, "1.1", mqtt=MqttFields(qos), **more)

    async def publish(self, data: bytes, channel: str = "a.b", qos: int = 1, key: str = "") -> Published:
        return await self.broker.publish(self.message(data, channel, qos), None, key)

    async def logged(self, name: str = GROUP) -> list[bytes]:
        return [message.data for _, message in await self.broker.logs.read_shared(A, name, 0, 100)]

    async def take(self, name: str = GROUP) -> list[bytes]:
        """Takes all messages out of the log of a group."""
        found = dict(await self.broker.logs.read_shared(A, name, 0, 100))
        taken = await self.broker.logs.take(A, "c", 1, name, found)
        self.entries += taken
        return [found[one].data for one in taken]

    async def stored(self, node: str) -> int:
        """Returns the number of entries of a node in the server."""
        shards = self.broker._shards.all
        return sum([await one.connection.call("HLEN", one.keys.key("ge", node)) for one in shards])

    async def end(self) -> None:
        """Acknowledges all messages."""
        self.groups.end(self.entries)
        self.entries = []
        for shard in self.broker._shards.all:
            shard.groups._end()
        await self.broker.settled()

    def disconnect(self) -> None:
        for shard in self.broker._shards.all:
            assert shard.connection.established is not None
            shard.connection.established.abort()

    async def kill(self) -> None:
        """Ends the broker like a process that is killed: its entries stay in the server until its lease expires."""
        for shard in self.broker._shards.all:
            await shard.connection.close()
        self.disconnect()
        assert self.broker._shards._timer is not None
        self.broker._shards._timer.cancel()


@asynccontextmanager
async def started(url: str, *names: str, timings: Timings = TIMINGS) -> AsyncIterator[list[Node]]:
    prefix, numbers = new_prefix(), count(1)
    opened: list[Node] = []
    try:
        for name in names:
            node = Node(redis_broker(url, node=name, prefix=prefix, timings=timings), numbers)
            await node.broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)
            opened.append(node)
        yield opened
    finally:
        for node in opened:
            await node.broker.close()


async def settled(nodes: list[Node]) -> None:
    for _ in range(2 + len(nodes)):  # a message may be passed on by each node
        for node in nodes:
            await node.broker.settled()


async def until(is_done: Callable[[], Any], nodes: list[Node]) -> None:
    async with asyncio.timeout(15):
        while not is_done():
            await nodes[0].broker.settled()


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_each_message_reaches_one_node_by_the_number_of_its_members(url, qos):
    async with started(url, "n1", "n2", "n3") as nodes:
        for node, members in zip(nodes, (1, 2, 3), strict=True):
            await node.join(members)
        for number in range(60):
            await nodes[number % 3].publish(b"%d" % number, qos=qos)
        await settled(nodes)
        assert Counter(one for node in nodes for one in node.received) == Counter(b"%d" % number for number in range(60))
        assert [len(node.received) for node in nodes] == [10, 20, 30] or not qos
        assert all(len(node.received) >= 5 for node in nodes)


async def test_changed_number_of_members_is_registered_soon(url):
    async with started(url, "n1", "n2") as nodes:
        for node in nodes:
            await node.join()
        nodes[0].groups.set_members(A, GROUP, 3)
        await nodes[0].broker.settled()
        for number in range(40):
            await nodes[1].publish(b"%d" % number)
        await settled(nodes)
        assert [len(node.received) for node in nodes] == [30, 10]


async def test_messages_of_a_turn_with_different_qos_all_arrive(url):
    async with started(url, "n1") as nodes:
        await nodes[0].join()
        await asyncio.gather(*(nodes[0].publish(b"%d" % number, qos=number % 3) for number in range(9)))
        await settled(nodes)
        assert sorted(nodes[0].received) == [b"%d" % number for number in range(9)]


async def test_publisher_sends_to_a_group_that_registers_at_the_same_time(url):
    async with started(url, "n1", "n2") as nodes:
        for number in range(100):
            qos = number % 2
            published = asyncio.create_task(nodes[1].publish(b"%d" % number, qos=qos))
            await nodes[0].join()
            await nodes[1].publish(b"last", qos=1)
            await published
            await settled(nodes)
            assert nodes[0].received.count(b"last") == number + 1
            await nodes[0].leave()
            await nodes[1].broker.settled()


async def test_result_of_a_publish_counts_groups_that_have_the_message(url):
    async with started(url, "n1") as (node,):
        assert (await node.publish(b"1")).logs == 0
        await node.join()
        await node.join(name="$share/h/#")
        assert (await node.publish(b"2")).logs == 2


async def test_message_with_a_history_or_an_idempotency_key_reaches_the_group_once(url):
    async with started(url, "n1") as nodes:
        (node,) = nodes
        await node.join()
        for qos in (0, 1):
            for _ in range(2):
                await node.publish(b"key %d" % qos, qos=qos, key=f"k{qos}")
        kept = KeptMessage(A, "a.b", "e", b"kept", 99, NOW, "1.1", mqtt=MqttFields(1))
        await node.broker.publish(kept, HistorySection(size=10, ttl=60))
        await settled(nodes)
        assert node.received == [b"key 0", b"key 1", b"kept"]


async def test_event_for_some_sessions_or_of_the_server_reaches_no_group(url):
    async with started(url, "n1") as nodes:
        (node,) = nodes
        await node.join()
        for event, more in (("e", {"delivery": "multicast", "target": "x"}), ("pusher_internal:x", {})):
            await node.broker.publish(Message(A, "a.b", event, b"1", 1, NOW, **more))  # type: ignore[arg-type]
        await node.broker.publish(Message(A, "a.b", "e", b"2", 2, NOW))
        await settled(nodes)
        assert node.received == [b"2"]


async def test_acknowledged_message_is_removed(url):
    async with started(url, "n1") as nodes:
        (node,) = nodes
        await node.join()
        for number in range(5):
            await node.publish(b"%d" % number)
        await node.publish(b"qos 0", qos=0)
        await settled(nodes)
        assert await node.stored("n1") == 5
        assert node.entries.count(0) == 1
        await node.end()
        assert await node.stored("n1") == 0
        for shard in node.broker._shards.all:
            assert await shard.connection.call("EXISTS", shard.keys.key("gb")) == 0
            assert shard.groups._entries == {}


async def test_message_that_no_member_may_receive_goes_to_the_next_node_and_then_to_the_log(url):
    async with started(url, "n1", "n2", "n3") as nodes:
        one, two, three = nodes
        await two.watch()
        for node in nodes:
            await node.join()
        one.rejects = two.rejects = {b"1", b"2"}
        three.rejects = {b"2"}
        for qos in (0, 1):
            await one.publish(b"1", qos=qos)
            await one.publish(b"2", qos=qos)
        await settled(nodes)
        assert (one.received, two.received, three.received) == ([], [], [b"1", b"1"])
        assert await one.logged() == [b"2"]
        assert [await one.stored(name) for name in ("n1", "n2", "n3")] == [0, 0, 1]
        one.rejects = set()
        assert await one.take() == [b"2"]
        assert await one.stored("n1") == 1


async def test_message_without_a_reader_is_dropped_if_no_session_watches_the_group(url):
    async with started(url, "n1") as nodes:
        (node,) = nodes
        await node.join()
        node.rejects = {b"1"}
        await node.publish(b"1")
        await settled(nodes)
        assert await node.stored("n1") == 0
        assert await node.logged() == []


async def test_log_keeps_the_messages_while_no_member_is_connected(url):
    async with started(url, "n1", "n2") as (one, two):
        await one.watch()
        await one.publish(b"0", qos=0)
        for number in range(1, 6):
            assert (await one.publish(b"%d" % number)).logs == 1
        assert await two.logged() == [b"1", b"2", b"3", b"4", b"5"]
        (first, _), (second, _) = await two.broker.logs.read_shared(A, GROUP, 0, 2)
        assert [data.data for _, data in await two.broker.logs.read_shared(A, GROUP, second, 2)] == [b"3", b"4"]
        assert list(await two.broker.logs.take(A, "c", 1, GROUP, [first])) == [first]
        assert list(await one.broker.logs.take(A, "c", 1, GROUP, [first, second])) == [second]
        assert await one.logged() == [b"3", b"4", b"5"]
        await one.broker.logs.unwatch(A, "c", 1, GROUP, False)
        assert await one.logged() == []
        assert (await one.publish(b"6")).logs == 0


async def test_two_nodes_that_take_the_same_messages_get_each_once(url):
    async with started(url, "n1", "n2") as nodes:
        await nodes[0].watch()
        for number in range(50):
            await nodes[0].publish(b"%d" % number, f"a.{number % 7}")
        taken = await asyncio.gather(*(node.take() for node in nodes))
        assert Counter(one for some in taken for one in some) == Counter(b"%d" % number for number in range(50))
        assert await nodes[0].logged() == []
        for shard in nodes[0].broker._shards.all:
            for kind in ("lb", "lo"):
                assert await shard.connection.call("GET" if kind == "lb" else "ZCARD", shard.keys.key(kind, A)) in (0, b"0", None)


async def test_given_back_message_goes_to_a_connected_member_or_to_the_log(url):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.broker.logs.give_back(A, GROUP, [one.message(b"0")])
        await one.watch()
        await one.broker.logs.give_back(A, GROUP, [one.message(b"1", "a.x"), one.message(b"2", "a.y")])
        assert sorted(await one.logged()) == [b"1", b"2"]
        await two.join()
        await one.broker.logs.give_back(A, GROUP, [one.message(b"3")])
        await settled(nodes)
        assert two.received == [b"3"]


async def test_passed_on_message_goes_to_another_node(url):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.join()
        await one.publish(b"1")
        await settled(nodes)
        await two.join()
        one.groups.pass_on(one.entries)
        await settled(nodes)
        assert two.received == [b"1"]
        assert [await one.stored(name) for name in ("n1", "n2")] == [0, 1]
        await one.end()  # the entry belongs to the other node
        assert await one.stored("n2") == 1


async def test_dead_node_gives_its_messages_to_other_nodes(url):
    async with started(url, "n1", "n2", "n3") as nodes:
        one, two, three = nodes
        await one.join(1000)
        for number in range(300):
            await two.publish(b"%d" % number, f"a.{number % 5}")
        await settled(nodes)
        one.groups.end(one.entries[:100])
        for shard in one.broker._shards.all:
            shard.groups._end()
        await settled(nodes)
        rest = Counter(one.received[100:])
        await two.join()
        await three.join()
        nodes.remove(one)
        await one.kill()
        await until(lambda: len(two.received) + len(three.received) >= 200, nodes)
        await settled(nodes)
        assert Counter(two.received + three.received) == rest
        assert await two.stored("n1") == 0
        assert min(len(two.received), len(three.received)) > 50


async def test_dead_node_leaves_its_messages_in_the_log_of_the_last_group(url):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.join()
        await one.join(name="$share/h/a.+")
        await two.watch()
        await two.publish(b"1")
        await settled(nodes)
        nodes.remove(one)
        await one.kill()
        async with asyncio.timeout(15):
            while await two.stored("n1"):
                await two.broker.settled()
        assert await two.logged() == [b"1"]
        assert await two.logged("$share/h/a.+") == []


async def test_stopped_node_gives_its_messages_to_other_nodes(url):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.join(1000)
        await two.join()
        one.rejects = set()
        await two.publish(b"1")
        await settled(nodes)
        assert one.received == [b"1"]
        nodes.remove(one)
        await one.broker.close()
        await settled(nodes)
        assert two.received == [b"1"]


async def test_stopped_node_gives_no_acknowledged_message_to_other_nodes(url):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.join(1000)
        await two.join()
        for number in range(20):
            await two.publish(b"%d" % number, f"a.{number % 5}")
        await settled(nodes)
        one.groups.end(one.entries[:10])
        one.groups.pass_on(one.entries[10:])
        nodes.remove(one)
        await one.broker.close()
        await settled(nodes)
        assert Counter(two.received) == Counter(one.received[10:])


async def test_message_is_given_to_many_groups_in_steps(url, monkeypatch):
    monkeypatch.setattr("push1st.brokers.redis.shard_groups.MAX_STEP", 3)
    async with started(url, "n1") as nodes:
        (node,) = nodes
        steps: list[int] = []

        def counted(arguments: Callable[[Any, list[str]], Any], messages: Any, names: list[str]) -> Any:
            steps.append(len(names))
            return arguments(messages, names)

        for shard in node.broker._shards.all:
            monkeypatch.setattr(shard.groups, "_arguments", partial(counted, shard.groups._arguments))
        for number in range(8):
            await node.join(name=f"$share/g{number}/a.+")
        await node.publish(b"1")
        await node.publish(b"2", key="k")
        await asyncio.gather(*(node.publish(b"3") for _ in range(2)))
        await settled(nodes)
        assert Counter(node.received) == {b"1": 8, b"2": 8, b"3": 16}
        assert max(steps) == 3


async def test_message_that_is_acknowledged_during_a_repair_arrives_once(url):
    async with started(url, "n1") as nodes:
        (node,) = nodes
        await node.join()
        await node.publish(b"1")
        await settled(nodes)
        for shard in node.broker._shards.all:
            assert shard.connection.registered_on is not None
            shard.groups.repair(shard.connection.registered_on)
        await node.end()
        await settled(nodes)
        assert node.received == [b"1"]
        async with asyncio.timeout(15):
            while await node.stored("n1"):
                await node.broker.settled()


async def test_rejected_command_is_repaired(url, monkeypatch):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.join()
        await one.publish(b"1")
        await settled(nodes)
        await two.join()
        text = "return redis.error_reply('ERR rejected')"
        digests = [(await shard.connection.call("SCRIPT", "LOAD", text)).decode() for shard in one.broker._shards.all]
        one.rejects = {b"1"}
        with monkeypatch.context() as patch:
            rejected = Script(text, text, digests[0], digests[0])
            patch.setattr("push1st.brokers.redis.shard_groups.PASS_ENTRIES", rejected)
            one.groups.pass_on(one.entries)
            await one.broker.settled()
        assert two.received == []
        await until(lambda: two.received, nodes)
        await settled(nodes)
        assert two.received == [b"1"]
        assert await one.stored("n1") == 0


async def test_node_receives_messages_that_were_sent_while_it_was_not_connected(url):
    async with started(url, "n1", "n2", timings=Timings(lease=10, renew=0.2, hold=0, read=0.05)) as nodes:
        one, two = nodes
        await one.join()
        await two.publish(b"1")
        await settled(nodes)
        one.disconnect()
        for number in range(2, 30):
            await two.publish(b"%d" % number, f"a.{number % 5}")
        await until(lambda: len(one.received) >= 29, nodes)
        await settled(nodes)
        assert Counter(one.received) == Counter(b"%d" % number for number in range(1, 30))
        assert await two.stored("n1") == 29
        await one.end()
        assert await two.stored("n1") == 0


async def test_acknowledgement_while_the_broker_is_away_is_sent_later(url):
    async with started(url, "n1", "n2", timings=Timings(lease=10, renew=0.2, hold=0, read=0.05)) as nodes:
        one, two = nodes
        await one.join()
        await two.publish(b"1")
        await settled(nodes)
        one.disconnect()
        one.groups.end(one.entries)
        for shard in one.broker._shards.all:
            shard.groups._end()
        async with asyncio.timeout(15):
            while await two.stored("n1"):
                await two.broker.settled()
        assert one.received == [b"1"]


async def test_node_that_returns_after_its_eviction_has_no_messages(url):
    async with started(url, "n1", "n2") as nodes:
        one, two = nodes
        await one.join(1000)
        await two.join()
        await two.publish(b"1")
        await settled(nodes)
        assert one.received == [b"1"]
        assert one.broker._shards._timer is not None
        one.broker._shards._timer.cancel()  # the node renews no lease, like a process that was stopped for a while
        await until(lambda: two.received, nodes)
        one.broker._shards._tick()
        await until(lambda: all(shard.connection.registered_on is not None for shard in one.broker._shards.all), nodes)
        await one.end()
        one.groups.pass_on(one.entries)
        await settled(nodes)
        assert await two.stored("n2") == 1
        assert (one.received, two.received) == ([b"1"], [b"1"])


async def test_entries_above_the_bound_are_sent_without_an_entry(url, monkeypatch):
    async with started(url, "n1") as nodes:
        (node,) = nodes
        for shard in node.broker._shards.all:
            shard.groups.bounds = f"10 60000 {(256 << 20) // 300}"
        await node.join()
        for number in range(10):
            await node.publish(b"%d" % number)
        await settled(nodes)
        assert len(node.received) == 10
        assert await node.stored("n1") == 10 - node.entries.count(0) < 10


async def test_log_of_a_group_keeps_the_newest_messages_within_its_bound(url):
    async with started(url, "n1") as (node,):
        await node.watch()
        for shard in node.broker._shards.all:
            shard.groups.bounds = "3 60000 1"
        for number in range(8):
            await node.publish(b"%d" % number)
        assert await node.logged() == [b"5", b"6", b"7"]


async def test_app_may_not_have_too_many_groups(url, monkeypatch):
    monkeypatch.setattr("push1st.brokers.redis.known_filters.MAX_APP_FILTERS", 2)
    async with started(url, "n1", "n2") as (one, two):
        await one.join()
        await one.join(name="$share/h/a.+")
        await two.broker.settled()
        two.groups.check_room(A, GROUP, False)
        with pytest.raises(LimitReached):
            two.groups.check_room(A, "$share/i/a.+", False)


async def test_filter_may_not_have_too_many_groups(url, monkeypatch):
    monkeypatch.setattr("push1st.brokers.redis.known_filters.MAX_FILTER_GROUPS", 2)
    async with started(url, "n1") as (node,):
        await node.join(name="$share/g/a.+")
        node.groups.check_room(A, "$share/h/a.+", False)
        with pytest.raises(LimitReached):
            node.groups.check_room(A, "$share/h/a.+", True)
        await node.join(name="$share/h/a.+")
        node.groups.check_room(A, "$share/i/b.+", False)
        with pytest.raises(LimitReached):
            node.groups.check_room(A, "$share/i/a.+", False)
