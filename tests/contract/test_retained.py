"""The contract of retained messages. A new implementation is one line in `IMPLEMENTATIONS`."""

import asyncio
import re
from binascii import crc_hqx
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from push1st.brokers import Broker
from push1st.brokers.listing import MAX_EXAMINED
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.brokers.redis import Redis
from push1st.brokers.retained import Retain, Retained, bounds_of, expires
from push1st.config.history import HistoryBounds, HistorySection
from push1st.config.mqtt import Mqtt
from push1st.eager import MaybeAwaitable, resolve
from push1st.errors import LimitReached
from push1st.messages import KeptMessage, Message, MqttFields, MqttMessage, Published
from push1st.metrics import Metrics
from tests.contract.redis import cluster, pass_time, redis_broker, valkey

APP = "app-a"
NOW = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
KNOWN = Retain()
ANONYMOUS = Retain(is_anonymous=True, address="192.0.2.1")


class Site:
    """An open broker, the messages that it delivered, and its clock.

    wall: the clock of the worker, in nanoseconds. advance: passes a number of nanoseconds on all clocks. shards: their number.
    """

    def __init__(self, broker: Any, wall: list[int], advance: Callable[[int], Awaitable[None]], shards: int = 1) -> None:
        self.broker: Broker = broker
        self.wall = wall
        self.advance = advance
        self.bounds = bounds_of(shards)
        self.shards = shards
        self.in_one_shard = [name for name in map("t.{}".format, range(30_000)) if self.is_in_one_shard(name)]
        self.delivered: list[Message] = []
        self.ids = count(NOW, 1024)
        retained = self.broker.retained
        assert retained is not None
        self.retained: Retained = retained

    def is_in_one_shard(self, channel: str) -> bool:
        """Returns whether a channel is in the same shard as all channels of `in_one_shard`."""
        return not crc_hqx(f"{APP}/{channel}".encode(), 0) % self.shards

    async def open(self) -> None:
        def receive(message: Message) -> int:
            self.delivered.append(message)
            return 1

        await self.broker.open(receive, lambda _: None, lambda *_: b"", lambda *_: None)
        for channel in ("a", "b", "cache-c"):
            await self.broker.subscribe(APP, channel)

    def message(
        self, channel: str, data: bytes = b"1", app: str = APP, expires: int = 0, properties: bytes = b"", qos: int = 0
    ) -> MqttMessage:
        fields = MqttFields(qos, True, expires, properties)
        return MqttMessage(app, channel, "message", data, next(self.ids), self.wall[0], sender="1.1", mqtt=fields)

    async def publish(self, message: Message, **more: Any) -> Published:
        """Publishes a message, and waits until it is delivered."""
        published = await resolve(self.broker.publish(message, **more))
        if isinstance(self.broker, Redis):
            await self.broker.settled()
        return published

    async def retain(self, message: Message, publisher: Retain = KNOWN) -> Message:
        await self.publish(message, retain=publisher)
        return message

    async def fill(self, channels: Sequence[str], publisher: Retain, data: bytes = b"1") -> None:
        each = max(1, min(500, (1 << 20) // len(data)))
        for begin in range(0, len(channels), each):
            messages = [self.message(channel, data) for channel in channels[begin : begin + each]]
            await asyncio.gather(*(resolve_later(self.broker.publish(one, retain=publisher)) for one in messages))

    async def event(self, channel: str, data: bytes = b'"event"') -> Message:
        """Publishes an event of the API."""
        message = Message(APP, channel, "e", data, next(self.ids), self.wall[0])
        await self.publish(message)
        return message

    async def read(self, *channels: str, size: int = 1 << 20, app: str = APP) -> list[Message | None]:
        return [*await self.retained.read(app, channels, size)]

    async def names(self) -> list[str]:
        return [*await self.retained.names(APP)]


async def resolve_later(published: MaybeAwaitable[Published]) -> Published:
    return await resolve(published)


@asynccontextmanager
async def memory() -> AsyncIterator[Site]:
    numbers, wall = count(1), [NOW]
    history = MemoryHistory(HistoryBounds(), lambda: wall[0], lambda _: next(numbers), Metrics())
    sessions = MemorySessions(lambda: wall[0], lambda _: next(numbers), Metrics(), Mqtt())

    async def advance(nanoseconds: int) -> None:
        wall[0] += nanoseconds
        history.tick()

    site = Site(Memory(lambda: (next(numbers), wall[0]), LocalRoster(), history, sessions), wall, advance)
    await site.open()
    yield site


@asynccontextmanager
async def redis(url: str, shards: int) -> AsyncIterator[Site]:
    wall = [NOW]
    broker = redis_broker(url, wall=lambda: wall[0])

    async def advance(nanoseconds: int) -> None:
        wall[0] += nanoseconds
        await pass_time(broker, nanoseconds / 1_000_000)

    site = Site(broker, wall, advance, shards)
    await site.open()
    try:
        yield site
    finally:
        await broker.close()


Implementation = Callable[[], AbstractAsyncContextManager[Site]]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "memory": memory,
    "redis": lambda: redis(valkey().url, 1),
    "redis-cluster": lambda: redis(cluster().url, 16),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def opened(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


async def test_retained_message_is_published_and_kept(opened: Implementation) -> None:
    async with opened() as site:
        message = await site.retain(site.message("a", properties=b"\x01\x01", qos=2))
        assert [one.id for one in site.delivered] == [message.id]
        assert await site.read("a") == [message]
        assert await site.names() == ["a"]


async def test_message_without_retain_changes_nothing(opened: Implementation) -> None:
    async with opened() as site:
        message = await site.retain(site.message("a"))
        await site.publish(site.message("a", b"2"))
        await site.publish(site.message("b", b'""'))
        assert await site.read("a") == [message]
        assert await site.names() == ["a"]


async def test_next_retained_message_replaces_the_earlier_one(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a"))
        newer = await site.retain(site.message("a", b"22"))
        assert await site.read("a") == [newer]


async def test_message_without_data_is_published_and_removes_the_retained_message(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a"))
        clear = await site.retain(site.message("a", b'""'))
        assert site.delivered[-1].id == clear.id
        assert await site.read("a") == [None]
        assert await site.names() == []


async def test_removing_without_a_retained_message_does_nothing(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a", b'""'))
        assert await site.names() == []


async def test_names_have_the_order_of_the_ids(opened: Implementation) -> None:
    async with opened() as site:
        for channel in ("b", "c", "a", "b"):
            await site.retain(site.message(channel))
        assert await site.names() == ["c", "a", "b"]


async def test_apps_have_separate_retained_messages(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a", app="app-b"))
        assert await site.read("a") == [None]
        assert await site.names() == []
        assert await site.read("a", app="app-b") != [None]


async def test_read_returns_as_many_messages_as_fit(opened: Implementation) -> None:
    async with opened() as site:
        kept = [await site.retain(site.message(channel, b"x" * 1000)) for channel in "abc"]
        assert await site.read("a", "none", "b", "c", size=2500) == [kept[0], None, kept[1]]
        assert await site.read("a", "b", size=10) == [kept[0]]


async def test_expired_message_is_not_read(opened: Implementation) -> None:
    async with opened() as site:
        message = await site.retain(site.message("a", expires=NOW + 200 * SECOND))
        await site.advance(100 * SECOND)
        assert await site.names() == ["a"]
        read = (await site.read("a"))[0]
        assert read is not None
        assert abs(expires(read) - expires(message)) < 10 * SECOND
        await site.advance(100 * SECOND)
        assert await site.read("a") == [None]
        assert await site.names() == []


async def test_message_that_has_expired_when_it_is_published_removes_the_earlier_one(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a"))
        await site.retain(site.message("a", expires=NOW))
        assert await site.read("a") == [None]


async def test_expired_messages_make_room(opened: Implementation) -> None:
    async with opened() as site:
        names = site.in_one_shard
        for channel in names[: site.bounds.address]:
            await site.retain(site.message(channel, expires=NOW + 100 * SECOND), ANONYMOUS)
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[-1]), ANONYMOUS)
        await site.advance(101 * SECOND)
        await site.retain(site.message(names[-1]), ANONYMOUS)
        assert await site.names() == [names[-1]]


async def test_newer_message_is_kept_after_the_earlier_one_would_have_expired(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a", expires=NOW + 3 * SECOND))
        newer = await site.retain(site.message("a"))
        await site.advance(5 * SECOND)
        assert await site.read("a") == [newer]


async def test_message_of_a_channel_with_history_is_retained(opened: Implementation) -> None:
    async with opened() as site:
        kept = KeptMessage(APP, "a", "message", b"1", next(site.ids), NOW, sender="1.1")
        kept.mqtt = MqttFields(retain=True)
        await site.broker.subscribe(APP, "a")
        published = await site.publish(kept, section=HistorySection(), retain=KNOWN)
        assert published.offset == 1
        (found,) = await site.read("a")
        assert found is not None
        assert (found.id, found.data, found.mqtt) == (kept.id, kept.data, kept.mqtt)


# Cache channels


async def test_cached_event_is_the_retained_message(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("z"))
        event = await site.event("cache-c")
        assert await site.read("cache-c") == [event]
        assert await site.names() == ["z", "cache-c"]
        await site.advance(1800 * SECOND)
        assert await site.read("cache-c") == [None]
        assert await site.names() == ["z"]


async def test_retained_message_is_the_cached_event(opened: Implementation) -> None:
    async with opened() as site:
        await site.event("cache-c")
        message = await site.retain(site.message("cache-c", b'{"a":1}', expires=NOW + 50 * SECOND))
        cached = await site.broker.cached(APP, "cache-c")
        assert cached is not None
        assert (cached.message.id, cached.message.data, cached.ttl) == (message.id, message.data, 50)
        assert await site.names() == ["cache-c"]


async def test_cached_event_replaces_the_retained_message(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("cache-c"))
        event = await site.event("cache-c")
        assert await site.read("cache-c") == [event]
        assert await site.names() == ["cache-c"]


async def test_message_without_data_removes_the_cached_event(opened: Implementation) -> None:
    async with opened() as site:
        await site.event("cache-c")
        await site.retain(site.message("cache-c", b'""'))
        assert await site.broker.cached(APP, "cache-c") is None
        assert await site.names() == []


async def test_retained_message_of_another_channel_is_not_cached(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("not-cache-c"))
        assert await site.broker.cached(APP, "not-cache-c") is None


# Bounds


async def test_new_message_over_the_maximum_number_is_rejected(opened: Implementation) -> None:
    async with opened() as site:
        names, most = site.in_one_shard, site.bounds.count
        await site.fill(names[:most], KNOWN)
        await site.event("cache-c")
        await site.broker.subscribe(APP, names[most])
        count = len(site.delivered)
        with pytest.raises(LimitReached, match=f"the app has {most} retained messages"):
            await site.retain(site.message(names[most]))
        assert len(site.delivered) == count
        newer = await site.retain(site.message(names[7], b"more"))
        assert await site.read(names[7]) == [newer]
        await site.retain(site.message(names[8], b'""'))
        assert await site.retain(site.message(names[most])) in await site.read(names[most])


async def test_message_over_the_maximum_size_is_rejected(opened: Implementation) -> None:
    async with opened() as site:
        names, data = site.in_one_shard, b"x" * (1 << 20)
        most = site.bounds.bytes // len(data) - 1
        await site.fill(names[:most], KNOWN, data)
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[most], data))
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[5], b"x" * (3 << 20)))
        assert (await site.read(names[5]))[0] is not None
        newer = await site.retain(site.message(names[5], b"small"))
        assert await site.read(names[5]) == [newer]
        await site.retain(site.message(names[most], data[:-1000]))


async def test_anonymous_clients_have_a_tenth_of_the_bounds(opened: Implementation) -> None:
    async with opened() as site:
        names, most = site.in_one_shard, site.bounds.anonymous_count
        for number in range(most):
            await site.retain(site.message(names[number]), Retain(True, f"192.0.2.{number // site.bounds.address}"))
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[most]), Retain(True, "192.0.2.99"))
        await site.retain(site.message(names[7], b"2"), Retain(True, "192.0.2.99"))
        await site.retain(site.message(names[most]))


async def test_anonymous_clients_have_a_tenth_of_the_bytes(opened: Implementation) -> None:
    async with opened() as site:
        names, data = site.in_one_shard, b"x" * site.bounds.anonymous_bytes
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[0], data), ANONYMOUS)
        await site.retain(site.message(names[0], data))


