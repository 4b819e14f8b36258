"""The contract of a broker that keeps the histories of channels. A new implementation is one line in `IMPLEMENTATIONS`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import chain, count
from typing import Any

import msgspec
import pytest

from push1st.brokers import Joined
from push1st.brokers.history import HistoryPage, Replay, ReplayRequest
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.brokers.redis import Redis
from push1st.brokers.redis.scripts import HEAL
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.states import ConnectionState
from push1st.config.history import HistoryBounds, HistorySection
from push1st.config.mqtt import Mqtt
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import KeptMessage, Message, Published
from push1st.metrics import Metrics
from push1st.positions import Position
from tests.contract.redis import NOW, Settled, cluster, redis_broker, valkey
from tests.support.valkey import Valkey

A, B = "app-a", "app-b"
SECOND = 1_000_000_000
SECTION = HistorySection(size=100, ttl=300)
HALF_WORD = 5
CHANNELS = ("c", "d", "bc", "cache-c", "presence-c")
Command = Callable[..., Awaitable[Any]]


class Kept:
    """A broker, the messages that it delivered, and ways to change the state that it keeps.

    command: sends a command to the Redis server of a channel; None for a broker without such a server.
    """

    def __init__(self, broker: Any, wall: list[int], command: Command | None = None) -> None:
        self.broker = broker
        self.received: list[Message] = []
        self._wall = wall
        self._command = command
        self._numbers = count(1)

    @property
    def positions(self) -> list[Position]:
        """The positions of the messages that the broker delivered."""
        return [Position(one.epoch, one.offset) for one in self.received if isinstance(one, KeptMessage)]

    def receive(self, message: Message) -> int:
        self.received.append(message)
        return 1

    def event(self, data: bytes = b"1", channel: str = "c", app: str = A, expires: int = 0, **more: Any) -> KeptMessage:
        return KeptMessage(app, channel, "e", data, next(self._numbers), self._wall[0], expires=expires, **more)

    async def publish(
        self, data: bytes = b"1", channel: str = "c", section: HistorySection = SECTION, key: str = "", **more: Any
    ) -> Published:
        return await resolve(self.broker.publish(self.event(data, channel, **more), section, key))

    async def publish_at_once(self, count: int, channel: str = "c", section: HistorySection = SECTION) -> list[Published]:
        """Publishes messages in one turn of the event loop; their data are 1, 2, 3 …"""
        return await asyncio.gather(*(self.publish(b"%d" % (n + 1), channel, section) for n in range(count)))

    async def join(
        self,
        since: Position | None = None,
        channel: str = "c",
        socket: str = "1.1",
        section: HistorySection = SECTION,
        max_bytes: int = 1 << 20,
        **more: Any,
    ) -> Replay:
        request = ReplayRequest(section, max_bytes, since, **more)
        joined: Joined = await self.broker.join(A, channel, socket, None, 0, request)
        assert joined.replay is not None
        return joined.replay

    async def read(
        self, since: Position | None = None, limit: int = 100, reverse: bool = False, channel: str = "c", app: str = A
    ) -> HistoryPage:
        page: HistoryPage = await self.broker.history.read(app, channel, since, limit, reverse)
        return page

    async def position(self, channel: str = "c") -> Position:
        return (await self.read(channel=channel)).position

    async def pages(self, limit: int, *, reverse: bool = False) -> list[list[int]]:
        """Returns the offsets of all pages, each requested with the position that ended the page before."""
        found, since = [], None
        while True:
            page = await self.read(since, limit, reverse)
            assert page.recovered
            found.append(offsets(page.messages))
            since = page.next
            if since is None:
                return found

    async def expire(self, channel: str = "c") -> None:
        """Lets the time of a channel's messages pass, and not the time of its counter."""
        if self._command is None:
            self._wall[0] += (SECTION.ttl + 1) * SECOND
        else:
            assert 0 < await self._command("PTTL", "h", channel) <= SECTION.ttl * 1000
            await self._command("DEL", "h", channel)

    async def raw(self, verb: str, kind: str, channel: str = "c", *arguments: Any) -> Any:
        """Sends a command about the stream (`h`) or the counter (`hm`) of a channel to the Redis server."""
        if self._command is None:
            pytest.skip("this broker has no keys")
        return await self._command(verb, kind, channel, *arguments)


