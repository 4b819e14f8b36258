"""Retained messages that several nodes share. `test_retained.py` has the rules that hold for all brokers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from push1st.brokers.redis import Redis, sharded_retained
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.retained import Retain, expires
from push1st.errors import Refused
from push1st.messages import Message, MqttFields, MqttMessage
from tests.contract.redis import NOW, cluster, new_prefix, redis_broker, valkey
from tests.support.valkey import Valkey

APP = "app-a"
SECOND = 1_000_000_000
AHEAD = 5 * SECOND
"""the difference between the clocks of the two nodes"""
TIMINGS = Timings(hold=0, read=0.05, renew=0.05)


@asynccontextmanager
async def nodes(url: str) -> AsyncIterator[tuple[Redis, Redis]]:
    """Opens two nodes; the clock of the second is ahead."""
    prefix = new_prefix()
    first = redis_broker(url, node="n1", prefix=prefix, timings=TIMINGS)
    second = redis_broker(url, node="n2", prefix=prefix, timings=TIMINGS, wall=lambda: NOW + AHEAD)
    for one in (first, second):
        await one.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
    try:
        yield first, second
    finally:
        await first.close()
        await second.close()


@pytest.fixture(params=["redis", "redis-cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return valkey().url if request.param == "redis" else cluster().url


_ids = iter(range(NOW, NOW << 1, 1024))


def message(channel: str, seconds: float = 0, data: bytes = b"1", received: int = NOW) -> MqttMessage:
    until = received + int(seconds * SECOND) if seconds else 0
    return MqttMessage(APP, channel, "message", data, next(_ids), received, sender="1.1", mqtt=MqttFields(1, True, until))


async def retain(broker: Redis, *messages: Message) -> None:
    for one in messages:
        await broker.publish(one, retain=Retain())


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within ten seconds")


async def test_time_of_expiry_is_on_the_clock_of_the_reader(url: str) -> None:
    async with nodes(url) as (first, second):
        await retain(first, message("short", 3), message("long", 100), message("ever"))
        short, long, ever = await second.retained.read(APP, ["short", "long", "ever"], 1 << 16)
        assert short is not None
        assert long is not None
        assert ever is not None
        assert NOW + AHEAD < expires(short) <= NOW + AHEAD + 3 * SECOND
        assert NOW + AHEAD + 95 * SECOND < expires(long) <= NOW + AHEAD + 100 * SECOND
        assert not expires(ever)


async def test_nodes_see_the_messages_of_each_other(url: str) -> None:
    async with nodes(url) as (first, second):
        await retain(first, *(message(f"c.{number}") for number in range(40)))
        await retain(second, message("c.7", data=b"2"), message("c.8", data=b'""'))
        order = [f"c.{number}" for number in range(40) if number not in (7, 8)]
        assert [*await first.retained.names(APP)] == [*order, "c.7"]
        read = await first.retained.read(APP, ["c.7", "c.8", "c.9"], 1 << 16)
        assert [None if one is None else one.data for one in read] == [b"2", None, b"1"]


async def test_page_of_several_shards_has_the_given_order_and_size(url: str) -> None:
    async with nodes(url) as (first, second):
        names = [f"c.{number}" for number in range(64)]
        await retain(first, *(message(name, data=b"x" * 3000) for name in names))
        page = await second.retained.read(APP, names, 64 << 10)
        assert [one.channel for one in page if one is not None] == names[: len(page)]
        assert 15 <= len(page) <= 21
        assert [one.channel for one in await second.retained.read(APP, names[5:], 1) if one is not None] == ["c.5"]


async def test_names_are_read_once_for_all_subscribers_that_wait(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_retained, "NAMES_SECONDS", 0.05)
    async with nodes(url) as (first, second):
        await retain(first, message("c.1"))
        reads = count_calls(second, monkeypatch)
        begin = asyncio.get_running_loop().time()
        waiting = [asyncio.create_task(_names(second)) for _ in range(50)]
        assert await waiting[0] == ["c.1"]
        await retain(first, message("c.2"))
        later = await asyncio.gather(*(_names(second) for _ in range(50)))
        assert all(names == ["c.1", "c.2"] for names in later)
        assert asyncio.get_running_loop().time() - begin >= 0.05
        assert len(reads) == 4  # two lists, read twice


def count_calls(broker: Redis, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the later commands of a node to its first shard."""
    connection, commands = broker._shards.all[0].connection, []
    call = connection.call

    async def counted(*command: Any, ordered: bool = False) -> Any:
        commands.append(command)
        return await call(*command, ordered=ordered)

    monkeypatch.setattr(connection, "call", counted)
    return commands


