"""The logs of several nodes, which share a real server: what a publish appends, bounds, positions, and reads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec
import pytest

from push1st.brokers.redis import Redis
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.shard_logs import EXPIRE_SECONDS
from push1st.brokers.sessions import Claim, Cursor, Owner
from push1st.config.history import HistorySection
from push1st.config.mqtt import Mqtt
from push1st.errors import Refused
from push1st.messages import KeptMessage, Message, MqttFields, MqttMessage, Published
from push1st.positions import Position
from tests.contract.redis import NOW, cluster, new_prefix, redis_broker, valkey
from tests.support.valkey import Valkey

A = "app-a"
SECOND = 1_000_000_000
URLS: dict[str, Callable[[], str]] = {"redis": lambda: valkey().url, "redis-cluster": lambda: cluster().url}


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    return URLS[request.param]()


class Node:
    """A node, and the messages that its broker delivered."""

    def __init__(self, broker: Redis, numbers: "count[int]") -> None:
        self.broker = broker
        self.logs = broker.logs
        self.wall = NOW
        self.received: list[Message] = []
        self._numbers = numbers

    def receive(self, message: Message) -> int:
        self.received.append(message)
        return 1

    def message(self, data: bytes, channel: str, qos: int = 1, **more: Any) -> Message:
        return MqttMessage(A, channel, "e", data, next(self._numbers), self.wall, "1.1", mqtt=MqttFields(qos), **more)

    async def publish(self, data: bytes = b"1", channel: str = "a.b", qos: int = 1, **more: Any) -> Published:
        return await self.broker.publish(self.message(data, channel, qos, **more))

    async def watch(self, filter: str, client: str = "c", generation: int = 1, is_anonymous: bool = False) -> Cursor:
        cursor = await self.logs.watch(A, client, generation, filter, is_anonymous)
        assert cursor is not None
        await self.broker.settled()
        return cursor

    async def unwatch(self, filter: str, client: str = "c", generation: int = 1, is_anonymous: bool = False) -> None:
        await self.logs.unwatch(A, client, generation, filter, is_anonymous)
        await self.broker.settled()

    async def data(self, filter: str, cursor: Cursor, limit: int = 100) -> list[bytes]:
        """Returns the data of the last messages after a cursor."""
        return [one.data for one in (await self.logs.read(A, filter, cursor, limit)).messages]

    def shard(self, channel: str = "a.b") -> Shard:
        return self.broker._shard(A, channel)

    async def command(self, verb: str, kind: str, filter: str, *arguments: Any, channel: str = "a.b") -> Any:
        shard = self.shard(channel)
        return await shard.connection.call(verb, shard.keys.key(kind, f"{A}/{filter}"), *arguments)

    def bound(self, most: int = 10_000, part: int = 1) -> None:
        """Sets the maximum number of messages of a log; the bounds for bytes become 1 / part."""
        for shard in self.broker._shards.all:
            shard.logs._bounds = most, 1_000_000, part


@asynccontextmanager
async def started(url: str, nodes: int = 1) -> AsyncIterator[list[Node]]:
    prefix, numbers = new_prefix(), count(1)
    opened: list[Node] = []
    try:
        for number in range(nodes):
            node = Node(redis_broker(url, node=f"n{number}", prefix=prefix, mqtt=Mqtt()), numbers)
            await node.broker.open(node.receive, lambda _: None, lambda *_: b"", lambda *_: None)
            opened.append(node)
        yield opened
    finally:
        for node in opened:
            await node.broker.close()


def start(cursor: Cursor) -> Cursor:
    return tuple(Position(one.epoch, 0) for one in cursor)


@pytest.mark.parametrize("filter", ["a.b", "a.+", "#"])
async def test_log_has_the_messages_with_qos_1_and_2_of_its_filter(url, filter):
    async with started(url) as (node,):
        cursor = await node.watch(filter)
        for number, qos in enumerate((0, 1, 2)):
            node.wall += 1
            assert (await node.publish(b"%d" % number, qos=qos)).logs == (qos > 0)
        node.wall += 1
        assert (await node.publish(b"3", "b")).logs == (filter == "#")
        assert await node.data(filter, cursor) == [b"1", b"2", *([b"3"] if filter == "#" else [])]


async def test_event_of_the_api_is_in_the_log_unless_it_is_for_some_sessions(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.b")
        for number, more in enumerate(({}, {"delivery": "multicast", "target": "x"}, {"event": "pusher_internal:x"}), 1):
            one = {"event": "e", **more}
            message = Message(A, "a.b", one.pop("event"), b"%d" % number, number, NOW, **one)  # type: ignore[arg-type]
            await node.broker.publish(message)
        page = await node.logs.read(A, "a.b", cursor, 10)
        assert [(one.data, one.mqtt) for one in page.messages] == [(b"1", None)]


async def test_page_of_a_log_with_many_parts_has_a_bounded_number_of_bytes() -> None:
    async with started(cluster().url) as (node,):
        cursor = await node.watch("a.+")
        for number in range(40):
            node.wall += 1
            await node.publish(b"x" * (300 << 10), f"a.{number}")
        found: list[Message] = []
        before = None
        while not found or before is not None:
            page = await node.logs.read(A, "a.+", cursor, 1000, before)
            assert sum(len(one.data) for one in page.messages) < (4 << 20) + 16 * (300 << 10)
            found += page.messages
            before = page.before
        assert sorted(one.channel for one in found) == sorted(f"a.{number}" for number in range(40))


async def test_messages_of_a_turn_are_appended_in_order_without_those_with_qos_0(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.+")
        await asyncio.gather(*(node.publish(b"%d" % n, qos=n % 2) for n in range(10)))
        assert await node.data("a.+", cursor) == [b"1", b"3", b"5", b"7", b"9"]
        assert await node.data("a.+", cursor, 2) == [b"7", b"9"]


async def test_message_of_a_channel_with_a_history_is_in_the_log_with_its_fields(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.b")
        kept = KeptMessage(A, "a.b", "e", b"1", 1, NOW, "1.1", expires=5, mqtt=MqttFields(2, True))
        published = await node.broker.publish(kept, HistorySection(size=10, ttl=60))
        assert (published.offset, published.logs) == (1, 1)
        (message,) = (await node.logs.read(A, "a.b", cursor, 10)).messages
        assert message == MqttMessage(A, "a.b", "e", b"1", 1, NOW, "1.1", mqtt=MqttFields(2, True))


async def test_message_with_an_idempotency_key_is_in_the_log_once(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.b")
        for _ in range(2):
            await node.broker.publish(Message(A, "a.b", "e", b"1", 1, NOW), key="k")
        assert await node.data("a.b", cursor) == [b"1"]


async def test_message_is_in_each_log_that_matches(url):
    async with started(url) as (node,):
        cursors = {filter: await node.watch(filter) for filter in ("a.b", "a.+", "+.b", "x.+", "b")}
        assert (await node.publish()).logs == 3
        assert {filter: await node.data(filter, cursor) for filter, cursor in cursors.items()} == {
            "a.b": [b"1"], "a.+": [b"1"], "+.b": [b"1"], "x.+": [], "b": []
        }  # fmt: skip


async def test_cursor_of_a_client_begins_at_the_end_of_the_log(url):
    async with started(url) as (node,):
        await node.watch("a.+", "first")
        await node.publish(b"1")
        cursor = await node.watch("a.+", "second")
        await node.publish(b"2")
        assert await node.data("a.+", cursor) == [b"2"]
        assert await node.data("a.+", start(cursor)) == [b"1", b"2"]


async def test_other_nodes_append_to_a_log_as_soon_as_it_is_watched(url):
    async with started(url, 2) as (one, two):
        for number in range(20):
            filter = f"x{number}.+"
            cursor = await one.logs.watch(A, "c", 1, filter, False)
            assert cursor is not None
            await two.broker.settled()  # a publish that is confirmed has received the changes before it, too
            await two.publish(b"1", f"x{number}.y")
            assert await one.data(filter, cursor) == [b"1"]


async def test_log_ends_with_its_last_client(url):
    async with started(url, 2) as (one, two):
        for filter in ("a.b", "a.+"):
            await one.watch(filter, "first")
            await one.watch(filter, "second", is_anonymous=True)
            await one.publish()
            await one.unwatch(filter, "first")
            await two.broker.settled()
            assert (await two.publish()).logs == 1
            await one.unwatch(filter, "second", is_anonymous=True)
            await two.broker.settled()
            assert not any(shard.interest.known.apps for shard in two.broker._shards.all)
            assert (await two.publish()).logs == 0
            for kind in ("l", "lm", "lw", "lwa"):
                assert not await one.command("EXISTS", kind, filter)
        for kind in ("lo", "loa", "lx"):
            assert not await one.shard().connection.call("EXISTS", one.shard().keys.key(kind, A))
        assert int(await one.shard().connection.call("GET", one.shard().keys.key("lb", A))) == 0


async def test_repeated_calls_of_watch_and_unwatch_change_nothing(url):
    async with started(url) as (node,):
        for _ in range(2):
            await node.watch("a.b")
        await node.watch("b.c")
        for _ in range(2):
            await node.unwatch("a.b")
        cursor = await node.watch("b.c")
        assert (await node.publish()).logs == 0
        await node.publish(b"1", "b.c")
        assert await node.data("b.c", cursor) == [b"1"]


async def test_earlier_connection_of_a_client_does_not_end_the_log_of_a_later_one(url):
    async with started(url) as (node,):
        await node.watch("a.b", generation=10)
        await node.watch("a.b", generation=9)
        await node.unwatch("a.b", generation=9)
        assert (await node.publish()).logs == 1
        await node.unwatch("a.b", generation=10)
        assert (await node.publish()).logs == 0


@pytest.mark.parametrize("filter", ["a.b", "a.+", "#"])
@pytest.mark.parametrize("batch", [1, 7])
async def test_pages_have_each_message_once(url, filter, batch):
    async with started(url) as (node,):
        cursor = await node.watch(filter)
        for begin in range(0, 42, batch):
            names = [("a.b" if filter == "a.b" else f"a.{n % 5}") for n in range(begin, begin + batch)]
            node.wall += 1
            await asyncio.gather(*(node.publish(b"%d" % (begin + i), name) for i, name in enumerate(names)))
        whole = await node.data(filter, cursor)
        assert sorted(whole, key=int) == [b"%d" % n for n in range(42)]
        if batch == 1:
            assert whole == [b"%d" % n for n in range(42)]
        for limit in (1, 5, 16, 17, 41, 42):
            found: list[bytes] = []
            before = None
            while True:
                page = await node.logs.read(A, filter, cursor, limit, before)
                assert len(page.messages) <= limit
                assert not page.trimmed
                found = [one.data for one in page.messages] + found
                before = page.before
                if before is None:
                    break
            assert sorted(found, key=int) == sorted(whole, key=int)


async def test_page_ends_before_its_position_although_messages_follow(url):
    async with started(url) as (node,):
        cursor = await node.watch("#")
        for number in range(6):
            node.wall += 1
            await node.publish(b"%d" % number, f"a.{number % 3}")
        page = await node.logs.read(A, "#", cursor, 2)
        await node.publish(b"late", "a.0")
        assert [one.data for one in page.messages] == [b"4", b"5"]
        page = await node.logs.read(A, "#", cursor, 10, page.before)
        assert [one.data for one in page.messages] == [b"0", b"1", b"2", b"3"]
        assert page.before is None


async def test_parts_keep_their_order_although_the_clocks_of_workers_differ(url):
    async with started(url, 2) as (one, two):
        cursor = await one.watch("a.+")
        await two.broker.settled()
        two.wall -= 5 * SECOND
        for number in range(6):
            await (one, two)[number % 2].publish(b"%d" % number, "a.b")
        assert await one.data("a.+", cursor) == [b"%d" % n for n in range(6)]


# Bounds


async def test_log_drops_its_oldest_messages_above_the_maximum_number(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.b")
        node.bound(most=10)
        for number in range(15):
            await node.publish(b"%d" % number)
        page = await node.logs.read(A, "a.b", cursor, 100)
        assert ([one.data for one in page.messages], page.trimmed) == ([b"%d" % n for n in range(5, 15)], True)
        assert node.broker._shards.all[0]._metrics.mqtt_dropped["trimmed"] == 5
        (end,) = await node.watch("a.b", "d")
        later = (Position(end.epoch, 5),)
        assert not (await node.logs.read(A, "a.b", later, 100)).trimmed
        assert (await node.logs.read(A, "a.b", (Position(end.epoch, 4),), 100)).trimmed


async def test_log_drops_its_oldest_messages_above_the_maximum_size(url):
    async with started(url) as (node,):
        cursors = {filter: await node.watch(filter) for filter in ("a.b", "a.+")}
        node.bound(part=1 << 14)  # 1 KiB for a filter with wildcards
        for number in range(6):
            await node.publish(b"%d" % number * 300)
        assert [one[:1] for one in await node.data("a.+", cursors["a.+"])] == [b"4", b"5"]
        node.bound(part=1)
        for number in range(5):
            await node.publish(b"%d" % number * (4 << 20))
        assert await node.command("XLEN", "l", "a.b") == 3


async def test_publish_drops_a_bounded_number_of_old_messages(url):
    """Otherwise a lower maximum would block the server. The next publish drops the rest."""
    async with started(url) as (node,):
        await node.watch("a.b")
        await node.watch("a.+")
        for _ in range(150):
            await node.publish()
        node.bound(10)
        for left in (2 * 151 - 200, 2 * 10):
            await node.publish()
            assert await node.command("XLEN", "l", "a.b") + await node.command("XLEN", "l", "a.+") == left


async def test_full_log_drops_a_twentieth_of_its_entries_at_once(url):
    """So that most publishes to a full log drop nothing."""
    async with started(url) as (node,):
        await node.watch("a.b")
        node.bound(100)
        for _ in range(100):
            await node.publish()
        for left in (96, 97):
            await node.publish()
            assert await node.command("XLEN", "l", "a.b") == left
        (end,) = await node.watch("a.b", "d")
        assert not (await node.logs.read(A, "a.b", (Position(end.epoch, 5),), 100)).trimmed
        assert (await node.logs.read(A, "a.b", (Position(end.epoch, 4),), 100)).trimmed
        assert int(await node.command("HGET", "lm", "a.b", "b")) % 97 == 0


async def test_message_above_the_maximum_size_stays_alone(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.+")
        node.bound(part=1 << 14)
        for number in range(3):
            await node.publish(b"%d" % number * 3000)
        assert [one[:1] for one in await node.data("a.+", cursor)] == [b"2"]


async def test_app_drops_the_oldest_messages_of_all_its_logs(url):
    async with started(url) as (node,):
        filters = ("a.b", "a.b.#", "+.b", "a.+")
        cursors = {filter: await node.watch(filter, is_anonymous=filter == "a.+") for filter in filters}
        node.bound(part=1 << 18)  # 1 KiB for the app
        await node.publish(b"0")
        await node.unwatch("a.b.#")
        for number in range(1, 5):
            node.wall += SECOND
            await node.publish(b"%d" % number * 200)
        kept = [one[:1] for filter in ("a.b", "+.b") for one in await node.data(filter, cursors[filter])]
        assert sorted(kept) == [b"3", b"4", b"4"]
        sizes = [await node.shard().connection.call("GET", node.shard().keys.key(kind, A)) for kind in ("lb", "lba")]
        assert 0 < int(sizes[0]) <= 1 << 10
        assert int(sizes[1]) <= 1 << 10


async def test_logs_of_anonymous_clients_leave_those_of_others_alone(url):
    async with started(url) as (node,):
        cursors = [await node.watch("a.b"), await node.watch("a.c", "anonymous", is_anonymous=True)]
        node.bound(part=1 << 14)  # 16 KiB for the app, 1,638 bytes for its anonymous clients
        for number in range(10):
            node.wall += SECOND
            await node.publish(b"%d" % number * 200)
            await node.publish(b"%d" % number * 200, "a.c")
        assert len(await node.data("a.b", cursors[0])) == 10
        if node.shard("a.b") is node.shard("a.c"):
            assert 1 <= len(await node.data("a.c", cursors[1])) < 9


async def test_log_moves_to_the_bound_of_identified_clients_with_their_first_one(url):
    async with started(url) as (node,):
        await node.watch("a.b", "anonymous", is_anonymous=True)
        await node.publish()
        keys, call = node.shard().keys, node.shard().connection.call
        sizes = [int(await call("GET", keys.key(kind, A)) or 0) for kind in ("lb", "lba")]
        await node.watch("a.b", "known")
        assert sizes[0] == 0 < sizes[1]
        assert [int(await call("GET", keys.key(kind, A)) or 0) for kind in ("lb", "lba")] == sizes[::-1]
        assert [await call("ZCARD", keys.key(kind, A)) for kind in ("lo", "loa")] == [1, 0]
        await node.unwatch("a.b", "known")
        assert [int(await call("GET", keys.key(kind, A)) or 0) for kind in ("lb", "lba")] == sizes


async def test_messages_are_kept_longer_than_sessions_because_clocks_differ(url):
    async with started(url) as (node,):
        cursor, logs = await node.watch("a.b"), node.shard().logs
        await node.publish(b"1")
        for seconds, kept in ((5, [b"1"]), (61, [])):
            now = NOW + (Mqtt().session_expiry + seconds) * SECOND
            logs._context = msgspec.structs.replace(logs._context, stamp=lambda now=now: (0, now))
            logs.tick(seconds * EXPIRE_SECONDS)
            await node.broker.settled()
            assert await node.data("a.b", cursor) == kept


async def test_expired_messages_are_dropped(url):
    async with started(url) as (node,):
        cursors = {filter: await node.watch(filter) for filter in ("a.b", "a.+")}
        for number in range(4):
            node.wall = NOW + number * SECOND
            await node.publish(b"%d" % number)
        node.shard().logs.expire(A, (NOW + SECOND) // 1_000_000)
        await node.broker.settled()
        assert node.shard()._metrics.mqtt_dropped["expired"] == 4
        for filter, cursor in cursors.items():
            assert await node.data(filter, cursor) == [b"2", b"3"]
        assert await node.command("PTTL", "l", "a.b") > 0


# The server's state


async def test_messages_of_a_new_run_of_the_server_are_read_with_an_older_cursor(url):
    """A restarted server may lack the last messages, and gives their offsets to other messages."""
    async with started(url) as (node,):
        await node.watch("a.b")
        for number in range(5):
            await node.publish(b"%d" % number)
        (cursor,) = (await node.logs.ends([(A, "a.b")]))[A, "a.b"]
        assert cursor.offset == 5
        await node.command("XTRIM", "l", "a.b", "MAXLEN", 5)
        (last,) = await node.command("XREVRANGE", "l", "a.b", "+", "-", "COUNT", 1)
        await node.command("XDEL", "l", "a.b", last[0])
        await node.command("HSET", "lm", "a.b", "o", 4)
        for generation in ("Gen02", "Gen03"):
            node.shard().history.registered("run", generation)
            await node.publish(generation.encode())
        assert await node.data("a.b", (cursor,)) == [b"Gen02", b"Gen03"]
        assert not (await node.logs.read(A, "a.b", (cursor,), 10)).trimmed
        (later,) = (await node.logs.ends([(A, "a.b")]))[A, "a.b"]
        assert (later.epoch[:5], later.offset) == ("Gen03", 6)
        assert await node.data("a.b", (later,)) == []


async def test_cursor_of_another_log_is_before_all_messages(url):
    async with started(url) as (node,):
        old = await node.watch("a.b")
        for _ in range(5):
            await node.publish(b"old")
        old = (await node.logs.ends([(A, "a.b")]))[A, "a.b"]
        await node.command("DEL", "lm", "a.b")
        await node.watch("a.b")
        await node.publish(b"new")
        page = await node.logs.read(A, "a.b", old, 10)
        assert ([one.data for one in page.messages], page.trimmed) == ([b"new"], True)


async def test_missing_log_is_trimmed_and_has_no_end(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.+")
        await node.unwatch("a.+")
        page = await node.logs.read(A, "a.+", cursor, 10)
        assert (page.messages, page.trimmed) == ((), True)
        await node.watch("a.b")
        assert (await node.logs.ends([(A, "a.+"), (A, "a.b")])).keys() == {(A, "a.b")}


async def test_stream_that_somebody_has_changed_does_not_stop_publishes(url):
    async with started(url) as (node,):
        cursor = await node.watch("a.b")
        await node.command("XADD", "l", "a.b", "100-1", "m", b"\x90", "t", 1)
        assert (await node.publish(b"1")).logs == 1
        assert await node.data("a.b", cursor) == [b"1"]
        await node.command("DEL", "l", "a.b")
        await node.publish(b"2")
        assert await node.data("a.b", cursor) == [b"2"]


# Ends


@pytest.mark.parametrize("filter", ["a.b", "a.+"])
async def test_messages_up_to_an_end_have_arrived(url, filter):
    async with started(url, 2) as (one, two):
        await one.watch(filter)
        await one.broker.subscribe(A, "a.b")
        await two.broker.settled()
        last = 0
        for _ in range(100):
            publishes = [asyncio.ensure_future(two.publish()) for _ in range(3)]
            await asyncio.sleep(0)
            ends = (await one.logs.ends([(A, filter)]))[A, filter]
            assert sum(end.offset for end in ends) <= len(one.received)
            last = max(last, len(one.received))
            await asyncio.gather(*publishes)
        assert last == 300


@pytest.mark.parametrize("step", ["ends", "watch"])
async def test_node_without_a_lease_registers_before_it_uses_logs(url, step):
    """Publishers send no copies to the node, so the messages of its sessions may be only in the logs."""
    async with started(url) as (node,):
        await node.watch("a.b")
        await node.shard().connection.call("DEL", node.shard().keys.key("lease", "n0"))
        gaps = node.logs.gaps
        await (node.logs.ends([(A, "a.b")]) if step == "ends" else node.watch("a.b", "d"))
        assert node.logs.gaps > gaps


async def test_sessions_stay_doubtful_until_all_lost_shards_are_registered() -> None:
    async with started(cluster().url) as (node,):
        recovered: list[bool] = []
        node.logs.on_recovered = recovered.append
        one, two, *_ = node.broker._shards.all
        for shard in (one, two):
            node.logs._suspended(shard)
        node.logs._lost[one] = "another state"
        for shard in (one, two):
            node.logs.recovered(shard)
        assert recovered == [True]


async def test_only_channels_of_recovering_shards_may_lack_earlier_messages() -> None:
    async with started(cluster().url) as (node,):
        found: list[Callable[[str, str], bool]] = []
        node.logs.on_recovering = found.append
        shards, channels = node.broker._shards, [f"c{number}" for number in range(50)]
        shard = shards.of(A, "c0")
        node.logs._suspended(shard)
        node.logs._registering(shard)
        (is_recovering,) = found
        recovering = [channel for channel in channels if is_recovering(A, channel)]
        assert recovering == [channel for channel in channels if shards.of(A, channel) is shard]
        node.logs.recovered(shard)
        assert not any(is_recovering(A, channel) for channel in channels)


async def test_filter_without_wildcards_is_watched_without_a_search_of_all_logs(url):
    async with started(url) as (node,):
        for filter in ("a.+", "b.+"):
            await node.watch(filter)
        node.logs._apps.clear()
        await node.watch("a.b")
        assert node.logs._apps == {}


# Clients without a session


async def test_client_without_a_session_is_removed_from_its_logs(url):
    """The worker of the client may have died after the session had ended, and before the filters were removed."""
    async with started(url) as (node,):
        here = await node.broker.sessions.claim(A, "here", Claim(Owner("user", "ada"), expiry=60))
        for filter in ("a.b", "a.+"):
            await node.watch(filter, "here", here.generation)
            await node.watch(filter, "gone", 7)
        await node.watch("a.c", "anybody", is_anonymous=True)
        for _ in range(2):
            for shard in node.broker._shards.all:
                await node.logs.sweep.step(shard)
        for filter in ("a.b", "a.+"):
            assert await node.command("HKEYS", "lw", filter) == [b"here"]
        assert not await node.command("EXISTS", "lm", "a.c", channel="a.c")


async def test_client_whose_session_is_stored_meanwhile_stays_in_its_logs(url):
    async with started(url) as (node,):
        await node.watch("a.b", "c", 1)
        shards = node.broker._shards.all
        for shard in shards:
            await node.logs.sweep.step(shard)
        await node.broker.sessions.claim(A, "c", Claim(Owner("user", "ada"), expiry=60))
        for shard in shards:
            await node.logs.sweep.step(shard)
        assert await node.command("HKEYS", "lw", "a.b") == [b"c"]
        await node.watch("a.b", "d", 1)
        for _ in range(2):
            for shard in shards:
                await node.logs.sweep.step(shard)
        assert len(await node.command("HKEYS", "lw", "a.b")) == 2  # the next sweep is later


# A server whose memory is full


@pytest.mark.parametrize("filter", ["a.b", "a.+", "#"])
async def test_full_server_rejects_a_publish_and_keeps_the_logs(filter: str) -> None:
    with contextlib.closing(Valkey("--maxmemory-policy", "noeviction")) as server:
        async with started(server.url) as (node,):
            cursor = await node.watch(filter)
            await node.publish(b"1")
            server.ask("CONFIG", "SET", "maxmemory", "1")
            for _ in range(2):
                with pytest.raises(Refused, match="503: the broker refused: OOM"):
                    await node.publish(b"2")
            server.ask("CONFIG", "SET", "maxmemory", "0")
            await node.publish(b"3")
            assert await node.data(filter, cursor) == [b"1", b"3"]