Implementation = Callable[[], AbstractAsyncContextManager[Kept]]


@asynccontextmanager
async def memory() -> AsyncIterator[Kept]:
    numbers, wall = count(1), [NOW]
    history = MemoryHistory(HistoryBounds(), lambda: wall[0], lambda _: next(numbers), Metrics())
    sessions = MemorySessions(lambda: wall[0], lambda _: next(numbers), Metrics(), Mqtt())
    yield Kept(Memory(lambda: (next(numbers), wall[0]), LocalRoster(), history, sessions), wall)


def on(url: str) -> Kept:
    wall = [NOW]
    broker: Redis = redis_broker(url, wall=lambda: wall[0])

    async def command(verb: str, kind: str, channel: str, *arguments: Any) -> Any:
        shard = broker._shard(A, channel)
        return await shard.connection.call(verb, shard.keys.key(kind, f"{A}/{channel}"), *arguments)

    return Kept(Settled(broker), wall, command)


@asynccontextmanager
async def redis() -> AsyncIterator[Kept]:
    yield on(valkey().url)


@asynccontextmanager
async def redis_cluster() -> AsyncIterator[Kept]:
    yield on(cluster().url)


IMPLEMENTATIONS: dict[str, Implementation] = {"memory": memory, "redis": redis, "redis-cluster": redis_cluster}


@asynccontextmanager
async def opened(implementation: Implementation) -> AsyncIterator[Kept]:
    async with implementation() as kept:
        await kept.broker.open(kept.receive, lambda _: None, lambda *_: b"", lambda *_: None)
        for channel in CHANNELS:
            await kept.broker.subscribe(A, channel)
        try:
            yield kept
        finally:
            await kept.broker.close()


