"""The contract of the records of pages. A new implementation is one line in `IMPLEMENTATIONS`."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count

import pytest

from push1st.brokers import Pages
from push1st.brokers.memory_pages import PAGE_BYTES, MemoryPages
from push1st.brokers.pages import MAX_PAGE_BYTES, MAX_RECORDS, PageBounds, PageRecord, bounded
from push1st.brokers.redis import Redis
from push1st.positions import Position
from tests.contract.redis import NOW, cluster, redis_broker, valkey
from tests.support.valkey import Valkey

APP, PAGE = "app-a", "page-0123456789abcdef"
SECONDS = 300
BOUNDS = PageBounds(SECONDS, 100_000, "192.0.2.1")


@asynccontextmanager
async def memory() -> AsyncIterator[Pages]:
    yield MemoryPages(lambda: NOW)


@asynccontextmanager
async def open_redis(broker: Redis) -> AsyncIterator[Pages]:
    await broker.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
    try:
        yield broker.pages
    finally:
        await broker.close()


Implementation = Callable[[], AbstractAsyncContextManager[Pages]]
IMPLEMENTATIONS: dict[str, Implementation] = {
    "memory": memory,
    "redis": lambda: open_redis(redis_broker(valkey().url)),
    "redis-cluster": lambda: open_redis(redis_broker(cluster().url)),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def pages(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


_times = count(1_700_000_000_000)


def record(offset: int | None = 1, *, closed: bool = False, channel: str = "news") -> PageRecord:
    """Returns a record that is newer than all earlier records."""
    position = None if offset is None else Position("epoch", offset)
    return PageRecord(next(_times), "#page-at-1", {channel: position}, ("8.8",), closed)


async def test_record_is_recalled_as_it_was_stored(pages: Implementation) -> None:
    async with pages() as port:
        stored = PageRecord(
            next(_times), "#page-at-1", {"a": Position("e", 7), "private-ü": None}, ("1.1", "2.2"), True, True, True
        )
        assert await port.remember(APP, PAGE, "1.2", record(), BOUNDS)
        assert await port.remember(APP, PAGE, "1.2", stored, BOUNDS)
        assert await port.recall(APP, PAGE) == {"1.2": stored}


async def test_unknown_page_has_no_records(pages: Implementation) -> None:
    async with pages() as port:
        assert await port.recall(APP, PAGE) == {}


async def test_pages_of_two_apps_are_separate(pages: Implementation) -> None:
    async with pages() as port:
        await port.remember(APP, PAGE, "1.2", record(), BOUNDS)
        assert await port.recall("app-b", PAGE) == {}


async def test_every_connection_of_a_page_has_a_record(pages: Implementation) -> None:
    async with pages() as port:
        one, two = record(1), record(2)
        await port.remember(APP, PAGE, "1.1", one, BOUNDS)
        await port.remember(APP, PAGE, "2.2", two, BOUNDS)
        assert await port.recall(APP, PAGE) == {"1.1": one, "2.2": two}


async def test_new_record_deletes_merged_records_in_the_same_step(pages: Implementation) -> None:
    async with pages() as port:
        await port.remember(APP, PAGE, "1.1", record(), BOUNDS)
        await port.remember(APP, PAGE, "1.1", record(closed=True), BOUNDS)
        new = record(2)
        assert await port.remember(APP, PAGE, "2.2", new, BOUNDS, ("1.1",))
        assert await port.recall(APP, PAGE) == {"2.2": new}


async def test_closed_record_replaces_an_earlier_record(pages: Implementation) -> None:
    async with pages() as port:
        await port.remember(APP, PAGE, "1.1", record(1), BOUNDS)
        closed = record(5, closed=True)
        assert await port.remember(APP, PAGE, "1.1", closed, BOUNDS)
        assert await port.recall(APP, PAGE) == {"1.1": closed}


async def test_closed_record_is_not_stored_without_an_earlier_record(pages: Implementation) -> None:
    async with pages() as port:
        assert not await port.remember(APP, PAGE, "1.1", record(closed=True), BOUNDS)
        await port.remember(APP, PAGE, "2.2", record(), BOUNDS)
        assert not await port.remember(APP, PAGE, "1.1", record(closed=True), BOUNDS)
        assert [*await port.recall(APP, PAGE)] == ["2.2"]


async def test_forgotten_connection_stores_no_record_again(pages: Implementation) -> None:
    async with pages() as port:
        await port.remember(APP, PAGE, "1.1", record(), BOUNDS)
        new = record()
        await port.remember(APP, PAGE, "2.2", new, BOUNDS)
        await port.forget(APP, PAGE, ["1.1"])
        assert not await port.remember(APP, PAGE, "1.1", record(), BOUNDS)
        assert not await port.remember(APP, PAGE, "1.1", record(closed=True), BOUNDS)
        assert await port.recall(APP, PAGE) == {"2.2": new}


async def test_page_keeps_only_its_latest_records(pages: Implementation) -> None:
    async with pages() as port:
        for number in range(MAX_RECORDS + 2):
            await port.remember(APP, PAGE, f"{number}.0", record(), BOUNDS)
        assert sorted(await port.recall(APP, PAGE)) == ["2.0", "3.0", "4.0", "5.0"]


async def test_written_record_is_kept_even_if_its_time_is_the_oldest(pages: Implementation) -> None:
    async with pages() as port:
        late = record(9)  # the clock of this connection's worker is slow
        for number in range(MAX_RECORDS):
            await port.remember(APP, PAGE, f"{number}.0", record(), BOUNDS)
        assert await port.remember(APP, PAGE, "9.9", late, BOUNDS)
        assert sorted(await port.recall(APP, PAGE)) == ["1.0", "2.0", "3.0", "9.9"]


async def test_page_keeps_at_most_16_kilobytes(pages: Implementation) -> None:
    async with pages() as port:
        wide = bounded({f"{number:03}".ljust(160, "x"): Position("k3F9aQx2bT", 10**9) for number in range(500)})
        for number in range(3):
            await port.remember(APP, PAGE, f"{number}.0", PageRecord(next(_times), "#page-at-1", wide), BOUNDS)
        assert [*await port.recall(APP, PAGE)] == ["2.0"]
        small = record()
        assert await port.remember(APP, PAGE, "3.0", small, BOUNDS)
        assert len(wide) < MAX_PAGE_BYTES / 160
        assert sorted(await port.recall(APP, PAGE)) == ["2.0", "3.0"]


async def test_app_stores_no_more_pages_than_its_bound() -> None:
    for pages in (memory, IMPLEMENTATIONS["redis"]):
        async with pages() as port:
            bounds = PageBounds(SECONDS, 3, "")
            for number in range(3):
                assert await port.remember(APP, f"{PAGE}-{number}", "1.1", record(), bounds)
            assert not await port.remember(APP, f"{PAGE}-3", "1.1", record(), bounds)
            assert await port.remember(APP, f"{PAGE}-0", "2.2", record(), bounds)
            assert await port.remember("app-b", f"{PAGE}-3", "1.1", record(), bounds)


async def test_one_address_has_at_most_a_tenth_of_the_pages() -> None:
    for pages in (memory, IMPLEMENTATIONS["redis"]):
        async with pages() as port:
            bounds = PageBounds(SECONDS, 20, "192.0.2.1")
            for number in range(2):
                assert await port.remember(APP, f"{PAGE}-{number}", "1.1", record(), bounds)
            assert not await port.remember(APP, f"{PAGE}-2", "1.1", record(), bounds)
            assert await port.remember(APP, f"{PAGE}-2", "1.1", record(), PageBounds(SECONDS, 20, "192.0.2.2"))


async def test_cluster_divides_the_bound_among_its_shards() -> None:
    async with IMPLEMENTATIONS["redis-cluster"]() as port:
        bounds = PageBounds(SECONDS, 16, "")
        stored = [await port.remember(APP, f"{PAGE}-{number}", "1.1", record(), bounds) for number in range(64)]
        assert 8 <= sum(stored) <= 16


async def test_every_key_of_a_page_expires_on_the_server() -> None:
    broker = redis_broker(valkey().url)
    async with open_redis(broker) as port:
        await port.remember(APP, PAGE, "1.1", record(), BOUNDS)
        await port.forget(APP, PAGE, ["2.2"])
        shard = broker._shards.all[0]
        for key in (f"r:{APP}/{PAGE}", f"rf:{APP}/{PAGE}:2.2", f"rp:{APP}", f"ra:{APP}/192.0.2.1"):
            assert 0 < await shard.connection.call("PTTL", shard.keys.key(key)) <= SECONDS * 1000


# Bytes

NARROW: dict[str, Position | None] = {"news": Position("k3F9aQx2bT", 1)}
WIDE = bounded({f"{number:03}".ljust(160, "x"): Position("k3F9aQx2bT", 10**9) for number in range(500)})


async def write_pages(port: Pages, names: range, pages: int, positions: dict[str, Position | None]) -> int:
    """Writes a record for each of many pages of one address; returns the number of stored records."""
    stored, bounds = 0, PageBounds(SECONDS, pages, "192.0.2.1")
    for at in range(names.start, names.stop, 500):
        records = (
            port.remember(APP, f"{PAGE}-{n}", "1.1", PageRecord(next(_times), "#page-at-1", positions), bounds)
            for n in range(at, min(at + 500, names.stop))
        )
        stored += sum(await asyncio.gather(*records))
    return stored


@pytest.mark.parametrize(
    ("count", "pages", "positions", "most_bytes"),
    [
        (10_000, 10_000, NARROW, PAGE_BYTES),
        pytest.param(100_000, 100_000, NARROW, PAGE_BYTES, marks=pytest.mark.long),
        (2000, 1000, WIDE, MAX_PAGE_BYTES + PAGE_BYTES),
    ],
    ids=["some", "many", "wide"],
)
async def test_pages_of_one_address_use_a_bounded_number_of_bytes(
    count: int, pages: int, positions: dict[str, Position | None], most_bytes: int
) -> None:
    """A client can invent any number of page names, and the broker must store only a bounded number of bytes."""
    port = MemoryPages(lambda: NOW)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert await write_pages(port, range(pages // 10), pages, positions) == pages // 10
        full, _ = tracemalloc.get_traced_memory()
        assert await write_pages(port, range(pages // 10, count), pages, positions) == 0
        last, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert full - before < pages // 10 * most_bytes + 200_000
    assert full - before < port.bytes + 200_000, "the broker's own account is not too low"
    assert last - full < 500_000  # the tasks of 500 writes at once

    with contextlib.closing(Valkey()) as server:
        async with open_redis(redis_broker(server.url)) as redis:
            before = server.used_memory
            assert await write_pages(redis, range(pages // 10), pages, positions) == pages // 10
            full = server.used_memory
            assert await write_pages(redis, range(pages // 10, count), pages, positions) == 0
            assert full - before < 1.3 * pages // 10 * most_bytes + 200_000  # the server allocates blocks of fixed sizes
            assert server.used_memory - full < 200_000