async def test_anonymous_clients_of_one_address_have_a_bound(opened: Implementation) -> None:
    async with opened() as site:
        names, most = site.in_one_shard, site.bounds.address
        await site.fill(names[:most], ANONYMOUS)
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[most]), ANONYMOUS)
        await site.retain(site.message(names[most]), Retain(is_anonymous=True, address="2001:db8::/64"))
        await site.retain(site.message(names[7], b""), ANONYMOUS)
        await site.retain(site.message(names[8], b'""'), ANONYMOUS)
        await site.retain(site.message(names[-1]), ANONYMOUS)


async def test_larger_message_of_an_anonymous_client_needs_room_in_its_share(opened: Implementation) -> None:
    async with opened() as site:
        names, most = site.in_one_shard, site.bounds.address
        await site.retain(site.message(names[-1], b"1" * 100))
        await site.fill(names[:most], ANONYMOUS)
        await site.retain(site.message(names[-1], b"2" * 100), ANONYMOUS)
        kept = await site.read(names[-1])
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[-1], b"3" * 101), ANONYMOUS)
        assert await site.read(names[-1]) == kept


async def test_cached_event_frees_the_place_of_a_retained_message(opened: Implementation) -> None:
    async with opened() as site:
        names, most = site.in_one_shard, site.bounds.address
        cached = next(name for name in map("cache-{}".format, range(1000)) if site.is_in_one_shard(name))
        await site.fill([cached, *names[: most - 1]], ANONYMOUS)
        with pytest.raises(LimitReached):
            await site.retain(site.message(names[-1]), ANONYMOUS)
        await site.event(cached)
        await site.retain(site.message(names[-1]), ANONYMOUS)
        assert (await site.names())[-2:] == [cached, names[-1]]