@pytest.fixture(params=list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> Any:
    return request.param


def offsets(messages: Sequence[Message]) -> list[int]:
    return [one.offset for one in messages if isinstance(one, KeptMessage)]


def data(messages: Sequence[Message]) -> list[bytes]:
    return [one.data for one in messages]


# Offsets


async def test_messages_of_a_channel_have_consecutive_offsets_in_one_epoch(implementation):
    async with opened(implementation) as kept:
        published = [await kept.publish() for _ in range(3)]
        assert [one.offset for one in published] == [1, 2, 3]
        assert len({one.epoch for one in published}) == 1
        assert kept.positions == [Position(one.epoch, one.offset) for one in published]


async def test_messages_of_one_turn_have_consecutive_offsets_in_the_order_of_the_calls(implementation):
    async with opened(implementation) as kept:
        published = await kept.publish_at_once(20)
        assert [one.offset for one in published] == list(range(1, 21))
        assert data(kept.received) == [b"%d" % n for n in range(1, 21)]
        assert offsets(kept.received) == list(range(1, 21))


async def test_offsets_and_epochs_of_channels_are_independent(implementation):
    async with opened(implementation) as kept:
        first, other = await kept.publish(), await kept.publish(channel="d")
        assert (first.offset, other.offset) == (1, 1)
        assert first.epoch != other.epoch
        foreign = await kept.publish(app=B)
        assert foreign.offset == 1


async def test_kept_message_arrives_and_is_read_as_it_was_published(implementation):
    async with opened(implementation) as kept:
        fields = {"sender": "1.2", "exclude": "3.4", "target": "5.6", "user_id": "u1", "headers": b'{"h":1}'}
        sent = msgspec.structs.replace(kept.event('"\u0436"'.encode(), expires=NOW + SECOND), **fields)
        expected = msgspec.structs.replace(sent, offset=1, epoch=(await kept.position()).epoch)
        await resolve(kept.broker.publish(sent, SECTION))
        assert kept.received == [expected]
        assert (await kept.read()).messages == (expected,)


async def test_result_has_the_number_of_subscribers(implementation):
    async with opened(implementation) as kept:
        await kept.broker.join(A, "c", "1.1", None, 0)
        assert (await kept.publish()).count == 1


async def test_other_messages_of_the_channel_keep_their_place_and_have_no_offset(implementation):
    async with opened(implementation) as kept:

        async def publish_plain() -> None:
            await resolve(kept.broker.publish(Message(A, "c", "e", b"plain", 77, NOW)))

        await asyncio.gather(kept.publish(b"1"), publish_plain(), kept.publish(b"2"))
        assert data(kept.received) == [b"1", b"plain", b"2"]
        assert offsets(kept.received) == [1, 2]
        assert data((await kept.read()).messages) == [b"1", b"2"]


# Size and time


async def test_history_keeps_its_size_and_the_oldest_messages_go_first(implementation):
    async with opened(implementation) as kept:
        section = HistorySection(size=5)
        for n in range(1, 9):
            await kept.publish(b"%d" % n, section=section)
        page = await kept.read()
        assert (data(page.messages), page.first) == ([b"4", b"5", b"6", b"7", b"8"], 4)


async def test_history_of_batches_keeps_at_least_its_size_and_at_most_one_batch_more(implementation):
    async with opened(implementation) as kept:
        section = HistorySection(size=20)
        for _ in range(10):
            await kept.publish_at_once(8, section=section)
        page = await kept.read()
        assert offsets(page.messages) == list(range(page.first, 81))
        assert 20 <= len(page.messages) <= 27


async def test_all_of_a_batch_that_is_longer_than_the_history_may_be_kept(implementation):
    async with opened(implementation) as kept:
        await kept.publish_at_once(12, section=HistorySection(size=3))
        assert offsets((await kept.read()).messages)[-3:] == [10, 11, 12]


async def test_messages_expire_and_the_position_stays(implementation):
    async with opened(implementation) as kept:
        await kept.publish_at_once(3)
        before = await kept.position()
        await kept.expire()
        page = await kept.read()
        assert (page.position, page.messages, page.first, page.next) == (before, (), 4, None)
        assert (await kept.join(before)).reason is None
        assert (await kept.join(Position(before.epoch, 2))).reason == "trimmed"
        assert (await kept.publish()).offset == 4


async def test_message_whose_own_time_is_over_is_not_listed(implementation):
    async with opened(implementation) as kept:
        await kept.publish(b"1", expires=NOW + 60 * SECOND)
        await kept.publish(b"2", expires=NOW + 1)
        await kept.publish(b"3")
        kept._wall[0] += SECOND
        page = await kept.read()
        assert (data(page.messages), page.first, page.next) == ([b"1", b"3"], 1, None)


# Epochs


async def test_cleared_history_begins_a_new_epoch_and_publishing_goes_on(implementation):
    async with opened(implementation) as kept:
        old = await kept.publish()
        await kept.broker.history.clear(A, "c")
        page = await kept.read(Position(old.epoch, old.offset))
        assert (page.messages, page.recovered) == ((), False)
        new = await kept.publish()
        assert (new.offset, new.epoch != old.epoch) == (1, True)
        assert (await kept.join(Position(old.epoch, 1))).reason == "state-lost"


async def test_position_of_an_earlier_generation_is_read_from_the_oldest_message(implementation):
    """The channel's half of the epoch is still the same if the broker has its keys from a file."""
    async with opened(implementation) as kept:
        epochs = [(await kept.publish()).epoch for _ in range(3)]
        page = await kept.read(Position("Other" + epochs[0][HALF_WORD:], 2))
        assert (page.recovered, offsets(page.messages)) == (False, [1, 2, 3])


async def test_clearing_a_channel_without_history_does_nothing(implementation):
    async with opened(implementation) as kept:
        await kept.broker.history.clear(A, "never")


@pytest.mark.parametrize("change", [("DEL", ()), ("HDEL", ("e",)), ("HDEL", ("o",)), ("HSET", ("o", 1)), ("HSET", ("o", "x"))])
async def test_publishing_goes_on_after_the_counter_was_changed_by_hand(implementation, change):
    """A lost counter met an old stream, and the server rejected each new entry until the stream expired (centrifugo#768)."""
    async with opened(implementation) as kept:
        old = (await kept.publish_at_once(3))[-1]
        verb, arguments = change
        await kept.raw(verb, "hm", "c", *arguments)
        new = [await kept.publish() for _ in range(2)]
        assert [one.offset for one in new] == [1, 2]
        assert {one.epoch for one in new} != {old.epoch}
        assert (await kept.join(Position(old.epoch, 3))).reason == "state-lost"
        assert offsets((await kept.read()).messages) == [1, 2]


async def test_lost_stream_leaves_a_history_that_begins_later(implementation):
    async with opened(implementation) as kept:
        await kept.publish_at_once(3)
        await kept.raw("DEL", "h")
        new = await kept.publish()
        assert new.offset == 4
        assert (await kept.join(Position(new.epoch, 2))).reason == "trimmed"
        assert offsets((await kept.join(Position(new.epoch, 3))).messages) == [4]


async def test_counter_of_a_channel_without_messages_is_renewed_while_the_channel_has_subscribers(implementation):
    async with opened(implementation) as kept:
        position = (await kept.join(counter_seconds=360)).position
        assert 350_000 < await kept.raw("PTTL", "hm") <= 360_000
        await kept.raw("PEXPIRE", "hm", "c", 90_000)
        for _ in range(3):
            kept.broker.history.tick()
        assert await kept.raw("PTTL", "hm") > 350_000
        assert await kept.position() == position


async def test_join_does_not_shorten_the_time_of_a_counter(implementation):
    async with opened(implementation) as kept:
        await kept.publish()
        await kept.join(counter_seconds=360)
        for _ in range(3):
            kept.broker.history.tick()
        assert await kept.raw("PTTL", "hm") > 600_000_000


# Joins


async def test_join_of_a_new_channel_has_a_position_in_the_epoch_of_the_first_message(implementation):
    async with opened(implementation) as kept:
        replay = await kept.join()
        assert (replay.reason, replay.position.offset, list(replay.messages)) == ("unknown", 0, [])
        published = await kept.publish()
        assert (published.epoch, published.offset) == (replay.position.epoch, 1)
        again = await kept.join(replay.position)
        assert (again.reason, offsets(again.messages)) == (None, [1])


@pytest.mark.parametrize("since", range(7))
async def test_join_gets_all_messages_after_its_position(implementation, since):
    async with opened(implementation) as kept:
        await kept.publish_at_once(4)
        last = [await kept.publish(b"%d" % n) for n in (5, 6)][-1]
        replay = await kept.join(Position(last.epoch, since))
        assert (replay.reason, replay.position) == (None, Position(last.epoch, 6))
        assert offsets(replay.messages) == list(range(since + 1, 7))
        assert data(replay.messages) == [b"%d" % n for n in range(since + 1, 7)]


async def test_join_without_a_position_gets_no_message(implementation):
    async with opened(implementation) as kept:
        await kept.publish_at_once(4)
        replay = await kept.join()
        assert (replay.reason, list(replay.messages), replay.position.offset) == ("unknown", [], 4)


async def test_join_with_a_position_of_another_epoch_or_after_the_last_message_gets_no_message(implementation):
    async with opened(implementation) as kept:
        epoch = (await kept.publish_at_once(4))[-1].epoch
        for since in (Position("k3F9aQx2bT", 2), Position(epoch, 5), Position(epoch, 10**20), Position(epoch[:HALF_WORD], 2)):
            replay = await kept.join(since)
            assert (replay.reason, list(replay.messages)) == ("state-lost", [])


async def test_join_with_a_position_before_the_oldest_message_gets_no_message(implementation):
    async with opened(implementation) as kept:
        section = HistorySection(size=5)
        published = [await kept.publish(section=section) for _ in range(9)][-1]
        assert (await kept.join(Position(published.epoch, 3))).reason == "trimmed"
        replay = await kept.join(Position(published.epoch, 4))
        assert (replay.reason, offsets(replay.messages)) == (None, [5, 6, 7, 8, 9])


async def test_join_from_the_start_gets_all_kept_messages(implementation):
    async with opened(implementation) as kept:
        epoch = (await kept.publish_at_once(4))[-1].epoch
        assert offsets((await kept.join(Position(epoch, 0))).messages) == [1, 2, 3, 4]


async def test_rewind_gets_the_latest_messages(implementation):
    async with opened(implementation) as kept:
        await kept.publish_at_once(6)
        replay = await kept.join(rewind=2)
        assert (replay.reason, offsets(replay.messages)) == ("unknown", [5, 6])
        assert offsets((await kept.join(rewind=50)).messages) == [1, 2, 3, 4, 5, 6]


async def test_position_wins_over_rewind_and_rewind_replaces_a_lost_position(implementation):
    async with opened(implementation) as kept:
        epoch = (await kept.publish_at_once(6))[-1].epoch
        replay = await kept.join(Position(epoch, 5), rewind=3)
        assert (replay.reason, offsets(replay.messages)) == (None, [6])
        replay = await kept.join(Position("k3F9aQx2bT", 5), rewind=3)
        assert (replay.reason, offsets(replay.messages)) == ("state-lost", [4, 5, 6])


async def test_rewind_of_seconds_gets_no_older_message(implementation):
    async with opened(implementation) as kept:
        await kept.publish(b"1")
        kept._wall[0] += 20 * SECOND
        await kept.publish(b"2")
        kept._wall[0] += 20 * SECOND
        await kept.publish(b"3")
        assert data((await kept.join(rewind=100, rewind_seconds=30)).messages) == [b"2", b"3"]


async def test_replay_of_too_many_bytes_is_rejected(implementation):
    async with opened(implementation) as kept:
        published = [await kept.publish(b'"' + b"x" * 998 + b'"') for _ in range(40)][-1]
        for since, reason in ((0, "too-large"), (20, "too-large"), (35, None)):
            replay = await kept.join(Position(published.epoch, since), max_bytes=10_000)
            assert (replay.reason, offsets(replay.messages)) == (reason, [] if reason else [36, 37, 38, 39, 40])


async def test_rewind_of_too_many_bytes_gets_the_latest_messages_that_fit(implementation):
    async with opened(implementation) as kept:
        for _ in range(40):
            await kept.publish(b'"' + b"x" * 998 + b'"')
        replay = await kept.join(rewind=30, max_bytes=10_000)
        assert (replay.reason, offsets(replay.messages)) == ("unknown", list(range(33, 41)))
        assert offsets((await kept.join(rewind=5, max_bytes=10_000)).messages) == [36, 37, 38, 39, 40]


async def test_joins_of_one_turn_get_their_own_parts(implementation):
    async with opened(implementation) as kept:
        epoch = (await kept.publish_at_once(6))[-1].epoch
        wanted = {"1.1": 2, "1.2": 4, "1.3": 6, "1.4": 9}
        found = await asyncio.gather(*(kept.join(Position(epoch, n), socket=socket) for socket, n in wanted.items()))
        without = await kept.join()
        assert [(one.reason, offsets(one.messages)) for one in (*found, without)] == [
            *((None, [3, 4, 5, 6]), (None, [5, 6]), (None, []), ("state-lost", [])),
            ("unknown", []),
        ]


async def test_joins_of_one_turn_share_the_messages_from_the_smallest_position_that_is_kept(implementation):
    async with opened(implementation) as kept:
        section = HistorySection(size=5)
        epoch = [await kept.publish(section=section) for _ in range(9)][-1].epoch
        if implementation is memory:
            pytest.skip("the memory broker reads nothing")
        sinces = Position(epoch, 1), Position("k3F9aQx2bT", 5), Position(epoch, 0), Position(epoch, 7), Position(epoch, 8)
        found = await asyncio.gather(*(kept.join(since, socket=f"1.{n}") for n, since in enumerate(sinces)))
        assert len({id(one.run) for one in found if one.messages}) == 1
        assert [offsets(one.run.messages) for one in found if one.messages] == [[8, 9]] * 2


async def test_join_beside_a_publish_gets_the_message_either_in_the_replay_or_live(implementation):
    async with opened(implementation) as kept:
        since = (await kept.join()).position
        replays = []
        for n in range(10):
            *_, replay = await asyncio.gather(kept.publish(), kept.publish(), kept.join(since, socket=f"2.{n}"))
            replays.append(replay)
        for replay in replays:
            assert offsets(replay.messages) == list(range(1, replay.position.offset + 1))
        assert offsets(kept.received) == list(range(1, 21))


async def test_join_with_a_lost_position_beside_a_publish_gets_the_message_live_and_once(implementation):
    """A search for a position that is not found must not race with messages that arrive meanwhile (mercure#1199)."""
    async with opened(implementation) as kept:
        lost = Position("x" * 10, 3)
        for n in range(10):
            *_, replay = await asyncio.gather(kept.publish(), kept.publish(), kept.join(lost, socket=f"2.{n}"))
            assert (replay.reason, offsets(replay.messages)) == ("state-lost", [])
        assert offsets(kept.received) == list(range(1, 21))


# Reading


async def test_history_of_a_channel_without_messages_is_empty_in_both_directions(implementation):
    """Reading backwards failed without a counter (centrifuge#328)."""
    async with opened(implementation) as kept:
        pages = [await kept.read(reverse=reverse) for reverse in (False, True)]
        for page in pages:
            assert (page.messages, page.position.offset, page.first, page.next, page.recovered) == ((), 0, 1, None, True)
        assert (await kept.publish()).epoch == pages[-1].position.epoch


@pytest.mark.parametrize("field", ["e", "o"])
async def test_history_whose_counter_is_incomplete_is_read_in_both_directions(implementation, field):
    """Reading backwards failed with half of a counter (centrifuge#331)."""
    async with opened(implementation) as kept:
        await kept.publish_at_once(3)
        await kept.raw("HDEL", "hm", "c", field)
        for reverse in (True, False):
            page = await kept.read(reverse=reverse)
            assert (page.messages, page.position.offset, page.next, page.recovered) == ((), 0, None, True)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 9, 10, 11])
