"""The contract of lists of channels: bounded pages, which are complete although channels begin and end between them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any, Self

import pytest

from push1st.brokers import ChannelPage, Occupancy
from push1st.brokers.listing import MAX_EXAMINED
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.brokers.redis.channel_lists import STEP
from push1st.config.history import HistoryBounds
from push1st.config.mqtt import Mqtt
from push1st.messages import Member
from push1st.metrics import Metrics
from tests.contract.redis import NOW, cluster, redis_broker, valkey

APP = "app-a"
MILLION = 1_000_000


@asynccontextmanager
async def memory() -> AsyncIterator[Any]:
    numbers = count(1)
    history = MemoryHistory(HistoryBounds(), lambda: NOW, lambda _: next(numbers), Metrics())
    sessions = MemorySessions(lambda: NOW, lambda _: next(numbers), Metrics(), Mqtt())
    yield Memory(lambda: (next(numbers), NOW), LocalRoster(), history, sessions)


@asynccontextmanager
async def redis() -> AsyncIterator[Any]:
    broker = redis_broker(valkey().url, {})
    await broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)
    yield broker
    await broker.close()


@asynccontextmanager
async def redis_cluster() -> AsyncIterator[Any]:
    broker = redis_broker(cluster().url, {})
    await broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)
    yield broker
    await broker.close()


Implementation = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture(params=[memory, redis, redis_cluster], ids=["memory", "redis", "redis-cluster"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    found: Implementation = request.param
    return found


async def occupy(broker: Any, *names: str) -> None:
    for at in range(0, len(names), 500):
        await asyncio.gather(*(broker.join(APP, name, "1.1", None, 0) for name in names[at : at + 500]))


async def vacate(broker: Any, *names: str) -> None:
    for name in names:
        await broker.leave(APP, name, "1.1", None)


async def pages(
    broker: Any, most: int, prefix: str = "", accepts: Callable[[str], bool] = lambda _: True
) -> AsyncIterator[ChannelPage]:
    after = ""
    while True:
        page = await broker.channel_lists.some(APP, prefix, accepts, after, most)
        names = [one.channel for one in page.channels]
        assert len(names) == len(set(names)) <= most
        assert page.examined <= MAX_EXAMINED + 2 * STEP
        yield page
        after = page.next
        if not after:
            return


async def names(broker: Any, most: int, prefix: str = "", accepts: Callable[[str], bool] = lambda _: True) -> list[str]:
    return [one.channel async for page in pages(broker, most, prefix, accepts) for one in page.channels]


@pytest.mark.parametrize("total", [0, 1, 40, 3000])
async def test_pages_have_all_channels(implementation: Implementation, total: int) -> None:
    async with implementation() as broker:
        all_names = [f"c{number}" for number in range(total)]
        await occupy(broker, *all_names)
        for most in (7, 50, 5000):
            found = await names(broker, most)
            assert set(found) == set(all_names)
            assert max(Counter(found).values(), default=1) == 1


async def test_channel_that_stays_is_listed_whatever_changes(implementation: Implementation) -> None:
    async with implementation() as broker:
        stay = [f"stay-{number}" for number in range(600)]
        await occupy(broker, *stay, *(f"first-{number}" for number in range(3000)))
        found: list[str] = []
        number = 0
        async for page in pages(broker, 20):
            found += [one.channel for one in page.channels]
            if number < 40:
                await occupy(broker, *(f"more-{number}-{one}" for one in range(100)))  # the server's hash grows …
            elif number < 110:
                begin = (number - 40) * 100
                gone = [f"more-{one // 100}-{one % 100}" for one in range(begin, min(4000, begin + 100))]
                await vacate(broker, *gone, *(f"first-{one}" for one in range(begin, min(3000, begin + 100))))  # … and shrinks
            number += 1
        assert not set(stay) - set(found)


async def test_channels_are_chosen_by_beginning_and_function(implementation: Implementation) -> None:
    async with implementation() as broker:
        await occupy(broker, "a*b", "a?b", "a[x]", "axb", "a-b", "a\\b", "#server-to-user-1", "\U0001f600 x")
        assert set(await names(broker, 2, "a*")) == {"a*b"}
        assert set(await names(broker, 2, "a[x")) == {"a[x]"}
        assert set(await names(broker, 2, "a\\")) == {"a\\b"}
        assert set(await names(broker, 2, "\U0001f600")) == {"\U0001f600 x"}
        assert set(await names(broker, 2, "a", lambda name: "x" in name)) == {"a[x]", "axb"}
        assert set(await names(broker, 9, "", lambda name: name[0] != "#")) >= {"a*b", "axb"}
        assert await names(broker, 9, "none") == []


async def test_page_has_the_numbers_of_subscriptions_and_users(implementation: Implementation) -> None:
    async with implementation() as broker:
        for socket, user in (("1.1", "u1"), ("1.2", "u1"), ("1.3", "u2")):
            await broker.join(APP, "presence-c", socket, Member(user, b'{"n":1}'), 0)
        await broker.join(APP, "c", "1.1", None, 0)
        page = await broker.channel_lists.some(APP, "", lambda _: True, "", 10)
        assert sorted(page.channels, key=lambda one: one.channel) == [Occupancy("c", 1), Occupancy("presence-c", 3, 2)]
        page = await broker.channel_lists.some(APP, "", lambda _: True, "", 10, has_users=False)
        assert sorted(page.channels, key=lambda one: one.channel) == [Occupancy("c", 1), Occupancy("presence-c", 3)]
        assert (await broker.channel_lists.some("app-b", "", lambda _: True, "", 10)).channels == ()


async def test_some_members_are_returned(implementation: Implementation) -> None:
    async with implementation() as broker:
        assert await broker.channel_lists.some_members(APP, "presence-c", 5) == ()
        await asyncio.gather(*(broker.join(APP, "presence-c", f"1.{n}", Member(f"u{n}", b"[1]"), 0) for n in range(300)))
        few = await broker.channel_lists.some_members(APP, "presence-c", 20)
        assert len(few) == len({one.user_id for one in few}) == 20
        assert {one.info for one in few} == {b"[1]"}
        assert len(await broker.channel_lists.some_members(APP, "presence-c", 500)) == 300


@pytest.mark.parametrize("cursor", ["x", "1", "-1:0:", "99999:0:"])
async def test_text_that_is_no_cursor_is_rejected(implementation: Implementation, cursor: str) -> None:
    async with implementation() as broker:
        with pytest.raises(ValueError, match=cursor):
            await broker.channel_lists.some(APP, "", lambda _: True, cursor, 1)


class Turns:
    """Measures the CPU time of the longest turn of the event loop: other processes have no part in it."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.thread_time()
        self._ends = False

    def __enter__(self) -> Self:
        asyncio.get_running_loop().call_soon(self._turn)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True

    def _turn(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        if not self._ends:
            asyncio.get_running_loop().call_soon(self._turn)


async def check_million(broker: Any) -> int:
    """Requests pages of a million channels, and returns their number."""
    lists, requests = broker.channel_lists, 0
    for prefix, accepts, expected in (("", lambda _: True, 50), ("nothing", lambda _: True, 0), ("", lambda _: False, 0)):
        after = ""
        for _ in range(5):
            with Turns() as turns:
                page = await lists.some(APP, prefix, accepts, after, 50)
                await asyncio.sleep(0)
            requests += 1
            assert (len(page.channels) > expected // 2) == (expected > 0)
            assert page.examined <= MAX_EXAMINED + 2 * STEP
            assert turns.longest < 0.005, turns.longest
            after = page.next
            assert after
    return requests


async def test_million_channels_of_a_server_are_read_in_bounded_pages() -> None:
    async with redis() as broker:
        (shard,) = broker._shards.all
        seed = "for i = ARGV[1], ARGV[2] do redis.call('HSET', KEYS[1], 'channel-' .. i, 1) end"
        for number in range(0, MILLION, 50_000):
            await shard.connection.call("EVAL", seed, 1, shard.keys.key("i", APP), number + 1, number + 50_000)
        await shard.connection.call("CONFIG", "RESETSTAT")
        requests = await check_million(broker)
        stats = (await shard.connection.call("INFO", "commandstats")).decode()
        microseconds = int(stats.partition("cmdstat_hscan:")[2].partition("usec=")[2].partition(",")[0])
        assert microseconds / requests < 50_000, microseconds / requests
        await shard.connection.call("DEL", shard.keys.key("i", APP))


@pytest.mark.long
async def test_million_channels_of_the_memory_broker_do_not_hold_the_loop() -> None:
    async with memory() as broker:
        roster = broker._local_roster
        roster.keep_names()
        for number in range(MILLION):
            roster.join(APP, f"channel-{number}", "1.1", None)
        await check_million(broker)
