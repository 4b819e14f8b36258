"""The filters of several nodes, which share a real server: each node knows the filters of all nodes, in each shard."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from msgspec.structs import replace

from push1st.brokers import ALL_CHANNELS, PUBLIC_CHANNELS
from push1st.brokers.redis import Redis
from push1st.brokers.redis.appending import key_of
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.publishing import Batch
from push1st.brokers.redis.scripts import APPEND_LOGS
from push1st.brokers.redis.wire import copy_of, encode_messages
from push1st.config.history import HistorySection
from push1st.errors import LimitReached, Refused
from push1st.messages import KeptMessage, Message, MqttFields, MqttMessage, Published
from tests.contract.redis import NOW, cluster, new_prefix, redis_broker, valkey
from tests.support.valkey import Valkey

URLS: dict[str, Callable[[], str]] = {"redis": lambda: valkey().url, "redis-cluster": lambda: cluster().url}
A = "app-a"
SECTION = HistorySection(size=10, ttl=60)
TIMINGS = Timings(lease=1, renew=0.2, recovery=1, last_node=0.1, hold=0, read=0.05)


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    return URLS[request.param]()


class Messages(list[Message]):
    def receive(self, message: Message) -> int:
        self.append(message)
        return 1


class Nodes:
    """The brokers of some nodes, under one prefix."""

    def __init__(self, url: str, timings: Timings = TIMINGS) -> None:
        self._url = url
        self._timings = timings
        self.prefix = new_prefix()
        self.open: list[Redis] = []
        self.received: dict[Redis, list[Message]] = {}
        """the messages that each node has received by the topics of their channels"""
        self.copies: dict[Redis, list[Message]] = {}
        """the messages that each node has received as copies"""

    async def start(self, name: str) -> Redis:
        broker = redis_broker(self._url, node=name, prefix=self.prefix, timings=self._timings)
        received, copies = Messages(), Messages()
        self.received[broker], self.copies[broker] = received, copies
        await broker.open(received.receive, lambda _: None, lambda *_: b"", lambda *_: None)
        broker.filters.receive = copies.receive
        self.open.append(broker)
        return broker


@asynccontextmanager
async def started(url: str, *names: str, timings: Timings = TIMINGS) -> AsyncIterator[tuple[Nodes, list[Redis]]]:
    nodes = Nodes(url, timings)
    try:
        yield nodes, [await nodes.start(name) for name in names]
    finally:
        for broker in nodes.open:
            await broker.close()


async def add(broker: Redis, name: str, value: int = 1, app: str = A) -> None:
    broker.filters.set(app, name, value)
    await broker.filters.confirmed(app, name)


def disconnect(broker: Redis) -> None:
    for shard in broker._shards.all:
        assert shard.connection.established is not None
        shard.connection.established.abort()


async def kill(broker: Redis) -> None:
    """Ends a broker like a process that is killed: its entries stay in the server until its lease expires."""
    for shard in broker._shards.all:
        await shard.connection.close()
    disconnect(broker)
    assert broker._shards._timer is not None
    broker._shards._timer.cancel()


def known(broker: Redis, app: str = A) -> list[dict[str, dict[str, int]]]:
    """Returns the entries of an app that a node knows, for each shard: name → node → value."""
    apps = [shard.interest.known.apps.get(app) for shard in broker._shards.all]
    return [{} if one is None else {name: dict(entry.nodes) for name, entry in one.filters.items()} for one in apps]


async def until_known(broker: Redis, entries: dict[str, dict[str, int]]) -> None:
    """Waits until a node knows exactly these entries, in each shard."""
    async with asyncio.timeout(15):
        while any(one != entries for one in known(broker)):
            await broker.settled()


async def test_a_confirmed_filter_is_known_to_a_node_before_its_next_reply(url):
    async with started(url, "n1", "n2") as (_, (one, two)):
        for number in range(20):
            await add(one, f"a{number}.+")
            await two.settled()
            assert all(f"a{number}.+" in entries for entries in known(two))


async def test_values_follow_each_change_of_a_node(url):
    async with started(url, "n1", "n2") as (_, (one, two)):
        for value in (1, 3, 2):
            await add(one, "$share/g/a/b.+", value)
        await add(two, "$share/g/a/b.+")
        await add(two, "b.#")
        await until_known(one, {"$share/g/a/b.+": {"n1": 2, "n2": 1}, "b.#": {"n2": 1}})
        await add(two, "b.#", 0)
        await add(one, "$share/g/a/b.+", 0)
        await until_known(one, {"$share/g/a/b.+": {"n2": 1}})
        await until_known(two, {"$share/g/a/b.+": {"n2": 1}})


async def test_a_filter_that_returns_at_once_stays_registered(url):
    async with started(url, "n1", "n2") as (_, (one, two)):
        for _ in range(20):
            one.filters.set(A, "a.+", 1)
            one.filters.set(A, "a.+", 0)
            await add(one, "a.+")
            await two.settled()
            assert all(entries == {"a.+": {"n1": 1}} for entries in known(two))
            await add(one, "a.+", 0)


async def test_a_new_node_reads_all_filters(url):
    async with started(url, "n1") as (nodes, (one,)):
        entries = {f"a.{number}.+": {"n1": 1} for number in range(30)}
        for name in entries:
            await add(one, name)
        late = await nodes.start("late")
        assert all(one == entries for one in known(late))


async def test_filters_of_a_node_that_stops_are_removed(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "a.+")
        await add(one, "b.+", app="other")
        await add(two, "a.+")
        nodes.open.remove(one)
        await one.close()
        await until_known(two, {"a.+": {"n2": 1}})
        assert not any(known(two, "other"))


async def test_filters_of_an_evicted_node_are_removed(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "a.+")
        await add(two, "b.+")
        await until_known(two, {"a.+": {"n1": 1}, "b.+": {"n2": 1}})
        nodes.open.remove(one)
        await kill(one)
        await until_known(two, {"b.+": {"n2": 1}})


async def test_filters_return_with_their_node_after_its_eviction(url):
    async with started(url, "n1", "n2") as (_, (one, two)):
        await add(one, "a.+")
        await two.settled()
        returned: list[str] = []
        for shard in two._shards.all:
            shard.interest.known.on_added = returned.append
            await shard.connection.call("DEL", shard.keys.key("lease", "n1"))
            shard.lease._evict("n1", (b"m0", ()))
        async with asyncio.timeout(15):
            while len(returned) < len(two._shards.all):
                await two.settled()
        await until_known(two, {"a.+": {"n1": 1}})


async def test_filters_survive_lost_connections(url):
    async with started(url, "n1", "n2") as (_, (one, two)):
        await add(one, "a.+")
        await add(one, "b.+")
        for broker in (one, two):
            disconnect(broker)
        one.filters.set(A, "b.+", 0)
        await add(one, "c.+")
        for broker in (one, two):
            await until_known(broker, {"a.+": {"n1": 1}, "c.+": {"n1": 1}})


async def test_filters_return_to_a_server_that_has_lost_its_state():
    server = Valkey()
    try:
        async with started(server.url, "n1", "n2") as (_, (one, two)):
            await add(one, "a.+")
            await add(two, "b.+")
            entries = {"a.+": {"n1": 1}, "b.+": {"n2": 1}}
            await until_known(one, entries)
            server.ask("FLUSHALL")
            await add(one, "c.+")
            entries["c.+"] = {"n1": 1}
            for broker in (one, two):
                await until_known(broker, entries)
            async with asyncio.timeout(15):
                while server.ask("HLEN", f"{one._shards.all[0].keys.base}:f") != b":3\r\n":
                    await one.settled()
    finally:
        server.close()


async def test_a_known_filter_ends_after_the_recovery_if_its_node_ended_with_the_state():
    server = Valkey()
    try:
        async with started(server.url, "n1", "n2") as (nodes, (one, two)):
            await add(one, "a.+")
            await add(two, "b.+")
            await until_known(two, {"a.+": {"n1": 1}, "b.+": {"n2": 1}})
            nodes.open.remove(one)
            await kill(one)
            server.ask("FLUSHALL")
            await until_known(two, {"b.+": {"n2": 1}})
    finally:
        server.close()


async def test_a_full_server_rejects_a_filter_and_accepts_its_end():
    server = Valkey()
    try:
        async with started(server.url, "n1") as (_, (one,)):
            await add(one, "a.+")
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(Refused):
                await add(one, "b.+")
            with pytest.raises(Refused):  # another client of the node
                await add(one, "b.+")
            await add(one, "b.+", 0)
            await add(one, "a.+", 0)
            await until_known(one, {})
            server.ask("CONFIG", "SET", "maxmemory", "0")
    finally:
        server.close()


async def test_an_app_has_a_maximum_number_of_filters_on_all_nodes(url, monkeypatch):
    monkeypatch.setattr("push1st.brokers.redis.known_filters.MAX_APP_FILTERS", 2)
    async with started(url, "n1", "n2") as (_, (one, two)):
        await add(one, "a.+")
        await add(two, "b.+")
        await one.settled()
        one.filters.check_room(A, "a.+", is_anonymous=True)
        one.filters.check_room(A, "b.+", is_anonymous=False)
        with pytest.raises(LimitReached):
            one.filters.check_room(A, "c.+", is_anonymous=False)


async def test_filters_are_no_entries_that_nodes_without_filters_evict(url):
    """A node without filters repeats an eviction without end while entries of unknown kinds are left."""
    long = replace(TIMINGS, lease=10)  # so that no node evicts the other one by itself on a busy machine
    async with started(url, "n1", "n2", timings=long) as (nodes, (one, two)):
        await add(one, "a.+")
        await one.subscribe(A, "a.b")
        for shard in two._shards.all:
            assert not await shard.connection.call("EXISTS", shard.keys.key("n", "n1"))
        nodes.open.remove(one)
        await kill(one)
        for shard in two._shards.all:  # as a node without filters evicts the other one
            for kind, name in (("DEL", "lease:n1"), ("DEL", "n:n1")):
                await shard.connection.call(kind, shard.keys.key(name))
            await shard.connection.call("SREM", shard.keys.key("nodes"), "n1")
        await two.settled()
        assert all("a.+" in entries for entries in known(two))
        disconnect(two)
        await until_known(two, {})
        for shard in two._shards.all:
            assert not await shard.connection.call("EXISTS", shard.keys.key("f"), shard.keys.key("nf", "n1"))


async def test_a_filter_that_cannot_be_decoded_is_logged_and_left_out():
    server = Valkey()
    try:
        async with started(server.url, "n1", "n2") as (_, (one, two)):
            await add(one, "a.+")
            key = one._shards.all[0].keys.key("f")
            for field, value in (("x", "1"), ("app-a/n1/b", "x"), (b"\xff/n1/c", "1")):
                await one._shards.all[0].connection.call("HSET", key, field, value)
            disconnect(two)
            await two.settled()
            await until_known(two, {"a.+": {"n1": 1}})
    finally:
        server.close()


async def test_a_further_subscriber_waits_until_its_filter_is_registered_again(url):
    async with started(url, "n1", "n2") as (_, (one, two)):
        await add(one, "a.+")
        disconnect(one)
        one.filters.set(A, "a.+", 1)
        waiting = asyncio.ensure_future(one.filters.confirmed(A, "a.+"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await waiting
        assert all(shard.connection.registered_on is not None for shard in one._shards.all)
        await until_known(two, {"a.+": {"n1": 1}})


async def test_more_rights_are_confirmed_like_a_new_filter(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "#", PUBLIC_CHANNELS)
        await two.settled()
        assert (await two.publish(message(1, "private-a"))).filters == 0
        await add(one, "#", ALL_CHANNELS)
        assert (await two.publish(message(2, "private-a"))).filters == 1
        await one.settled()
        assert [each.id for each in nodes.copies[one]] == [2]


# Messages


def message(number: int, channel: str = "a.b", app: str = A) -> Message:
    return Message(app, channel, "e", b"%d" % number, number, NOW)


def mqtt_message(number: int, channel: str = "a.b") -> MqttMessage:
    return MqttMessage(A, channel, "e", b"1", number, number, sender="1.2", mqtt=MqttFields(2, True, 5, b"\x01\x01"))


def kept_message(number: int, mqtt: MqttFields | None = None) -> KeptMessage:
    return KeptMessage(A, "a.b", "e", b"%d" % number, number, number, mqtt=mqtt)


async def test_a_message_reaches_each_node_with_a_matching_filter_once(url):
    async with started(url, "n1", "n2", "n3") as (nodes, (one, two, three)):
        await add(one, "a.+")
        await add(one, "#")
        await add(two, "a.+")
        await add(two, "a.+", app="other")
        await add(three, "b.+")
        await two.subscribe(A, "a.b")
        assert await three.publish(message(1)) == Published(0, filters=2)
        assert await three.publish(message(2, "b.c")) == Published(0, filters=2)
        assert await three.publish(message(3, app="unknown")) == Published(0)
        for broker in nodes.open:
            await broker.settled()
        assert [[one.id for one in nodes.copies[broker]] for broker in nodes.open] == [[1, 2], [1], [2]]
        assert [[one.id for one in nodes.received[broker]] for broker in nodes.open] == [[], [1], []]


async def test_copies_have_all_fields_of_mqtt_clients(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "a.+")
        await one.subscribe(A, "a.b")
        sent = [mqtt_message(1), message(2), mqtt_message(3)]
        await asyncio.gather(*(two.publish(each) for each in sent))
        for found in (nodes.received[one], nodes.copies[one]):
            assert [(each.id, each.mqtt) for each in found] == [(each.id, each.mqtt) for each in sent]


async def test_messages_of_a_history_reach_filters(url):
    fields = MqttFields(1, False, 9, b"\x01\x01")
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "a.+")
        results = await asyncio.gather(two.publish(kept_message(1, fields), SECTION), two.publish(kept_message(2), SECTION))
        assert [(result.offset, result.filters) for result in results] == [(1, 1), (2, 1)]
        await one.settled()
        assert [(each.id, each.mqtt) for each in nodes.copies[one]] == [(1, fields), (2, None)]
        page = await one.history.read(A, "a.b", None, 10, reverse=False)
        assert [each.mqtt for each in page.messages] == [fields, None]


async def test_a_repeated_message_with_an_idempotency_key_causes_no_copy(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "a.+")
        await two.publish(message(1), key="k")
        await two.publish(message(2), key="k")
        await one.settled()
        assert {each.id for each in nodes.copies[one]} == {1}, "filters drop a copy with an id that they have received"


async def test_a_repeated_publish_reaches_filters_that_the_first_publisher_did_not_know(url):
    async with started(url, "n1", "n2", "n3") as (nodes, (one, two, three)):
        await two.publish(message(1), key="k")
        await add(one, "a.+")
        assert (await three.publish(message(2), key="k")).repeats
        await one.settled()
        assert [each.id for each in nodes.copies[one]] == [1]


async def test_no_copy_of_a_refused_message_is_sent(url):
    """The script for copies of a message with a bound or key runs right behind the publish."""
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        shard = two._shards.of(A, "a.b")
        await two.publish(message(1), key="k")
        name = key_of(Batch(A, "a.b", 0, None, "k", None))
        await shard.connection.call("SET", shard.keys.key("no", "3"), "")
        for id, key in ((1, name), (2, name), (2, "other"), (3, ""), (4, "")):
            copy = copy_of(encode_messages([message(id)]), False)
            command = shard.keys.command(APPEND_LOGS, A, "a.b", "", copy, id, key, 1, "n1")
            await shard.connection.call(*command)
        await one.settled()
        assert [each.id for each in nodes.copies[one]] == [1, 4]


async def test_a_cached_event_reaches_filters(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "#")
        assert await two.publish(message(1, "cache-a")) == Published(0, filters=1)
        await one.settled()
        assert [each.id for each in nodes.copies[one]] == [1]
        cached = await one.cached(A, "cache-a")
        assert cached is not None
        assert cached.message.id == 1


@pytest.mark.parametrize("options", [{}, {"key": "k"}, {"section": SECTION}])
async def test_no_message_is_missing_after_a_filter_is_confirmed(url, options):
    """The publisher may not have received the change of the filters when it sends the message."""
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        copies = nodes.copies[one]
        for number in range(1, 201):
            await add(one, "a.+")
            copies.clear()
            more = {"key": f"k{number}"} if "key" in options else options
            sent = kept_message(number) if "section" in options else message(number)
            assert (await two.publish(sent, **more)).filters == 1
            await one.settled()
            assert [each.id for each in copies] == [number]
            await add(one, "a.+", 0)


async def test_no_acknowledged_message_is_missing_while_filters_change(url):
    """The messages are published without a pause. After a filter is confirmed, no later message may be missing."""
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        copies, last, stops = nodes.copies[one], 0, False

        async def publish() -> None:
            nonlocal last
            while not stops:
                last += 1
                await two.publish(message(last))

        task = asyncio.ensure_future(publish())
        for _ in range(100):
            copies.clear()
            await add(one, "a.+")
            first = last + 1
            for _ in range(3):
                await one.settled()
            until = last - 1  # confirmed
            await one.settled()
            found = {each.id for each in copies}
            assert found.issuperset(range(first, until + 1)), (first, until, found)
            await add(one, "a.+", 0)
        stops = True
        await task


async def test_a_node_that_reconnects_receives_copies_at_once(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        await add(one, "a.+")
        for number in range(1, 11):
            disconnect(one)
            await one.settled()
            await two.publish(message(number))
            await one.settled()
            assert [each.id for each in nodes.copies[one]][-1] == number


async def test_a_publisher_that_reconnects_knows_filters_that_were_added_meanwhile(url):
    async with started(url, "n1", "n2") as (nodes, (one, two)):
        for number in range(1, 11):
            disconnect(two)
            await add(one, f"a{number}.+")
            while True:
                try:
                    await two.publish(message(number, f"a{number}.b"))
                    break
                except Refused:
                    await two.settled()
            await one.settled()
            assert [each.id for each in nodes.copies[one]] == list(range(1, number + 1))


async def test_a_publisher_that_reconnects_to_a_server_without_state_waits_for_the_filters_of_all_nodes():
    """The publisher waits for the time of a recovery at most. On a busy machine, a node may need longer than a second."""
    server = Valkey()
    try:
        async with started(server.url, "n1", "n2", timings=replace(TIMINGS, recovery=10)) as (nodes, (one, two)):
            await add(one, "a.+")
            await two.settled()
            for number in range(1, 6):
                server.ask("FLUSHALL")
                disconnect(two)
                async with asyncio.timeout(15):
                    while True:
                        with suppress(Refused):
                            await two.publish(message(number))
                            break
                        await two.settled()
                await one.settled()
                assert [each.id for each in nodes.copies[one]] == list(range(1, number + 1))
    finally:
        server.close()


async def test_messages_reach_filters_while_the_server_has_lost_its_state():
    """The nodes keep their connections, and register their filters again within one renewal of their leases."""
    server = Valkey()
    try:
        async with started(server.url, "n1", "n2") as (nodes, (one, two)):
            await add(one, "a.+")
            await two.settled()
            server.ask("FLUSHALL")
            for number in range(1, 501):
                await two.publish(message(number))
            async with asyncio.timeout(15):
                while server.ask("HLEN", f"{one._shards.all[0].keys.base}:f") != b":1\r\n":
                    await one.settled()
            await two.publish(message(501))
            await one.settled()
            assert [each.id for each in nodes.copies[one]] == list(range(1, 502))
    finally:
        server.close()