async def test_pages_contain_every_message_once_in_both_directions(implementation, limit):
    async with opened(implementation) as kept:
        for size in (1, 4, 2, 3):
            await kept.publish_at_once(size)
        forward = await kept.pages(limit)
        assert list(chain(*forward)) == list(range(1, 11))
        assert all(len(page) == limit for page in forward[:-1])
        backward = await kept.pages(limit, reverse=True)
        assert list(chain(*backward)) == list(range(10, 0, -1))
        assert all(len(page) == limit for page in backward[:-1])


async def test_page_begins_after_its_position(implementation):
    async with opened(implementation) as kept:
        epoch = (await kept.publish_at_once(8))[-1].epoch
        page = await kept.read(Position(epoch, 3), 2)
        assert (offsets(page.messages), page.next, page.recovered) == ([4, 5], Position(epoch, 5), True)
        page = await kept.read(Position(epoch, 3), 2, reverse=True)
        assert (offsets(page.messages), page.next, page.recovered) == ([2, 1], None, True)
        page = await kept.read(Position(epoch, 8), 2)
        assert (page.messages, page.next, page.recovered) == ((), None, True)
        for offset in (0, 1):
            page = await kept.read(Position(epoch, offset), 2, reverse=True)
            assert (page.messages, page.next) == ((), None)