# Lists


async def listed(site: Site, prefix: str = "", most: int = 7) -> list[str]:
    """Returns the channels of all pages."""
    found, after = list[str](), ""
    while True:
        page = await site.retained.listed(APP, prefix, after, most)
        assert len(page.messages) <= most
        assert len(page.messages) <= page.examined <= MAX_EXAMINED + 1000
        found += [one.channel for one in page.messages]
        if not (after := page.next):
            return found


async def test_list_has_each_message_once(opened: Implementation) -> None:
    async with opened() as site:
        names = [f"room.{number}" for number in range(60)]
        await site.fill(names, KNOWN)
        await site.event("cache-c")
        await site.retain(site.message("other", app="app-b"))
        assert sorted(await listed(site)) == sorted([*names, "cache-c"])
        assert sorted(await listed(site, "room.1")) == ["room.1", *(f"room.{number}" for number in range(10, 20))]
        assert await listed(site, "room.*") == []
        assert await listed(site, "x") == []


async def test_list_has_long_lists_in_pages(opened: Implementation) -> None:
    async with opened() as site:
        names = [f"c{number}" for number in range(1500)]
        await site.fill(names, KNOWN)
        assert sorted(await listed(site, most=200)) == sorted(names)
        first = await site.retained.listed(APP, "", "", 200)
        for message in first.messages[:100]:
            await site.retained.drop(APP, message.channel)
        rest, after = set[str](), first.next
        while after:
            page = await site.retained.listed(APP, "", after, 200)
            rest |= {one.channel for one in page.messages}
            after = page.next
        assert rest >= set(names) - {one.channel for one in first.messages}