async def _names(broker: Redis) -> list[str]:
    return [*await broker.retained.names(APP)]


async def test_name_whose_message_was_evicted_is_not_listed_after_a_read(url: str) -> None:
    async with nodes(url) as (first, second):
        await retain(first, message("c.1"))
        shard = first._shards.of(APP, "c.1")
        await shard.connection.call("DEL", shard.keys.key("k", f"{APP}/c.1"))
        assert [*await second.retained.read(APP, ["c.1"], 100)] == [None]
        assert await _names(first) == []
        assert await shard.connection.call("EXISTS", shard.keys.key("kh", APP), shard.keys.key("kb", APP)) == 0


async def test_removed_messages_leave_no_keys(url: str) -> None:
    async with nodes(url) as (first, _):
        await first.publish(message("c.1", 50), retain=Retain(is_anonymous=True, address="192.0.2.1"))
        await first.publish(message("c.1", data=b'""'), retain=Retain())
        shard = first._shards.of(APP, "c.1")
        assert await shard.connection.call("KEYS", shard.keys.base + ":k*") == []


async def test_cached_event_of_an_earlier_build_is_read_and_cached(url: str) -> None:
    async with nodes(url) as (first, _):
        event = Message(APP, "cache-c", "e", b'"x"', next(_ids), NOW)
        shard = first._shards.of(APP, "cache-c")
        key = shard.keys.key("k", f"{APP}/cache-c")
        await shard.connection.call("SET", key, msgspec.msgpack.encode(event), "PX", 60_000)
        assert [*await first.retained.read(APP, ["cache-c"], 100)] == [event]
        cached = await first.cached(APP, "cache-c")
        assert cached is not None
        assert cached.message == event


async def test_message_that_cannot_be_decoded_is_none(url: str) -> None:
    async with nodes(url) as (first, _):
        shard = first._shards.of(APP, "c")
        await shard.connection.call("SET", shard.keys.key("k", f"{APP}/c"), "no message")
        assert [*await first.retained.read(APP, ["c"], 100)] == [None]


async def test_only_one_node_counts_the_messages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_retained, "COUNT_SECONDS", 0)
    async with nodes(url) as (first, second):
        await until(lambda: all(one.lease._alive for broker in (first, second) for one in broker._shards.all))
        await retain(second, *(message(f"c.{number}") for number in range(30)))
        await until(lambda: first.retained.counts() == {APP: 30})
        assert second.retained.counts() == {}
        await retain(second, message("c.1", data=b'""'))
        await until(lambda: first.retained.counts() == {APP: 29})


async def test_full_server_rejects_a_retained_message_and_removes_one() -> None:
    server = Valkey("--maxmemory-policy", "noeviction")
    try:
        async with nodes(server.url) as (first, second):
            await retain(first, message("c.1"), message("c.2"))
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(Refused, match="503: the broker refused: OOM"):
                await retain(first, message("c.1", data=b"2"))
            await retain(first, message("c.2", data=b'""'))
            read = await second.retained.read(APP, ["c.1", "c.2"], 1 << 16)
            assert [None if one is None else one.data for one in read] == [b"1", None]
            assert await _names(second) == ["c.1"]
    finally:
        server.close()


async def test_names_cannot_be_read_while_the_broker_is_away() -> None:
    server = Valkey()
    prefix = new_prefix()
    broker = redis_broker(server.url, prefix=prefix, timings=Timings(patience=0.2))
    await broker.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
    try:
        server.kill()
        for read in (broker.retained.names(APP), broker.retained.read(APP, ["c"], 1)):
            with pytest.raises(Refused, match="503"):
                await read
    finally:
        await broker.close()
        server.close()