async def test_page_of_a_lost_position_begins_with_the_oldest_message_or_backwards_with_the_latest(implementation):
    """An unknown position was answered with the newest message, or not at all (mercure#704, #1321; deer-flow#4426)."""
    async with opened(implementation) as kept:
        section = HistorySection(size=5)
        epoch = [await kept.publish(section=section) for _ in range(9)][-1].epoch
        for since in (Position("k3F9aQx2bT", 7), Position(epoch, 2), Position(epoch, 77), Position(epoch, 10**20)):
            page = await kept.read(since)
            assert (offsets(page.messages), page.recovered, page.first) == ([5, 6, 7, 8, 9], False, 5)
        for since in (Position("k3F9aQx2bT", 7), Position(epoch, 77)):
            page = await kept.read(since, 2, reverse=True)
            assert (offsets(page.messages), page.recovered) == ([9, 8], False)


async def test_position_among_ten_thousand_messages_is_found(implementation):
    """Positions after the first 10,000 messages were never found (mercure#1382)."""
    async with opened(implementation) as kept:
        section = HistorySection(size=10_000)
        epoch = [await kept.publish_at_once(500, section=section) for _ in range(21)][-1][-1].epoch
        assert offsets((await kept.read(Position(epoch, 10_490))).messages) == list(range(10_491, 10_501))
        assert offsets((await kept.join(Position(epoch, 10_498))).messages) == [10_499, 10_500]
        assert (await kept.read(limit=1)).first <= 501