async def test_page_of_large_messages_ends_early(opened: Implementation) -> None:
    async with opened() as site:
        names = [f"c{number}" for number in range(6)]
        await site.fill(names, KNOWN, b'"' + b"x" * 400_000 + b'"')
        page = await site.retained.listed(APP, "", "", 6)
        assert 0 < len(page.messages) < 4
        assert sorted(await listed(site)) == names


async def test_list_shows_what_a_message_has(opened: Implementation) -> None:
    async with opened() as site:
        sent = await site.retain(site.message("a", b'"data"', qos=1, expires=site.wall[0] + 100 * SECOND))
        (found,) = (await site.retained.listed(APP, "", "", 5)).messages
        assert (found.channel, found.data, found.mqtt.qos if found.mqtt else None) == ("a", b'"data"', 1)
        assert abs(expires(found) - expires(sent)) < SECOND
        await site.advance(101 * SECOND)
        assert await listed(site) == []


async def test_dropped_message_is_gone(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a"))
        await site.event("cache-c")
        assert await site.retained.drop(APP, "a")
        assert await site.retained.drop(APP, "cache-c")
        assert not await site.retained.drop(APP, "a")
        assert not await site.retained.drop("nothing", "a")
        assert await site.names() == []
        assert len(site.delivered) == 2, "subscribers receive nothing"
        await site.retain(site.message("a"))
        assert await site.names() == ["a"]


async def test_wrong_cursor_of_a_list_is_an_error(opened: Implementation) -> None:
    async with opened() as site:
        await site.retain(site.message("a"))
        for cursor in ("x", ":", "1", "-1:0:0"):
            with pytest.raises(ValueError, match=re.escape(cursor)):
                await site.retained.listed(APP, "", cursor, 5)