# Idempotency keys


async def test_repeated_key_delivers_nothing_and_gets_the_first_result(implementation):
    async with opened(implementation) as kept:
        await kept.broker.join(A, "c", "1.1", None, 0)
        await kept.publish(b"0")
        first = await kept.publish(b"1", key="k")
        await kept.publish(b"2")
        again = await kept.publish(b"other", key="k")
        assert (first.count, first.offset, first.repeats) == (1, 2, 0)
        assert (again.count, again.offset, again.epoch) == (first.count, first.offset, first.epoch)
        assert again.repeats == kept.received[1].id
        assert data(kept.received) == data((await kept.read()).messages) == [b"0", b"1", b"2"]


async def test_key_also_works_without_a_history(implementation):
    async with opened(implementation) as kept:

        async def publish(number: int) -> Published:
            return await resolve(kept.broker.publish(Message(A, "c", "e", b"%d" % number, number, NOW), None, "k"))

        first, again = await publish(5), await publish(6)
        assert (first, again) == (Published(0 if implementation is not memory else 1), Published(first.count, repeats=5))
        assert kept.received == [Message(A, "c", "e", b"5", 5, NOW)]


async def test_keys_of_channels_and_apps_are_independent(implementation):
    async with opened(implementation) as kept:
        for channel, key in (("c", "k"), ("d", "k"), ("c", "kb"), ("bc", "k")):
            assert (await kept.publish(channel=channel, key=key)).repeats == 0
        assert (await kept.publish(app=B, key="k")).repeats == 0
        assert len([one for one in kept.received if one.app == A]) == 4


async def test_repeated_publish_to_several_channels_reaches_only_the_rest(implementation):
    async with opened(implementation) as kept:
        await kept.publish(b"1", "c", key="k")
        for _ in range(5):
            await asyncio.gather(*(kept.publish(b"1", channel, key="k") for channel in ("c", "d", "bc")))
        assert sorted(one.channel for one in kept.received) == ["bc", "c", "d"]


async def test_repetitions_in_one_turn_are_delivered_once(implementation):
    async with opened(implementation) as kept:
        found = await asyncio.gather(*(kept.publish(b"1", key="k") for _ in range(5)))
        assert [bool(one.repeats) for one in found] == [False, True, True, True, True]
        assert {one.offset for one in found} == {1}
        assert len(kept.received) == 1


async def test_messages_with_and_without_keys_keep_the_order_of_the_calls(implementation):
    async with opened(implementation) as kept:
        keys = ("", "", "a", "b", "", "c", "")
        found = await asyncio.gather(*(kept.publish(b"%d" % n, key=key) for n, key in enumerate(keys)))
        assert data(kept.received) == [b"%d" % n for n in range(len(keys))]
        assert [one.offset for one in found] == offsets(kept.received) == list(range(1, len(keys) + 1))


async def test_key_of_128_characters_is_accepted(implementation):
    async with opened(implementation) as kept:
        key = "~" * 128
        await kept.publish(key=key)
        assert (await kept.publish(key=key)).repeats


# Cache channels


async def test_event_of_a_cache_channel_is_cached_and_kept(implementation):
    async with opened(implementation) as kept:
        await kept.publish_at_once(2, "cache-c")
        found = await kept.broker.cached(A, "cache-c")
        assert found is not None
        assert (found.message.data, found.ttl) in ((b"2", 1800), (b"2", 1799))
        assert not isinstance(found.message, KeptMessage)  # a client must not take over an older position than the channel's
        assert data((await kept.read(channel="cache-c")).messages) == [b"1", b"2"]
        await kept.publish(b"3", "cache-c", key="k")
        await kept.publish(b"4", "cache-c", key="k")
        found = await kept.broker.cached(A, "cache-c")
        assert found is not None
        assert found.message.data == b"3"


# A server whose memory is full


@pytest.mark.parametrize("key", ["", "k"])
@pytest.mark.parametrize("channel", ["c", "d", "cache-c"])
@pytest.mark.parametrize("section", [SECTION, None])
async def test_full_server_rejects_the_whole_publish(channel, key, section):
    server = Valkey("--maxmemory-policy", "noeviction")
    try:
        async with opened(lambda: _opened_on(server.url)) as kept:
            before = await kept.publish(b"1", channel)
            server.ask("CONFIG", "SET", "maxmemory", "1")
            for name in {channel, "bc"} if section or key else ():
                with pytest.raises(Refused, match="503: the broker refused: OOM"):
                    await resolve(kept.broker.publish(kept.event(b"2", name), section, key))
            server.ask("CONFIG", "SET", "maxmemory", "0")
            assert data(kept.received) == [b"1"]
            page = await kept.read(channel=channel)
            assert (page.position, data(page.messages)) == (Position(before.epoch, 1), [b"1"])
            cached = await kept.broker.cached(A, channel)
            assert cached is None or cached.message.data == b"1"
            after = await kept.publish(b"3", channel, key=key)
            assert (after.offset, after.epoch, after.repeats) == (2, before.epoch, 0)
    finally:
        server.close()


@asynccontextmanager
async def _opened_on(url: str) -> AsyncIterator[Kept]:
    yield on(url)


@pytest.mark.parametrize("name", ["redis", "redis-cluster"])
async def test_heal_reply_is_bounded_in_bytes(name):
    """Without the bound, the messages of ten thousand channels, with a few megabytes each, would be one reply."""
    async with opened(IMPLEMENTATIONS[name]) as kept:
        published = await kept.publish(b'"%b"' % (b"x" * 1000))
        shard = kept.broker._broker._shard(A, "c")
        resp = await shard.connection.usable()
        missed = A, "c", 60_000, published.epoch, 0
        for max_bytes, count in ((5000, 3), (1500, 2), (500, 1)):
            command = shard.keys.command(HEAL, shard.history.generation, "Word9", 5000, max_bytes, *missed * 3)
            assert len(await resp.call(*command)) == count


# The generation of the server's state


def shards_of(kept: Kept) -> Sequence[Shard]:
    found: Sequence[Shard] = kept.broker._broker._shards.all
    return found


@pytest.mark.parametrize("name", ["redis", "redis-cluster"])
async def test_lost_generation_is_stored_again_by_the_next_renewal(name):
    """A server may evict this key alone, because it is seldom read. A new node would then store another generation."""
    async with opened(IMPLEMENTATIONS[name]) as kept:
        before = (await kept.publish()).epoch
        for shard in shards_of(kept):
            resp = await shard.connection.usable()
            stored = await resp.call("GET", shard.keys.key("gen"))
            await resp.call("DEL", shard.keys.key("gen"))
            shard.lease.renew()
            assert await resp.call("GET", shard.keys.key("gen")) == stored
        assert (await kept.publish()).epoch == before


@pytest.mark.parametrize("name", ["redis", "redis-cluster"])
async def test_node_uses_the_generation_that_another_node_has_stored(name):
    """Two generations at the same time would be a loss of the state at each message."""
    async with opened(IMPLEMENTATIONS[name]) as kept:
        before = await kept.publish()
        for shard in shards_of(kept):
            resp = await shard.connection.usable()
            await resp.call("SET", shard.keys.key("gen"), f"{resp.run_id} Other")
            shard.lease.renew()
            await resp.call("PING")
            assert shard.connection.state is ConnectionState.READY_NO_LEASE
        after = await until_published(kept, "Other")
        assert (after.epoch, after.offset > before.offset) == ("Other" + before.epoch[HALF_WORD:], True)


@pytest.mark.parametrize("name", ["redis", "redis-cluster"])
async def test_generation_of_another_run_is_replaced(name):
    """A restarted server may load `BASE:gen` of an earlier run from a file or a replica. If no node replaced this key, each node
    would use a generation of its own.
    """
    async with opened(IMPLEMENTATIONS[name]) as kept:
        before = await kept.publish()
        for shard in shards_of(kept):
            resp = await shard.connection.usable()
            await resp.call("SET", shard.keys.key("gen"), "anotherrun Other")
            await resp.call("DEL", shard.keys.key("lease", "node"))
            shard.lease.renew()
            await resp.call("PING")
        after = await until_published(kept, before.epoch[:HALF_WORD])
        assert after.epoch == before.epoch
        for shard in shards_of(kept):
            resp = await shard.connection.usable()
            assert await resp.call("GET", shard.keys.key("gen")) == shard.history.stored_generation.encode()


async def until_published(kept: Kept, generation: str) -> Published:
    """Publishes until a message has a position of the generation."""
    async with asyncio.timeout(10):
        while not (published := await kept.publish()).epoch.startswith(generation):
            await kept.broker.settled()
    return published
